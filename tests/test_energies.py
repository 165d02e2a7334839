r"""Eq. 7, 8 and 21 against closed forms, autograd and finite differences.

For data N(0, tau^2 I) the best denoiser is r(x) = a x, a = tau^2 / (tau^2 + sigma^2), and averaged over its noise
U^c(x, sigma) = (1 - a)^2 |x|^2 / 2 sigma^2 + a^2 d / 2.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from analytic import Gaussian
from denoising_ebm.config import EnergyConfig, TrainingStage
from denoising_ebm.energies import (
    Energy,
    SemanticEnergy,
    TextureEnergy,
    as_energy,
    semantic_energy,
    texture_energy,
    texture_energy_map,
    texture_residual,
)
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.networks.precondition import DenoisingAutoencoder
from support import TINY_NETWORK, tiny_config

TAU, SIGMA = 0.8, 0.5
A = TAU**2 / (TAU**2 + SIGMA**2)
DATA = Gaussian(TAU)


def images(generator: torch.Generator, num: int = 4, channels: int = 1, size: int = 4) -> Tensor:
    return TAU * torch.randn(num, channels, size, size, generator=generator, dtype=torch.float64)


# -- Gaussian data: closed forms ------------------------------------------------------------------------------------


def test_energy_averages_to_the_closed_form(generator: torch.Generator) -> None:
    x, draws = images(generator), 20_000
    noise = torch.randn(draws, *x.shape, generator=generator, dtype=torch.float64)
    residual = ((1 - A) * x - A * SIGMA * noise) / SIGMA
    energies = 0.5 * residual.square().flatten(2).sum(2)  # the same energies, draw by draw, for their standard error
    error = energies.std(0) / math.sqrt(draws)
    chunks = [texture_energy(DATA.denoise, x, SIGMA, part) for part in noise.split(500)]
    measured = torch.stack(chunks).mean(0)
    torch.testing.assert_close(measured, energies.mean(0))
    assert bool(((measured - DATA.texture_energy(x, SIGMA)).abs() < 4.5 * error).all())


def test_energy_map_averages_to_the_closed_form(generator: torch.Generator) -> None:
    x, draws = images(generator, num=2, channels=3), 4000
    noise = torch.randn(draws, *x.shape, generator=generator, dtype=torch.float64)
    measured = texture_energy_map(DATA.denoise, x, SIGMA, noise)
    expected = ((1 - A) ** 2 * x.square() / (2 * SIGMA**2) + A**2 / 2).sum(1)
    # Per channel u = (m + A e)^2 / 2 with m = (1 - A) x / sigma has variance A^2 m^2 + A^4 / 2.
    m = (1 - A) * x / SIGMA
    error = ((A**2 * m**2 + A**4 / 2).sum(1) / draws).sqrt()
    assert bool(((measured - expected).abs() < 5 * error).all())


def test_energy_without_noise_is_exact(generator: torch.Generator) -> None:
    x = images(generator)
    expected = (1 - A) ** 2 * x.square().flatten(1).sum(1) / (2 * SIGMA**2)
    torch.testing.assert_close(texture_energy(DATA.denoise, x, SIGMA), expected)
    value, gradient = TextureEnergy(DATA.denoise, inner_noise=False).gradient(x, SIGMA)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, (1 - A) ** 2 * x / SIGMA**2)


def test_gradient_averages_to_the_closed_form(generator: torch.Generator) -> None:
    x, draws = images(generator), 4000
    energy = TextureEnergy(DATA.denoise, inner_noise=True)
    gradients = torch.stack([energy.resample_noise(x, generator).gradient(x, SIGMA)[1] for _ in range(draws)])
    error = (1 - A) * A / SIGMA / math.sqrt(draws)  # each is (1-a) ((1-a) x - a sigma e) / sigma^2
    assert bool(((gradients.mean(0) - (1 - A) ** 2 * x / SIGMA**2).abs() < 5 * error).all())
    assert float(gradients.std(0).mean()) == pytest.approx((1 - A) * A / SIGMA, rel=0.02)


def test_untrained_network_is_the_gaussian_denoiser(generator: torch.Generator) -> None:
    """Preconditioning with sigma_data = tau makes F = 0 optimal, and F = 0 is where weights start."""
    x = images(generator, size=16)
    sigma = torch.tensor([0.05, 0.3, 1.0, 4.0], dtype=torch.float64)
    dae = DenoisingAutoencoder(replace(TINY_NETWORK, sigma_data=TAU)).double()
    with torch.no_grad():
        torch.testing.assert_close(dae(x, sigma)[0], DATA.denoise(x, sigma))
    energy_dae = DenoisingAutoencoder(replace(TINY_NETWORK, sigma_data=TAU, precondition="energy")).double()
    energy = TextureEnergy(lambda y, s: energy_dae(y, s)[0], inner_noise=False)
    value, gradient = energy.gradient(x, sigma)
    torch.testing.assert_close(value, DATA.energy(x, sigma))
    torch.testing.assert_close(x - sigma[:, None, None, None] ** 2 * gradient, DATA.denoise(x, sigma))


@pytest.mark.parametrize("by_gradient", [False, True])
def test_model_denoises_by_output_or_gradient(by_gradient: bool, generator: torch.Generator) -> None:
    config = tiny_config()
    network = replace(config.network, sigma_data=TAU, precondition="energy" if by_gradient else "edm")
    energy = EnergyConfig(inner_noise=False, denoiser="gradient" if by_gradient else "output")
    stages = (TrainingStage("score" if by_gradient else "denoising"),)
    model = DenoisingEBM(replace(config, network=network, energy=energy, stages=stages))
    x = images(generator, size=16).float()
    torch.testing.assert_close(model.denoise(x, SIGMA), DATA.denoise(x, SIGMA), atol=1e-5, rtol=1e-5)
    expected = DATA.energy(x, SIGMA) if by_gradient else (1 - A) ** 2 * x.square().flatten(1).sum(1) / (2 * SIGMA**2)
    torch.testing.assert_close(model.energy(x, SIGMA).detach(), expected, atol=1e-4, rtol=1e-5)


# -- eq. 21 on a real network ---------------------------------------------------------------------------------------


def test_eq_21_is_the_exact_gradient(tiny_dae: DenoisingAutoencoder, generator: torch.Generator) -> None:
    x = images(generator, num=2, size=16)
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    sigma = torch.tensor([0.2, 0.7], dtype=torch.float64)
    spread = sigma[:, None, None, None]

    def reconstruct(y: Tensor, level: Tensor) -> Tensor:
        return tiny_dae(y, level)[0]

    energy = TextureEnergy(reconstruct, inner_noise=True, noise=noise)
    value, gradient = energy.gradient(x, sigma)

    # (I - J^T)(x - r) / sigma^2 with J from r alone.
    noisy = (x + spread * noise).requires_grad_(True)
    r = reconstruct(noisy, sigma)
    residual = (x - r.detach()) / spread**2
    (pulled,) = torch.autograd.grad(r, noisy, residual)
    torch.testing.assert_close(gradient, residual - pulled)
    torch.testing.assert_close(value, 0.5 * ((x - r.detach()) / spread).square().flatten(1).sum(1))

    # The first term alone.
    first = TextureEnergy(reconstruct, inner_noise=True, drift="denoiser", noise=noise)
    first_value, drift = first.gradient(x, sigma)
    torch.testing.assert_close(drift, residual)
    torch.testing.assert_close(first_value, value)
    assert float((drift - gradient).norm() / gradient.norm()) > 0.01  # the second term is not nothing

    # Central differences along random directions, error of order step^2.
    for _ in range(3):
        along = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        step = 1e-5
        with torch.no_grad():
            slope = (energy(x + step * along, sigma) - energy(x - step * along, sigma)) / (2 * step)
        torch.testing.assert_close(slope, (gradient * along).flatten(1).sum(1), rtol=1e-6, atol=1e-6)


def test_gradients_leave_the_network_alone(tiny_dae: DenoisingAutoencoder, generator: torch.Generator) -> None:
    x = images(generator, num=2, size=16)
    TextureEnergy(lambda y, s: tiny_dae(y, s)[0], inner_noise=False).gradient(x, 0.5)
    assert all(parameter.grad is None for parameter in tiny_dae.parameters())
    assert not x.requires_grad


def test_map_sums_to_the_energy(tiny_dae: DenoisingAutoencoder, generator: torch.Generator) -> None:
    x = images(generator, num=3, size=16)
    noise = torch.randn(2, *x.shape, generator=generator, dtype=torch.float64)

    def reconstruct(y: Tensor, level: Tensor) -> Tensor:
        return tiny_dae(y, level)[0].detach()

    for draw in (None, noise[0], noise):
        heat = texture_energy_map(reconstruct, x, 0.3, draw)
        assert heat.shape == (3, 16, 16)
        torch.testing.assert_close(heat.sum((1, 2)), texture_energy(reconstruct, x, 0.3, draw))
    single = [texture_energy_map(reconstruct, x, 0.3, draw) for draw in noise]
    torch.testing.assert_close(texture_energy_map(reconstruct, x, 0.3, noise), (single[0] + single[1]) / 2)
    residual = texture_residual(reconstruct, x, 0.3, noise[0])
    torch.testing.assert_close(0.5 * residual.square().sum(1), single[0])


def test_one_draw_is_shared_by_all_images(tiny_model: DenoisingEBM, generator: torch.Generator) -> None:
    """A score must depend on the image, not on its batch."""
    x = images(generator, num=3, size=16).float()
    noise = tiny_model.scoring_noise(num_samples=2, seed=5)
    assert torch.equal(noise, tiny_model.scoring_noise(num_samples=2, seed=5))
    with torch.no_grad():
        together = tiny_model.energy(x, 0.3, noise)
        alone = torch.cat([tiny_model.energy(x[i : i + 1], 0.3, noise) for i in (2, 0, 1)])
    torch.testing.assert_close(together, alone[[1, 2, 0]], rtol=1e-4, atol=1e-4)


# -- inner noise ----------------------------------------------------------------------------------------------------


def test_redraw_draws_anew_and_holds(generator: torch.Generator) -> None:
    x = images(generator)
    energy = TextureEnergy(DATA.denoise, inner_noise=True)
    torch.testing.assert_close(energy(x, SIGMA), texture_energy(DATA.denoise, x, SIGMA))  # no noise before the first
    first, second = energy.resample_noise(x, generator), energy.resample_noise(x, generator)
    assert torch.equal(first(x, SIGMA), first(x, SIGMA))
    assert torch.equal(first(x, SIGMA), first.gradient(x, SIGMA)[0])
    assert bool((first(x, SIGMA) != second(x, SIGMA)).all())
    again = energy.resample_noise(x, torch.Generator().manual_seed(1))(x, SIGMA)
    assert torch.equal(again, energy.resample_noise(x, torch.Generator().manual_seed(1))(x, SIGMA))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(again, texture_energy(DATA.denoise, x, SIGMA, noise))


def test_redraw_keeps_the_drift(generator: torch.Generator) -> None:
    x = images(generator)
    energy = TextureEnergy(DATA.denoise, inner_noise=True, drift="denoiser")
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drift = energy.resample_noise(x, torch.Generator().manual_seed(1)).gradient(x, SIGMA)[1]
    torch.testing.assert_close(drift, ((1 - A) * x - A * SIGMA * noise) / SIGMA**2)


def test_energy_without_inner_noise_redraws_itself(generator: torch.Generator) -> None:
    x = images(generator)
    energy = TextureEnergy(DATA.denoise, inner_noise=False)
    assert energy.resample_noise(x, generator) is energy
    plain = as_energy(DATA.energy)
    assert plain.resample_noise(x, generator) is plain and as_energy(plain) is plain
    assert plain.noise_scale(torch.tensor([0.3])).tolist() == pytest.approx([0.3])


# -- the semantic energy: h(z) = W z --------------------------------------------------------------------------------


@pytest.fixture
def weights(generator: torch.Generator) -> Tensor:
    return torch.randn(16, 5, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("prior", [0.0, 0.7])
def test_semantic_energy_of_linear_maps(prior: float, weights: Tensor, generator: torch.Generator) -> None:
    z = torch.randn(6, 5, generator=generator, dtype=torch.float64)

    def decode(codes: Tensor) -> Tensor:
        return (codes @ weights.mT).reshape(-1, 1, 4, 4)

    factor = (1 - A) ** 2 / SIGMA**2
    expected = factor * (z @ weights.mT).square().sum(1) / 2
    torch.testing.assert_close(semantic_energy(decode, DATA.denoise, z, SIGMA), expected)
    energy: Energy = SemanticEnergy(decode, DATA.denoise, inner_noise=False, prior=prior)
    value, gradient = energy.gradient(z, SIGMA)
    torch.testing.assert_close(value, expected + prior * z.square().sum(1) / 2)
    torch.testing.assert_close(gradient, factor * z @ weights.mT @ weights + prior * z)


def test_semantic_noise_has_the_shape_of_images(weights: Tensor, generator: torch.Generator) -> None:
    z = torch.randn(6, 5, generator=generator, dtype=torch.float64)

    def decode(codes: Tensor) -> Tensor:
        return (codes @ weights.mT).reshape(-1, 1, 4, 4)

    energy = SemanticEnergy(decode, DATA.denoise, inner_noise=True, prior=0.3, jacobian_norm=4.0)
    held = energy.resample_noise(z, torch.Generator().manual_seed(2))
    noise = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = texture_energy(DATA.denoise, decode(z), SIGMA, noise) + 0.15 * z.square().sum(1)
    torch.testing.assert_close(held(z, SIGMA), expected)
    assert held.noise_scale(torch.tensor(1.0)) == energy.noise_scale(torch.tensor(1.0))


def test_steps_in_z_are_measured_in_the_image() -> None:
    energy = SemanticEnergy(lambda z: z, DATA.denoise, inner_noise=False, jacobian_norm=4.0)
    sigma = torch.tensor([0.2, 2.0, 40.0])
    assert energy.noise_scale(sigma).tolist() == pytest.approx([0.05, 0.5, 1.0])
