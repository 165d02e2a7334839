from __future__ import annotations

import pytest
import torch
from torch import Tensor

from denoising_ebm.datasets.images import load_images
from denoising_ebm.quality.classes import ClassEvaluator
from denoising_ebm.quality.evaluator import FidelityEvaluator


def cloud(num: int, generator: torch.Generator, shift: float = 0.0, dim: int = 16) -> Tensor:
    return torch.randn(num, dim, generator=generator) + shift


@pytest.mark.slow
def test_classes_of_real_images_are_found() -> None:
    """Real images: names are mostly right, other images of each class are near, and a class that is missing shows."""
    train = load_images("fashion-mnist", split="train", limit=1200)
    test = load_images("fashion-mnist", split="test", limit=600)
    evaluator = FidelityEvaluator(test.pixels[:2])  # for its features alone
    features, real = evaluator.features(train.pixels), evaluator.features(test.pixels)
    by_class = ClassEvaluator(features[:800], train.labels[:800])
    assert by_class.classes == tuple(sorted({str(name) for name in test.labels}))
    assert by_class.accuracy(real, test.labels) > 0.7
    other = features[800:]
    kept = torch.tensor([name != "Bag" for name in by_class.predict(other)])
    found = {item.name: item for item in by_class(other[kept], real)}
    assert found["Bag"].share == 0.0 and found["Bag"].kernel_distance is None
    assert sum(item.share for item in found.values()) == pytest.approx(1.0)
    assert sum(item.real_share for item in found.values()) == pytest.approx(1.0)
    # Images blurred by averaging 2 x 2 pixels stay far from their class.
    small = torch.nn.functional.avg_pool2d(train.pixels[800:].float(), 2)
    blurred = torch.nn.functional.interpolate(small, scale_factor=2).round().to(torch.uint8)
    worse = {item.name: item.kernel_distance for item in by_class(evaluator.features(blurred), real)}
    compared = [
        worse[name] / abs(item.kernel_distance)  # type: ignore[operator]
        for name, item in found.items()
        if item.kernel_distance is not None and worse[name] is not None
    ]
    assert len(compared) >= 5 and min(compared) > 3


def test_sets_without_labels_are_refused(generator: torch.Generator) -> None:
    features = cloud(6, generator)
    with pytest.raises(ValueError, match="images have no labels, which distances within classes need"):
        ClassEvaluator(features, ["a", None, "b", "a", "b", "b"])
    with pytest.raises(ValueError, match="all images have the same label"):
        ClassEvaluator(features, ["a"] * 6)
    with pytest.raises(ValueError, match="need one label an image, got 2 for 6"):
        ClassEvaluator(features, ["a", "b"])
    with pytest.raises(ValueError, match="images have no labels"):
        ClassEvaluator(features, [])
    by_class = ClassEvaluator(features, ["a", "b"] * 3)
    with pytest.raises(ValueError, match="images have no labels"):
        by_class.accuracy(features, ["a", "b", None] * 2)
    with pytest.raises(ValueError, match="class 'c' is not among those of the training images"):
        by_class.accuracy(features, ["a", "b", "c"] * 2)
