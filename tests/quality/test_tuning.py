"""The choice of a sampler's settings."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from denoising_ebm.config import PixelSampler, SamplingConfig, SemanticChain
from denoising_ebm.quality.tuning import tune_low_temperature


class Brightness:
    """An evaluator whose distance is that of the mean pixel to 127.5."""

    def frechet_distance(self, images: Tensor) -> float:
        return abs(float(images.double().mean()) - 127.5)


SAMPLING = SamplingConfig(semantic=SemanticChain(steps=2), pixel=PixelSampler(steps=3))


@pytest.mark.parametrize("best", [1.0, 0.7, 0.35, 0.25])
def test_the_nearest_temperature_is_taken(best: float) -> None:
    def draw(sampling: SamplingConfig) -> Tensor:
        return torch.full((4, 1, 16, 16), 0.5 * (sampling.pixel.low_temperature - best))

    tuned, distances = tune_low_temperature(SAMPLING, draw, Brightness())  # type: ignore[arg-type]
    assert distances == pytest.approx({t: 127.5 * 0.5 * abs(t - best) for t in (1, 0.7, 0.5, 0.35, 0.25)}, abs=0.51)
    assert tuned == replace(SAMPLING, pixel=replace(SAMPLING.pixel, low_temperature=best))


def test_chains_that_diverge_and_no_temperatures_are_refused() -> None:
    def draw(sampling: SamplingConfig) -> Tensor:
        return torch.zeros(2, 1, 16, 16) / (sampling.pixel.low_temperature == 1)

    with pytest.raises(ValueError, match=r"samples at temperature 0\.7 are not finite"):
        tune_low_temperature(SAMPLING, draw, Brightness())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one or more numbers"):
        tune_low_temperature(SAMPLING, draw, Brightness(), ())  # type: ignore[arg-type]
