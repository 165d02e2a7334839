"""The integral over noise levels against densities that are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from analytic import GaussianMixture
from denoising_ebm.likelihood.gaussian import GaussianFit
from denoising_ebm.likelihood.immse import Quadrature, expected_negative_log_density, negative_log_density
from denoising_ebm.noise import append_dims, expand_sigma

#: Of .01 bits per dimension, in nats per dimension.
HUNDREDTH_BIT = 0.01 * math.log(2)


class Anisotropic:
    """Data N(m, R diag(v) R^T) of d dimensions, v from .001 to 1, seen with noise."""

    def __init__(self, dim: int = 12) -> None:
        generator = torch.Generator().manual_seed(1)
        square = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
        self.fit = GaussianFit(
            0.3 * torch.randn(dim, generator=generator, dtype=torch.float64),
            torch.logspace(-3, 0, dim, dtype=torch.float64),
            torch.linalg.qr(square)[0],
        )

    def sample(self, num: int, generator: torch.Generator) -> Tensor:
        noise = torch.randn(num, len(self.fit.mean), generator=generator, dtype=torch.float64)
        return self.fit.mean + (noise * self.fit.variances.sqrt()) @ self.fit.directions

    def denoise(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        variance = append_dims(expand_sigma(sigma, x), x) ** 2
        shrunk = (x - self.fit.mean) @ self.fit.directions.T * self.fit.variances / (self.fit.variances + variance)
        return self.fit.mean + shrunk @ self.fit.directions

    def covariance(self, sigma: float) -> Tensor:
        directions = self.fit.directions
        return directions.T @ torch.diag(self.fit.variances) @ directions + sigma**2 * torch.eye(len(directions))


def noisy(x: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    return x + sigma * torch.randn(x.shape, generator=generator, dtype=x.dtype)


def mixture() -> GaussianMixture:
    """Three modes in four dimensions, apart by some tau."""
    means = torch.tensor([[0.8, 0.2, -0.5, 0.0], [-0.6, 0.4, 0.1, 0.3], [0.0, -0.8, 0.4, -0.6]], dtype=torch.float64)
    return GaussianMixture(means, tau=0.15)


def mixture_energy(x: Tensor, sigma: float) -> Tensor:
    """-log q_sigma of `mixture`, by torch's own densities."""
    means = mixture().means
    spread = torch.full_like(means, math.hypot(0.15, sigma))
    components = torch.distributions.Independent(torch.distributions.Normal(means, spread), 1)
    weights = torch.distributions.Categorical(torch.ones(len(means), dtype=x.dtype))
    return -torch.distributions.MixtureSameFamily(weights, components).log_prob(x)


def test_gaussian_fit_is_the_density_of_torch(generator: torch.Generator) -> None:
    data = Anisotropic()
    x = 2 * data.sample(20, generator)
    expected = torch.distributions.MultivariateNormal(data.fit.mean, data.covariance(0.4)).log_prob(x)
    torch.testing.assert_close(data.fit.energy(x, 0.4), -expected)


def test_gaussian_fit_of_few_images_has_the_noise_alone_across_them(generator: torch.Generator) -> None:
    images = Anisotropic().sample(5, generator)
    covariance = images.T.cov() + 0.5**2 * torch.eye(12)
    x = torch.randn(7, 12, generator=generator, dtype=torch.float64)
    expected = torch.distributions.MultivariateNormal(images.mean(0), covariance).log_prob(x)
    torch.testing.assert_close(GaussianFit.of(images).energy(x, 0.5), -expected)


def test_jitter_is_the_mean_over_noise(generator: torch.Generator) -> None:
    fit = GaussianFit.of(Anisotropic().sample(5, generator))  # with directions across
    x = torch.zeros(1, 12, dtype=torch.float64)
    values = fit.energy(noisy(x.expand(20_000, -1), 0.6, generator), 0.5)
    assert abs(float(values.mean() - fit.energy(x, 0.5, jitter=0.6))) < 4 * float(values.std()) / 20_000**0.5


def test_is_exact_for_the_gaussian_whose_integral_is_known(generator: torch.Generator) -> None:
    """The control variate is then the integrand itself: no error at all, from any draw."""
    x = torch.randn(9, 6, generator=generator, dtype=torch.float64)
    denoise = lambda y, sigma: y * 0.25 / (0.25 + append_dims(sigma, y) ** 2)  # noqa: E731
    expected = torch.distributions.Normal(0.0, math.hypot(0.5, 0.1)).log_prob(x).sum(1)
    found = negative_log_density(denoise, x, 0.1, 3.0, quadrature=Quadrature(2, 2), generator=generator)
    torch.testing.assert_close(found.value, -expected)
    assert float(found.standard_error.max()) < 1e-9


@pytest.mark.parametrize("sigma", [0.02, 0.3, 2.0])
def test_anisotropic_gaussian(sigma: float, generator: torch.Generator) -> None:
    data = Anisotropic()
    x = noisy(data.sample(40, generator), sigma, generator)
    x[:10] *= 2  # the identity holds at every point
    expected = -torch.distributions.MultivariateNormal(data.fit.mean, data.covariance(sigma)).log_prob(x)
    found = negative_log_density(
        data.denoise, x, sigma, 2.0, quadrature=Quadrature(200, 4), anchor=data.fit, generator=generator
    )
    errors = (found.value - expected) / found.standard_error.clamp_min(1e-9)
    assert float(errors.abs().max()) < 5
    assert abs(float((found.value - expected).mean())) / 12 < HUNDREDTH_BIT
    if sigma == 2.0:  # nothing is left to integrate
        torch.testing.assert_close(found.value, expected)


@pytest.mark.parametrize("sigma", [0.02, 0.3])
def test_mixture(sigma: float, generator: torch.Generator) -> None:
    data = mixture()
    x = noisy(data.sample(40, generator).double(), sigma, generator)
    # 60 times the spread of the data: what the anchor costs is below the tolerance.
    found = negative_log_density(data.denoise, x, sigma, 30.0, quadrature=Quadrature(400, 4), generator=generator)
    errors = found.value - mixture_energy(x, sigma)
    assert float((errors / found.standard_error).abs().max()) < 5
    assert abs(float(errors.mean())) / 4 < HUNDREDTH_BIT


@pytest.mark.parametrize("sigma", [0.02, 0.3])
def test_mean_over_noise_at_clean_points(sigma: float, generator: torch.Generator) -> None:
    data = mixture()
    x = data.sample(150, generator).double()
    found = expected_negative_log_density(
        data.denoise, x, sigma, 30.0, quadrature=Quadrature(400, 4), generator=generator
    )
    draws = mixture_energy(noisy(x.repeat(500, 1), sigma, generator), sigma).reshape(500, -1)
    error = (found.standard_error.square() + draws.var(0) / 500).sqrt()
    assert float(((found.value - draws.mean(0)) / error).abs().max()) < 5
    assert abs(float((found.value - draws.mean(0)).mean())) / 4 < HUNDREDTH_BIT


def test_standard_error_is_the_spread_of_repetitions(generator: torch.Generator) -> None:
    data = mixture()
    x = noisy(data.sample(1, generator).double(), 0.1, generator).expand(400, -1)
    found = negative_log_density(data.denoise, x, 0.1, 30.0, quadrature=Quadrature(16, 2), generator=generator)
    spread, promised = float(found.value.std()), float(found.standard_error.square().mean().sqrt())
    assert promised == pytest.approx(spread, rel=0.2)  # 400 draws: the spread is known to 3.5 %


def test_one_draw_has_no_standard_error(generator: torch.Generator) -> None:
    data = mixture()
    found = negative_log_density(
        data.denoise, data.sample(2, generator).double(), 0.1, 3.0, quadrature=Quadrature(4, 1)
    )
    assert found.standard_error.isnan().all() and found.value.isfinite().all()


def test_float32_loses_nothing_at_small_levels(generator: torch.Generator) -> None:
    data = Anisotropic()
    x = noisy(data.sample(200, generator), 0.01, generator)
    single = lambda y, sigma: data.denoise(y.double(), sigma.double()).float()  # noqa: E731
    found = negative_log_density(single, x.float(), 0.01, 3.0, anchor=data.fit, generator=generator)
    expected = data.fit.energy(x, 0.01)
    error = float(found.standard_error.square().sum().sqrt()) / 200
    assert abs(float((found.value - expected).mean())) < 4 * error


@pytest.mark.parametrize("sigma", [0.0, -1.0, 5.0])
def test_levels_out_of_range_are_refused(sigma: float) -> None:
    with pytest.raises(ValueError, match="sigma must be within 0 to sigma_max"):
        negative_log_density(mixture().denoise, torch.zeros(1, 4), sigma, 3.0)


def test_settings_out_of_range_are_refused() -> None:
    for settings in ({"num_levels": 0}, {"draws": 0}, {"sigma_data": 0.0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            Quadrature(**settings)  # type: ignore[arg-type]
