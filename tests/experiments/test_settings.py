from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from denoising_ebm.experiments.settings import (
    ABLATIONS,
    ablation_config,
    base_config,
    sampler_title,
    sizes_of,
    variant_config,
)
from denoising_ebm.literals import Scale


@pytest.mark.parametrize("scale", get_args(Scale))
def test_settings_of_every_row_are_valid(scale: Scale) -> None:
    base = base_config(scale, 32, 3, 0.0, 7)
    for variant in ("denoising", "contrastive", "score"):
        config = variant_config(base, variant)  # type: ignore[arg-type]
        assert config.training.seed == 7 and config.training.max_images == base.training.max_images
    for sigma_max, num_sigmas in ABLATIONS.values():
        config = ablation_config(base, sigma_max, num_sigmas, 8, 0.5)
        assert (config.noise.sigma_max, config.noise.num_sigmas, config.noise.draw) == (sigma_max, num_sigmas, "grid")
        assert config.sampling.pixel.sigma_max <= sigma_max and config.training.seed == 8
    assert base_config(scale, 32, 3, 2.5, 0).training.max_minutes == 2.5


def test_scales_grow() -> None:
    tiny, small, full = (sizes_of(scale) for scale in get_args(Scale))
    assert tiny.samples < small.samples < full.samples and small.chain_lengths == (5, 10, 20, 40, 80)
    # More samples than EfficientNet-lite0 has features, where distances are compared with others'.
    assert min(small.samples, small.chain_samples, small.speed_samples) > 1280


def test_samplers_have_the_names_of_their_papers() -> None:
    sampling = base_config("tiny", 32, 1, 0.0, 0).sampling
    assert sampler_title("two-stage", sampling) == "SDE-DPM-Solver++(2M) from h(z)"
    by_heun = replace(sampling, pixel=replace(sampling.pixel, method="heun"))
    assert sampler_title("two-stage", by_heun) == "Heun's method from h(z)"
    assert sampler_title("dpmpp-2m-sde", by_heun) == "SDE-DPM-Solver++(2M) from noise"
