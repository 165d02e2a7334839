"""The methods that ours is compared with: their losses and chains against what their papers say."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from denoising_ebm import DenoisingEBM
from denoising_ebm.noise import append_dims, loss_weights
from denoising_ebm.training.ema import AveragedWeights
from denoising_ebm.training.objectives import Batch
from denoising_ebm.utils.seeds import ImageNoise
from support import randomise, tiny_config

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "baselines"))

from denoisers import EDM, NCSN, PlainDAE
from scalar_energies import IGEBM, MDSM, ScalarEnergy

CONFIG = tiny_config()
SIGMA = torch.tensor([0.1, 0.4, 0.9, 1.3])


def batch(x0: Tensor, generator: torch.Generator) -> Batch:
    noise = torch.randn(x0.shape, generator=generator)
    return Batch(x0, SIGMA, noise, step=0, generator=torch.Generator().manual_seed(3))


def as_denoiser(model: Any, function: Any) -> None:
    """Put a function of (x, sigma) in the place of the network."""

    class Network(nn.Module):
        def forward(self, x: Tensor, sigma: Tensor) -> tuple[Tensor]:
            return (function(x, sigma),)

    model.dae = Network()


def test_edm_loss_is_weighted_and_zero_for_the_truth(generator: torch.Generator) -> None:
    x0 = torch.rand(4, 1, 16, 16, generator=generator)
    given, model = batch(x0, generator), EDM(CONFIG)
    as_denoiser(model, lambda x, sigma: x0)
    assert float(model.loss(given)) == 0
    as_denoiser(model, lambda x, sigma: x0 + append_dims(sigma, x))
    # lambda(sigma) sigma^2 = (sigma^2 + data^2) / data^2.
    data = CONFIG.network.sigma_data
    assert float(model.loss(given)) == pytest.approx(float(((SIGMA**2 + data**2) / data**2).mean()), rel=1e-5)
    assert torch.allclose(loss_weights("edm", SIGMA, data) * SIGMA**2, (SIGMA**2 + data**2) / data**2)


def test_edm_by_our_sampler_is_our_sampler() -> None:
    """The same network gives the same images as `DenoisingEBM.sample` from noise."""
    pixel = replace(CONFIG.sampling.pixel, method="dpmpp-2m-sde", steps=5, step_size=None, drift="denoiser")
    sampling = replace(CONFIG.sampling, pixel=pixel)
    config = replace(CONFIG, sampling=sampling, energy=replace(CONFIG.energy, inner_noise=False))
    ours, theirs = DenoisingEBM(config), EDM(config)
    randomise(ours)
    theirs.dae.load_state_dict(ours.dae.state_dict())
    ours.eval(), theirs.eval()
    for changes in ({}, {"low_temperature": 0.3, "low_temperature_sigma": 0.5}, {"method": "ancestral"}):
        sampler = replace(pixel, **changes)  # type: ignore[arg-type]
        with torch.no_grad():
            images = theirs.draw_as_ours(3, ImageNoise.of(4, range(3)), sampler)
        noise = config.noise
        expected = ours.sample(
            3, sampler=replace(sampler, sigma_max=noise.sigma_max, sigma_min=noise.sigma_min), seed=4
        )
        torch.testing.assert_close(images, expected.images, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        images = theirs.draw_as_ours(3, ImageNoise.of(4, range(3)))
    torch.testing.assert_close(images, ours.sample(3, sampler="dpmpp-2m-sde", seed=4).images, rtol=1e-4, atol=1e-4)


def test_heun_and_ancestral_sampling_of_baselines_are_those_of_our_samplers() -> None:
    """For the truth of a point at 0.3, D = 0.3: all of them end there."""
    for kind in (EDM, PlainDAE):
        model = kind(CONFIG)
        as_denoiser(model, lambda x, sigma: torch.full_like(x, 0.3))
        images = model.draw(2, torch.Generator().manual_seed(1))
        torch.testing.assert_close(images, torch.full_like(images, 0.3), rtol=0, atol=5 * model.config.noise.sigma_min)


def test_ncsn_loss_is_zero_for_the_score_of_a_point(generator: torch.Generator) -> None:
    """Data at 0: the score of level sigma is -x / sigma^2, and the network is sigma times it."""
    given, model = batch(torch.zeros(4, 1, 16, 16), generator), NCSN(CONFIG)
    as_denoiser(model, lambda x, sigma: -x / append_dims(sigma, x))
    # So what chains follow leads to the point.
    torch.testing.assert_close(model.mean(given.noisy, SIGMA), torch.zeros_like(given.x0), rtol=0, atol=1e-6)
    assert float(model.loss(given)) == pytest.approx(0, abs=1e-12)
    as_denoiser(model, lambda x, sigma: torch.zeros_like(x))
    assert float(model.loss(given)) == pytest.approx(0.5 * float(given.noise.square().mean()), rel=1e-6)


def test_plain_dae_loss_is_equation_1(generator: torch.Generator) -> None:
    given, model = batch(torch.zeros(4, 1, 16, 16), generator), PlainDAE(CONFIG)
    as_denoiser(model, lambda x, sigma: x)
    assert float(model.loss(given)) == pytest.approx(float((given.noisy**2).mean()), rel=1e-6)
    assert model.config.network.precondition == "none"


def test_mdsm_loss_is_its_formula(generator: torch.Generator) -> None:
    """x - s0^2 grad E is the denoised image: for E = |x|^2 / (2 v), the factor c = 1 - s0^2 / v of x."""
    given = batch(torch.randn(4, 1, 16, 16, generator=generator), generator)
    model = MDSM(CONFIG)

    def loss(c: float) -> float:
        curvature = (1 - c) / model.smoothing**2
        model.energy.forward = lambda x: 0.5 * curvature * x.square().flatten(1).sum(1)  # type: ignore[method-assign]
        return model.loss(replace(given, generator=torch.Generator().manual_seed(3))).item()

    sigma = 0.1 + 2.3 * torch.rand(4, generator=torch.Generator().manual_seed(3))
    noisy = given.x0 + append_dims(sigma, given.x0) * given.noise
    expected = ((0.7 * noisy - given.x0) / append_dims(sigma, noisy)).square().mean()
    assert loss(0.7) == pytest.approx(float(expected), rel=1e-4)


def test_last_layer_of_mdsm_is_quadratic_in_all_features(generator: torch.Generator) -> None:
    energy = ScalarEnergy(CONFIG, quadratic=True)
    randomise(energy)
    features = CONFIG.network.widths[-1] * (CONFIG.network.image_size // 2 ** (len(CONFIG.network.widths) - 1)) ** 2
    x = torch.randn(3, 1, 16, 16, generator=generator)
    seen: list[Tensor] = []
    energy.encoder.register_forward_hook(lambda module, given, output: seen.append(output[0]))
    value = energy(x)
    (c,) = seen
    assert c.shape == (3, features)
    first, second, square = (layer.weight[0] for layer in (energy.first, energy.second, energy.square))
    biases = [layer.bias[0] for layer in (energy.first, energy.second, energy.square)]
    expected = (c @ first + biases[0]) * (c @ second + biases[1]) + c.square() @ square + biases[2]
    torch.testing.assert_close(value, expected)


def test_igebm_step_is_the_published_one(generator: torch.Generator) -> None:
    """For images in [0, 1]: noise of 0.005, then a step of 10 along the gradient clipped to 0.01."""
    model = IGEBM(CONFIG)
    slope = 0.02 * torch.randn(1, 16, 16, generator=generator)
    model.energy.forward = lambda x: (slope * x).flatten(1).sum(1)  # type: ignore[method-assign]
    x = 2 * torch.rand(2, 1, 16, 16, generator=generator) - 1
    found = model.chain(x, 2, torch.Generator().manual_seed(7))
    noise, y = torch.Generator().manual_seed(7), (x + 1) / 2
    for _ in range(2):
        y = y + 0.005 * torch.randn(y.shape, generator=noise)
        y = (y - 10 * (2 * slope).clamp(-0.01, 0.01)).clamp(0, 1)
    torch.testing.assert_close(found, 2 * y - 1)


def test_igebm_goes_on_with_the_chains_that_training_visited_last() -> None:
    trained = IGEBM(CONFIG)
    model = AveragedWeights(trained, 0.9).module
    trained.buffer = torch.arange(6.0)[:, None, None, None].expand(6, 1, 16, 16) / 10
    trained.visited = torch.tensor([3, 1, 5, 2, 5, 4])
    model.take_chains(trained)
    model.chain = lambda x, steps, generator: x  # type: ignore[method-assign]
    drawn = torch.cat([model.draw(num, torch.Generator()) for num in (4, 3)])[:, 0, 0, 0]
    torch.testing.assert_close(drawn, torch.tensor([2.0, 4.0, 5.0, 0.0, 3.0, 1.0, 2.0]) / 10)
