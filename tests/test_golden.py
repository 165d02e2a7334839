"""The bundled models give the images and energies that they gave when these numbers were stored, in float32.

`data/golden.safetensors` was written by version 0.1.0 before its samplers had their published names, when one generator made
the draws of a whole batch. The samplers still take such a generator, and so the numbers still hold.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from denoising_ebm import DenoisingEBM, load_images, to_float
from denoising_ebm.config import SamplingConfig
from denoising_ebm.energies import draw_noise
from denoising_ebm.noise import falling_sigmas
from denoising_ebm.restoration.operators import masked
from denoising_ebm.restoration.posterior import restore
from denoising_ebm.samplers import ChainState
from denoising_ebm.utils.seeds import ImageNoise

GOLDEN = load_file(Path(__file__).parent / "data" / "golden.safetensors")
#: Images drawn of each model.
NUM = {"fashion-mnist": 4, "cifar10-small": 2}


@pytest.fixture(scope="module", params=list(NUM))
def model(request: pytest.FixtureRequest) -> tuple[str, DenoisingEBM]:
    return request.param, DenoisingEBM.from_pretrained(request.param)


@pytest.fixture
def images(model: tuple[str, DenoisingEBM]) -> Tensor:
    pixels = load_images("fashion-mnist", split="test", limit=8).pixels
    return to_float(pixels.expand(-1, model[1].image_shape[0], -1, -1))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("two-stage", {"seed": 0}),
        ("noise", {"seed": 1, "sampler": "dpmpp-2m-sde"}),
        ("heun", {"seed": 2, "sampler": "heun", "steps": 8}),
        ("mala", {"seed": 3, "sampler": "mala", "steps": 5, "drift": "energy"}),
    ],
)
def test_samplers_draw_the_same_images(
    model: tuple[str, DenoisingEBM], name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = torch.Generator().manual_seed(options["seed"])
    monkeypatch.setattr("denoising_ebm.model.ImageNoise.of", lambda *_: one)
    drawn = model[1].sample(NUM[model[0]], **options)
    torch.testing.assert_close(drawn.images, GOLDEN[f"{model[0]}.{name}.images"], atol=1e-3, rtol=0)
    if drawn.semantic is not None:
        torch.testing.assert_close(drawn.semantic, GOLDEN[f"{model[0]}.{name}.semantic"], atol=1e-3, rtol=0)


@pytest.mark.parametrize("sigma", [0.02, 0.2])
def test_energies_are_the_same(model: tuple[str, DenoisingEBM], images: Tensor, sigma: float) -> None:
    with torch.no_grad():
        energies = model[1].energy(images, sigma)
    torch.testing.assert_close(energies, GOLDEN[f"{model[0]}.energy.{sigma:g}"], rtol=1e-3, atol=0)


def test_restored_images_are_the_same(
    model: tuple[str, DenoisingEBM], images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = torch.Generator().manual_seed(0x9E3779B97F4A7C15 % 2**63)
    monkeypatch.setattr("denoising_ebm.restoration.posterior.ImageNoise.of", lambda *_, **__: one)
    known = torch.ones(32, 32, dtype=torch.bool)
    known[8:16, 8:16] = False
    restored = restore(model[1], images[:2] * known, masked(known), num_samples=2, steps=6, seed=0)
    torch.testing.assert_close(restored, GOLDEN[f"{model[0]}.restored"], atol=1e-3, rtol=0)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers with NumPy 2
def test_default_chain_is_diffusers_sde_dpmsolver(model: tuple[str, DenoisingEBM]) -> None:
    """The pixel chain of the default sampler, from where it starts, is SDE-DPM-Solver++(2M) on EDM's noise levels."""
    from diffusers import DPMSolverMultistepScheduler

    network, states, noise = model[1], list[ChainState](), ImageNoise.of(0, range(2))
    drawn = network.sample(2, seed=0, callback=states.append)
    sampling = network.configure_sampler()
    assert isinstance(sampling, SamplingConfig) and drawn.semantic is not None
    pixel = sampling.pixel
    assert (pixel.method, pixel.schedule, pixel.temperature, pixel.low_temperature) == ("dpmpp-2m-sde", "karras", 1, 1)
    sigmas = falling_sigmas("karras", pixel.sigma_max, pixel.sigma_min, pixel.steps)
    chain = [state for state in states if state.stage == "texture"]

    # The same draws: of z, of the latent chain, of the noise on h(z), then one for each step in pixels.
    for _ in range(sampling.semantic.steps + 1):
        draw_noise(tuple(drawn.latents.shape), noise, drawn.images)  # type: ignore[union-attr]
    x = drawn.semantic + sigmas[0] * draw_noise(tuple(drawn.images.shape), noise, drawn.images)
    scheduler = DPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver++", solver_order=2, prediction_type="sample", lower_order_final=False
    )
    scheduler.set_timesteps(len(sigmas))
    scheduler.sigmas, scheduler.timesteps = sigmas, torch.arange(len(sigmas))
    theirs = x / (1 + sigmas[0] ** 2).sqrt()  # its states are scaled so
    for i, sigma in enumerate(sigmas[:-1]):
        with torch.no_grad():
            denoised = network.denoise(theirs * (1 + sigma**2).sqrt(), sigma)
        draws = draw_noise(tuple(x.shape), noise, x)
        theirs = scheduler.step(denoised, scheduler.timesteps[i], theirs, variance_noise=draws).prev_sample
    torch.testing.assert_close(chain[-2].x, theirs * (1 + sigmas[-1] ** 2).sqrt(), atol=1e-4, rtol=0)
