from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from denoising_ebm.datasets.images import load_images
from denoising_ebm.quality.classes import ClassEvaluator
from denoising_ebm.quality.evaluator import FidelityEvaluator
from denoising_ebm.quality.kid import kernel_distance


def cloud(num: int, generator: torch.Generator, shift: float = 0.0, dim: int = 16) -> Tensor:
    return torch.randn(num, dim, generator=generator) + shift


# -- kernel distance ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_kernel_distance_is_torch_fidelitys(shift: float, generator: torch.Generator) -> None:
    """One subset of all vectors is the estimate on the whole sets."""
    a, b = cloud(400, generator, shift), cloud(400, generator)
    metric: Any = import_module("torch_fidelity.metric_kid")
    expected = metric.kid_features_to_metric(a, b, kid_subsets=1, kid_subset_size=400, verbose=False)
    assert kernel_distance(a, b) == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-3, abs=1e-7)


def test_kernel_distance_is_unbiased_at_few_and_unequal_numbers(generator: torch.Generator) -> None:
    """Of equal distributions the mean is 0; of others it is that of many images."""
    pairs = [(cloud(12, generator), cloud(30, generator)) for _ in range(400)]
    values = np.array([kernel_distance(a, b) for a, b in pairs])
    assert abs(values.mean()) < 3 * values.std() / 400**0.5 and (values < 0).any()
    moved = np.array([kernel_distance(a + 0.5, b) for a, b in pairs])
    truth = kernel_distance(cloud(8000, generator, 0.5), cloud(8000, generator))
    assert abs(moved.mean() - truth) < 3 * moved.std() / 400**0.5 + 0.02 * truth
    assert truth > 10 * values.std() / 400**0.5


def test_kernel_distance_by_hand() -> None:
    """a = 1, 3 and b = 0, 1, 2 in one dimension: kernels (xy + 1)^3."""
    a, b = torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [1.0], [2.0]])
    within_a, within_b = 4**3, (1 + 1 + 3**3) / 3
    between = (1 + 2**3 + 3**3 + 1 + 4**3 + 7**3) / 6
    assert kernel_distance(a, b) == pytest.approx(within_a + within_b - 2 * between)


def test_kernel_distance_refuses() -> None:
    with pytest.raises(ValueError, match="at least 2 feature vectors a set, got 1 and 2"):
        kernel_distance(torch.zeros(1, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"shapes \(n, d\) and \(m, d\)"):
        kernel_distance(torch.zeros(2, 3), torch.zeros(2, 4))


# -- classes --------------------------------------------------------------------------------------------------------


def test_classes_of_real_images_are_found() -> None:
    """Real images: names are mostly right, other images of each class are near, and a class that is missing shows."""
    evaluator = FidelityEvaluator(load_images("fashion-mnist", split="test", limit=600).pixels)
    train = load_images("fashion-mnist", split="train", limit=1200)
    test = load_images("fashion-mnist", split="test", limit=600)
    features, real = evaluator.features(train.pixels), evaluator.features(test.pixels)
    by_class = ClassEvaluator(features[:800], train.labels[:800])
    assert by_class.classes == tuple(sorted({str(name) for name in test.labels}))
    assert by_class.accuracy(real, test.labels) > 0.7
    other = features[800:]
    kept = torch.tensor([name != "Bag" for name in by_class.predict(other)])
    found = {item.name: item for item in by_class(other[kept], real)}
    assert found["Bag"].share == 0.0 and found["Bag"].distance is None
    assert sum(item.share for item in found.values()) == pytest.approx(1.0)
    assert sum(item.real_share for item in found.values()) == pytest.approx(1.0)
    # Images blurred by averaging 2 x 2 pixels stay far from their class.
    small = torch.nn.functional.avg_pool2d(train.pixels[800:].float(), 2)
    blurred = torch.nn.functional.interpolate(small, scale_factor=2).round().to(torch.uint8)
    worse = {item.name: item.distance for item in by_class(evaluator.features(blurred), real)}
    compared = [
        worse[name] / abs(item.distance)  # type: ignore[operator]
        for name, item in found.items()
        if item.distance is not None and worse[name] is not None
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
