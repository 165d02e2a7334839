from __future__ import annotations

import pytest

from denoising_ebm.datasets.images import load_images
from denoising_ebm.quality.evaluator import FidelityEvaluator
from denoising_ebm.quality.frechet import feature_statistics, frechet_distance
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
