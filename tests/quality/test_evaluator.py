from __future__ import annotations

from pathlib import Path

import pytest
import torch

from denoising_ebm.datasets.images import load_images
from denoising_ebm.quality import evaluator as evaluator_module
from denoising_ebm.quality.evaluator import FidelityEvaluator
from denoising_ebm.quality.frechet import feature_statistics, frechet_distance
from denoising_ebm.quality.kid import subset_kernel_distance
from support import Projections


@pytest.mark.slow
def test_evaluator_agrees_with_its_parts() -> None:
    test = load_images("fashion-mnist", split="test", limit=48).pixels
    samples = load_images("fashion-mnist", split="train", limit=40).pixels
    evaluator = FidelityEvaluator(test)
    quality = evaluator(samples)
    parts = [feature_statistics(pixels, evaluator.extractor) for pixels in (samples, test)]
    assert quality.frechet_distance == pytest.approx(frechet_distance(*parts), rel=1e-9)
    assert quality.frechet_distance == evaluator.frechet_distance(samples)
    assert quality.fid is None and 0 < quality.precision <= 1
    assert evaluator(test).coverage == 1.0 and evaluator.frechet_distance(test) == pytest.approx(0.0, abs=1e-3)
    assert "WARNING: 40 images are fewer than the 1,280 features" in evaluator.protocol(40, "test")
    assert "WARNING" not in FidelityEvaluator(test, extractor=Projections(4)).protocol(40, "test")


def test_fid_and_kid_are_those_of_the_second_extractor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Inception(Projections, torch.nn.Module):
        def __init__(self, weights: None) -> None:
            torch.nn.Module.__init__(self)
            Projections.__init__(self, 6)

        __call__ = Projections.__call__

    monkeypatch.setattr(evaluator_module, "InceptionFeatures", Inception)
    pixels = load_images("digits", split="test", limit=100).pixels
    reference, samples = pixels[:60], pixels[60:]
    evaluator = FidelityEvaluator(reference, extractor=Projections(4), inception=True, cache=tmp_path)
    quality, features = evaluator(samples), Inception(None)
    parts = [feature_statistics(images, features) for images in (samples, reference)]
    assert quality.fid == pytest.approx(frechet_distance(*parts), rel=1e-9)
    assert (quality.kid, quality.kid_deviation) == subset_kernel_distance(features(samples), features(reference))
    assert quality.frechet_distance != quality.fid
    assert evaluator.protocol(40, "test").endswith("; FID and KID: random projections")
    assert "WARNING: 5 images are fewer than the 6 features" in evaluator.protocol(5, "test")
