"""The bundled detector gives the scores, p-values and maps that it gave when these numbers were stored.

`data/golden_detector.safetensors` was written by version 0.1.0 before the detector had its present form.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from denoising_ebm import Detector, load_images
from denoising_ebm.ood.features import compute_features

GOLDEN = load_file(Path(__file__).parents[1] / "data" / "golden_detector.safetensors")


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector.from_pretrained("cifar10-small")


@pytest.fixture(scope="module")
def images() -> Tensor:
    """64 gray images in three channels, half of them with less contrast: from plainly OOD to nearly normal."""
    pixels = load_images("fashion-mnist", split="test", limit=64).pixels.expand(-1, 3, -1, -1).contiguous()
    pixels[32:] = (pixels[32:].float() * 0.7 + 20).to(torch.uint8)
    return pixels


# The detector computes in bf16, which keeps 8 bits, and another type of CPU adds up in another order. No order can move
# results further than doing without that rounding: float32 moves scores by .39 at most and .08 on average, p-values by
# .006, maps by .03. Tolerances are a little above that.


def test_scores_and_p_values_are_the_same(detector: Detector, images: Tensor) -> None:
    scores = detector.score(images)
    torch.testing.assert_close(scores, GOLDEN["scores"], rtol=0, atol=0.5)
    assert float((scores - GOLDEN["scores"]).abs().mean()) < 0.12
    torch.testing.assert_close(detector.p_values(scores), GOLDEN["p_values"], rtol=0, atol=0.01)
    # Between scores and p-values there is no rounding.
    assert torch.equal(detector.p_values(GOLDEN["scores"]), GOLDEN["p_values"])


def test_maps_are_the_same(detector: Detector, images: Tensor) -> None:
    torch.testing.assert_close(detector.maps(images[:2]), GOLDEN["maps"], rtol=0, atol=0.05)


def test_scores_in_float32_are_the_same(detector: Detector, images: Tensor) -> None:
    """To the third digit: here only the order of sums differs."""
    model = detector.model
    precision = model.precision
    features = compute_features(model.set_precision("fp32"), images, detector.config.features)
    model.set_precision(precision)
    torch.testing.assert_close(detector.score_features(features), GOLDEN["scores_float32"], rtol=1e-3, atol=1e-3)
