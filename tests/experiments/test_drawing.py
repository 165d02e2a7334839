from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from denoising_ebm.config import EnergyConfig, PixelSampler, SamplingConfig, SemanticChain, TrainingStage
from denoising_ebm.experiments.drawing import draw, draw_ncsn
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.utils.seeds import ImageNoise


def own_sampler(model: DenoisingEBM, **changes: Any) -> SamplingConfig:
    """Return a two-stage sampler on the model's noise levels, its settings in pixels changed."""
    noise = model.config.noise
    pixel = PixelSampler(steps=4, sigma_max=noise.sigma_max, sigma_min=noise.sigma_min)
    return SamplingConfig(semantic=SemanticChain(steps=3), pixel=replace(pixel, **changes))


def test_evaluations_are_counted_as_they_happen(tiny_model: DenoisingEBM) -> None:
    """Forward passes counted by a hook; every backward pass is worth two more."""
    counts = {"forward": 0, "backward": 0}
    tiny_model.dae.register_forward_hook(lambda *_: counts.__setitem__("forward", counts["forward"] + 1))
    tiny_model.dae.register_full_backward_hook(lambda *_: counts.__setitem__("backward", counts["backward"] + 1))
    base = tiny_model.config
    for drift in ("energy", "denoiser"):
        tiny_model.config = replace(base, sampling=own_sampler(tiny_model, drift=drift))
        samplers = (("two-stage", None), ("consistent-annealed", 5), ("dpmpp-2m-sde", 5), ("heun", 4), ("mala", 10))
        for sampler, steps in samplers:
            counts.update(forward=0, backward=0)
            drawn, seconds = draw(tiny_model, 2, sampler, steps=steps)  # type: ignore[arg-type]
            assert drawn.nfe == counts["forward"] + 2 * counts["backward"], (drift, sampler)
            assert (drawn.semantic is not None) == (sampler == "two-stage") and seconds > 0
    own = own_sampler(tiny_model)
    tiny_model.config = replace(base, sampling=own)
    with_latent = draw(tiny_model, 2, "two-stage", steps=2)[0].nfe
    without = replace(own, semantic=replace(own.semantic, steps=0))
    assert with_latent - draw(tiny_model, 2, without, steps=2)[0].nfe == 9
    assert tiny_model.config.sampling.semantic.steps == 3
    # A model trained by `score` follows its whole gradient, whatever its config says.
    energy = EnergyConfig(inner_noise=False, denoiser="gradient")
    sampling = own_sampler(tiny_model, drift="denoiser")
    tiny_model.config = replace(base, energy=energy, sampling=sampling, stages=(TrainingStage("score"),))
    for sampler in ("two-stage", "consistent-annealed", "heun"):
        counts.update(forward=0, backward=0)
        drawn, _ = draw(tiny_model, 2, sampler, steps=4)  # type: ignore[arg-type]
        assert drawn.nfe == counts["forward"] + 2 * counts["backward"], sampler


def test_ncsn_protocol_is_its_formula(tiny_model: DenoisingEBM) -> None:
    """x += a score + sqrt(2 a) z with a = eps sigma_i^2 / sigma_L^2, as in the released code, from uniform noise."""
    tiny_model.config = replace(tiny_model.config, energy=EnergyConfig(inner_noise=False))
    published, denoised = draw_ncsn(tiny_model, 2, steps=2, sigmas=(0.8, 0.1), num_sigmas=2, seed=5)
    noise = ImageNoise.of(5, range(2))
    x = 2 * noise.draw(torch.rand, (2, 1, 16, 16), torch.float32) - 1
    with torch.no_grad():
        for sigma in (0.8, 0.8, 0.1, 0.1):
            step = 2e-5 * sigma**2 / 0.01**2
            score = (tiny_model.denoise(x, sigma) - x) / sigma**2
            x = x + step * score + (2 * step) ** 0.5 * noise.draw(torch.randn, (2, 1, 16, 16), torch.float32)
        clean = tiny_model.denoise(x, 0.1)
    for (drawn, _), expected, nfe in ((published, x, 4), (denoised, clean, 5)):
        torch.testing.assert_close(drawn.images, expected, rtol=1e-4, atol=1e-4)
        assert drawn.nfe == nfe
    assert float((x - clean).abs().max()) > 0.05


def test_ncsn_protocol_needs_its_noise_levels(tiny_model: DenoisingEBM) -> None:
    assert tiny_model.config.noise.sigma_max < 2
    with pytest.raises(
        ValueError, match=r"NCSN's protocol needs noise levels from 0.02 to 2, the model was trained on"
    ):
        draw_ncsn(tiny_model, 2, steps=1)


@torch.no_grad()
def test_samples_that_are_not_finite_are_no_samples(tiny_model: DenoisingEBM) -> None:
    """As pixels they would be black images, and measured like others."""
    for parameter in tiny_model.parameters():
        parameter.fill_(math.nan)
    with pytest.raises(ValueError, match="3 of 3 samples are not finite: the chains diverged"):
        draw(tiny_model, 3, "heun", steps=2)


@pytest.mark.parametrize("sampler", ["consistent-annealed", "heun"])
def test_chains_start_at_the_level_asked_for(sampler: Any, tiny_model: DenoisingEBM) -> None:
    settings = tiny_model.configure_sampler(sampler, steps=4)
    assert isinstance(settings, PixelSampler)
    low = draw(tiny_model, 3, replace(settings, sigma_max=0.5))[0].images
    base = tiny_model.config
    assert base.noise.sigma_max > 0.5
    tiny_model.config = replace(base, noise=replace(base.noise, sigma_max=0.5))
    assert torch.equal(low, draw(tiny_model, 3, sampler, steps=4)[0].images)
    tiny_model.config = base
    assert not torch.equal(low, draw(tiny_model, 3, sampler, steps=4)[0].images)
