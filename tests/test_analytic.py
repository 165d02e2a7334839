from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from analytic import Gaussian, GaussianMixture
from denoising_ebm.energies import Energy


def ring(tau: float = 0.3) -> GaussianMixture:
    angles = 2 * math.pi * torch.arange(8, dtype=torch.float64) / 8
    return GaussianMixture(2 * torch.stack([angles.cos(), angles.sin()], 1), tau)


def points(generator: torch.Generator, num: int = 50) -> Tensor:
    return 2 * torch.randn(num, 2, generator=generator, dtype=torch.float64)


def test_gaussian_energy_is_its_log_density(generator: torch.Generator) -> None:
    x = points(generator)
    model = Gaussian(tau=0.7, mean=0.4)
    density = torch.distributions.Normal(x.new_tensor(0.4), x.new_tensor(0.7**2 + 0.5**2).sqrt())
    expected = -density.log_prob(x).sum(1)
    difference = model.energy(x, 0.5) - expected
    torch.testing.assert_close(difference, difference[:1].expand(len(x)))


@pytest.mark.parametrize("model", [Gaussian(0.7, mean=0.4), ring()], ids=["gaussian", "mixture"])
def test_tweedie(model: Gaussian | GaussianMixture, generator: torch.Generator) -> None:
    x = points(generator)
    sigma = torch.rand(len(x), generator=generator, dtype=torch.float64) + 0.1
    gradient = Energy(model.energy).gradient(x, sigma)[1]
    torch.testing.assert_close(model.denoise(x, sigma), x - sigma[:, None] ** 2 * gradient)


def test_mixture_against_torch_distributions(generator: torch.Generator) -> None:
    x, model, sigma = points(generator), ring(), 0.4
    scale = torch.full_like(model.means, math.sqrt(model.tau**2 + sigma**2))
    components = torch.distributions.Independent(torch.distributions.Normal(model.means, scale), 1)
    reference = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(8).double()), components
    )
    difference = model.energy(x, sigma) + reference.log_prob(x)
    # The constant is that of the density: log(2 pi) in two dimensions, and log 8 for the equal weights.
    torch.testing.assert_close(difference, torch.full_like(difference, -math.log(2 * math.pi) - math.log(8)))


def test_mixture_far_away_is_finite() -> None:
    x = torch.tensor([[1e3, -1e3]])
    model = ring()
    energy, gradient = Energy(model.energy).gradient(x, 0.01)
    assert bool(energy.isfinite().all()) and bool(gradient.isfinite().all())
    assert bool(model.denoise(x, 0.01).isfinite().all())


def test_mixture_samples(generator: torch.Generator) -> None:
    model = ring(0.1)
    x = model.sample(8000, generator)
    nearest = torch.cdist(x.double(), model.means).argmin(1)
    counts = torch.bincount(nearest, minlength=8)
    assert bool(((counts - 1000).abs() < 5 * math.sqrt(8000 / 8 * 7 / 8)).all())
    spread = (x - model.means[nearest]).square().mean()
    assert float(spread) == pytest.approx(0.01, rel=5 * math.sqrt(2 / 16_000))


def test_best_denoising_loss(generator: torch.Generator) -> None:
    tau, sigma, num = 0.8, 0.6, 200_000
    x0 = tau * torch.randn(num, 1, generator=generator, dtype=torch.float64)
    x = x0 + sigma * torch.randn(num, 1, generator=generator, dtype=torch.float64)
    loss = float((Gaussian(tau).denoise(x, sigma) - x0).square().mean())
    expected = tau**2 * sigma**2 / (tau**2 + sigma**2)
    assert loss == pytest.approx(expected, rel=5 * math.sqrt(2 / num))


def test_tau_must_be_positive() -> None:
    with pytest.raises(ValueError, match="tau must be > 0"):
        Gaussian(0.0)
    with pytest.raises(ValueError, match="tau must be > 0"):
        GaussianMixture(torch.zeros(1, 2), -1.0)
