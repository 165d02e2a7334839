from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from denoising_ebm.config import PixelSampler, TrainingStage
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.noise import geometric_sigmas
from denoising_ebm.samplers import (
    METHODS,
    ChainState,
)
from support import tiny_config


@pytest.mark.parametrize("sampler", ["two-stage", "annealed-langevin"])
def test_low_temperature_of_the_settings_holds(tiny_model: DenoisingEBM, sampler: Any) -> None:
    drawn = {}
    for temperature, sigma in ((1.0, 0.25), (0.5, 0.25), (0.5, 1e-3)):
        pixel = tiny_model.config.sampling.pixel
        pixel = replace(pixel, low_temperature=temperature, low_temperature_sigma=sigma)
        sampling = replace(tiny_model.config.sampling, pixel=pixel)
        tiny_model.config = replace(tiny_model.config, sampling=sampling)
        drawn[temperature, sigma] = tiny_model.sample(2, sampler=sampler, seed=1).images
    assert not torch.equal(drawn[0.5, 0.25], drawn[1.0, 0.25])
    assert torch.equal(drawn[0.5, 1e-3], drawn[1.0, 0.25])  # no step ends there


def test_settings_decide_the_method(tiny_model: DenoisingEBM) -> None:
    sampling, images = tiny_model.config.sampling, {}
    for method in METHODS:
        drift: Any = "energy" if method == "mala" else "denoiser"
        settings = replace(sampling, pixel=PixelSampler(method, steps=4, sigma_min=0.05, drift=drift))
        images[method] = tiny_model.sample(2, sampler=settings, seed=1).images
        assert not images[method].requires_grad
    for one, other in pairwise(images.values()):
        assert float((one - other).abs().max()) > 1e-3


def test_the_drift_may_be_chosen(tiny_model: DenoisingEBM) -> None:
    """A linear density network: its chain's last step is x - sigma^2 grad U, and its gradients count three."""
    config = replace(tiny_model.config, energy=replace(tiny_model.config.energy, density=True))
    model = DenoisingEBM(config)
    model.load_state_dict({**model.state_dict(), **tiny_model.state_dict()})
    assert model.density is not None
    drawn = {drift: model.sample(2, steps=3, drift=drift, seed=1) for drift in ("denoiser", "energy", "density")}  # type: ignore[arg-type]
    assert drawn["density"].nfe == drawn["energy"].nfe + 2 == drawn["denoiser"].nfe + 2 * 3 + 2
    for one, other in pairwise(drawn.values()):
        assert float((one.images - other.images).abs().max()) > 1e-3
    # Untrained, f is the best denoiser of N(0, sigma_data^2), and so is the gradient's.
    x, s = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)), config.network.sigma_data
    expected = x * s**2 / (s**2 + 0.3**2)
    torch.testing.assert_close(model.pixel_energy("density").denoise(x, 0.3)[1], expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="no density network"):
        tiny_model.sample(1, drift="density")


def test_a_sampler_is_a_name_or_settings(tiny_model: DenoisingEBM) -> None:
    own = tiny_model.config.sampling
    assert tiny_model.configure_sampler() == tiny_model.configure_sampler("two-stage") == own
    assert tiny_model.configure_sampler(steps=9) == replace(own, pixel=replace(own.pixel, steps=9))
    named = tiny_model.configure_sampler("dpmpp-2m-sde")
    assert isinstance(named, PixelSampler) and named.steps == 16 and named.schedule == "karras"
    assert (named.sigma_max, named.sigma_min) == (1.0, 0.05)  # of training
    for sampler, same in (("two-stage", own), ("dpmpp-2m-sde", named)):
        by_name, by_settings = (tiny_model.sample(2, sampler=each, steps=3, seed=4) for each in (sampler, same))  # type: ignore[arg-type]
        assert torch.equal(by_name.images, by_settings.images) and by_name.nfe == by_settings.nfe
    assert tiny_model.config.sampling == own  # nothing is swapped inside
    # From noise there is no semantic stage.
    assert by_name.semantic is None and by_name.latents is None


def test_images_depend_on_seed_and_index_alone(tiny_model: DenoisingEBM) -> None:
    counts: list[int] = []
    states: list[ChainState] = []
    whole = tiny_model.sample(5, seed=3, batch_size=2, callback=states.append, progress=counts.append)
    steps = tiny_model.config.sampling.semantic.steps + tiny_model.config.sampling.pixel.steps
    assert counts == [2] * steps + [2] * steps + [1] * steps
    assert [state.stage for state in states] == ["semantic"] * 2 + ["texture"] * 2  # of the first batch
    # Batches of one size run the same sums in the same order; others may differ in the last bits.
    parts = [tiny_model.sample(num, seed=3, start=start) for start, num in ((0, 2), (2, 2), (4, 1))]
    together = tiny_model.sample(8, seed=3)
    for name in ("images", "semantic", "latents"):
        drawn = getattr(whole, name)
        assert torch.equal(drawn, torch.cat([getattr(part, name) for part in parts]))
        torch.testing.assert_close(getattr(together, name)[:5], drawn, atol=1e-4, rtol=0)
    other = tiny_model.sample(5, seed=4).images
    assert all(not torch.allclose(a, b, atol=0.01) for a in whole.images for b in other)
    # A callback sees the first batch, wherever it starts.
    later: list[ChainState] = []
    tiny_model.sample(3, seed=3, start=2, batch_size=2, callback=later.append)
    assert len(later) == steps and [len(state.x) for state in later] == [2] * steps
    tiny_model.sample(4, seed=3, callback=states.append)
    torch.testing.assert_close(later[-1].x, states[-1].x[2:], atol=1e-4, rtol=0)


def gaussian_model(sigma_max: float, sigma_min: float) -> DenoisingEBM:
    """An untrained network with energy preconditioning is the exact model of N(0, sigma_data^2 = 0.25)."""
    config = tiny_config(TrainingStage("score"))
    pixel = PixelSampler("annealed-langevin", steps=2, sigma_min=0.05, step_size=0.2, final_denoise=False)
    sampling = replace(config.sampling, pixel=pixel)
    noise = replace(config.noise, sigma_max=sigma_max, sigma_min=sigma_min)
    return DenoisingEBM(replace(config, sampling=sampling, noise=noise))


def test_model_samples_gaussian_data() -> None:
    model, num, error = gaussian_model(2.0, 0.2), 32, math.sqrt(2 / (32 * 256))
    # Heun's start has variance s^2 + 4, is carried to s^2 + sigma^2 and denoised: s^4 / (s^2 + sigma^2).
    x = model.sample(num, sampler="heun", steps=25, seed=1).images
    assert float(x.var()) == pytest.approx(0.5**4 / 0.29, rel=4.5 * error + 0.01)
    # Falling levels leave Langevin chains behind; by how much is known step by step.
    expected = 4.25
    for level in geometric_sigmas(2.0, 0.2, 30).tolist():
        h = 0.2 * level**2
        expected = (1 - h / (0.25 + level**2)) ** 2 * expected + 2 * h
    x = model.sample(num, sampler="annealed-langevin", steps=30, seed=1).images
    assert float(x.var()) == pytest.approx(expected, rel=4.5 * error)
    # At (almost) one level MALA keeps the distribution it starts with, which unadjusted steps would widen by 9 %.
    mala = PixelSampler("mala", steps=30, sigma_max=1.0, sigma_min=0.999, final_denoise=False)
    x = model.sample(num, sampler=mala, seed=1).images
    assert float(x.var()) == pytest.approx(1.25, rel=4.5 * error)
    assert not torch.equal(x, model.sample(num, sampler=mala, steps=1, seed=1).images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num": 0}, "number of images must be >= 1, got 0"),
        ({"num": 1, "batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"num": 1, "start": -1}, "start must be >= 0, got -1"),
        ({"num": 1, "steps": 0}, "steps must be >= 1, got 0"),
        ({"num": 1, "sampler": "gibbs"}, "unknown sampler 'gibbs': use two-stage, dpmpp-2m-sde, ancestral"),
    ],
)
def test_model_refuses(arguments: dict[str, Any], message: str, tiny_model: DenoisingEBM) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model.sample(**arguments)
