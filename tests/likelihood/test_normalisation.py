"""log Z of energies, and the density network, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from denoising_ebm.config import NetworkConfig, NoiseConfig
from denoising_ebm.likelihood.gaussian import GaussianFit
from denoising_ebm.likelihood.normalisation import gaussian_energy, normalise_levels
from denoising_ebm.networks.density import DensityNetwork
from denoising_ebm.noise import append_dims, geometric_sigmas

NETWORK = NetworkConfig(image_size=16, channels=1, widths=(8, 16), attention=(), latent_dim=4, decoder_widths=(8,))
NOISE = NoiseConfig(sigma_min=0.05, sigma_max=4.0, num_sigmas=24)


class Wiener(nn.Module):
    """The best denoiser of N(0, v I), in the form of `DenoisingAutoencoder`."""

    def __init__(self, variance: float) -> None:
        super().__init__()
        self.variance = variance

    def forward(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, None]:
        return x * self.variance / (self.variance + append_dims(sigma, x) ** 2), None


def wiener_network(variance: float) -> DensityNetwork:
    network = DensityNetwork(NETWORK, NOISE).double()
    network.dae = Wiener(variance)  # type: ignore[assignment]
    return network


def gaussian_log_z(variance: float, sigma: Tensor) -> Tensor:
    return 0.5 * 256 * (2 * math.pi * (variance + sigma.double() ** 2)).log()


def test_gaussian_energy_is_that_of_mean_and_covariance(generator: torch.Generator) -> None:
    images = torch.randn(9, 1, 2, 3, generator=generator, dtype=torch.float64)
    x = torch.randn(4, 1, 2, 3, generator=generator, dtype=torch.float64)
    flat = images.flatten(1)
    sigma = torch.tensor([0.1, 0.2, 0.5, 3.0], dtype=torch.float64)
    for i, found in enumerate(gaussian_energy(x, images, sigma)):
        covariance = flat.T.cov() + sigma[i] ** 2 * torch.eye(6)
        expected = torch.distributions.MultivariateNormal(flat.mean(0), covariance).log_prob(x[i].flatten())
        torch.testing.assert_close(found, -expected)


def test_numbers_added_at_each_level_come_back(generator: torch.Generator) -> None:
    """Of exact energies; left is the error of the draws, and of steps of finite length."""
    images = torch.randn(4000, 6, generator=generator, dtype=torch.float64) * torch.linspace(0.1, 1, 6)
    fit, levels = GaussianFit.of(images), geometric_sigmas(5.0, 0.05, 64)
    added = 10 * torch.randn(64, generator=generator, dtype=torch.float64)

    def energy(x: Tensor, sigma: Tensor) -> Tensor:
        place = (levels.double() - sigma[0].double()).abs().argmin()
        return fit.energy(x, sigma) - added[place]

    found = normalise_levels(energy, images, levels, images_per_level=2000)
    errors = found.log_z - added
    assert float(errors[0].abs()) < 1e-5  # the levels are float32
    assert float((errors[1:] / found.standard_error[1:]).abs().max()) < 5
    assert float(errors.abs().max()) < 0.02 * 6


def test_standard_error_is_the_spread_of_repetitions(generator: torch.Generator) -> None:
    images = torch.randn(500, 6, generator=generator, dtype=torch.float64)
    fit, levels = GaussianFit.of(images), geometric_sigmas(5.0, 0.05, 8)
    runs = [normalise_levels(fit.energy, images, levels, images_per_level=16, seed=seed) for seed in range(100)]
    spread = torch.stack([run.log_z[-1] for run in runs]).std()
    promised = torch.stack([run.standard_error[-1] for run in runs]).square().mean().sqrt()
    assert float(promised / spread) == pytest.approx(1, rel=0.3)


def test_normalising_needs_images() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        normalise_levels(lambda x, sigma: x.sum(1), torch.empty(0, 2), torch.tensor([2.0, 1.0]))


def test_density_network_of_gaussian_data_is_exact(generator: torch.Generator) -> None:
    network = wiener_network(0.3)
    network.set_log_z(gaussian_log_z(0.3, network.levels))
    assert network.is_normalised
    x = torch.randn(5, 1, 16, 16, generator=generator, dtype=torch.float64)
    sigma = network.levels[[0, 5, 11, 20, 23]].double()
    expected = torch.distributions.Normal(x.new_tensor(0.0), append_dims((0.3 + sigma**2).sqrt(), x)).log_prob(x)
    found = network(x, sigma) + network.log_normaliser(sigma)
    torch.testing.assert_close(found, -expected.sum((1, 2, 3)), rtol=0, atol=1e-3)  # float32 levels and log Z


def test_log_normaliser_between_levels() -> None:
    """It is kept less that of a Gaussian of sigma_data, for which it is exact between the levels as well."""
    network = wiener_network(0.25)
    sigma = torch.tensor([0.05, 0.0512, 0.3, 1.234, 4.0], dtype=torch.float64)
    assert not network.is_normalised and network.log_normaliser(sigma).isnan().all()
    network.set_log_z(gaussian_log_z(0.25, network.levels))
    torch.testing.assert_close(network.log_normaliser(sigma), gaussian_log_z(0.25, sigma), rtol=0, atol=2e-3)
    # For others it is linear in log sigma.
    network.set_log_z(gaussian_log_z(0.25, network.levels) + torch.arange(24))
    low, high = math.log(0.05), math.log(4.0)
    place = (high - sigma.log()) / (high - low) * 23
    torch.testing.assert_close(network.log_normaliser(sigma) - gaussian_log_z(0.25, sigma), place, rtol=0, atol=2e-3)


def test_normalising_a_density_network(generator: torch.Generator) -> None:
    network, images = wiener_network(0.3), 0.3**0.5 * torch.randn(1000, 1, 16, 16, generator=generator).double()
    found = normalise_levels(network, images, network.levels, images_per_level=200)
    exact = gaussian_log_z(0.3, network.levels)
    # The covariance of 1,000 images is known at sigma_max to one part in some hundred.
    assert float((found.log_z - exact).abs().max()) / 256 < 0.01 * math.log(2)


def test_all_images_take_part_equally_often() -> None:
    """By an energy that tells images apart, not their noise."""
    images = 10 * torch.arange(16, dtype=torch.float64)[:, None]
    levels = geometric_sigmas(0.2, 0.1, 9)
    energy = lambda x, sigma: (x / 10).round().square().sum(1) * sigma.log()  # noqa: E731
    for seed in range(3):
        found = normalise_levels(energy, images, levels, images_per_level=4, seed=seed)
        step = math.log(2) / 8
        means = found.log_z.diff() / step
        # The first level, which stands for the Gaussian, and three steps take a round of all; the next four another.
        assert len({round(float(mean), 6) for mean in means}) > 4
        torch.testing.assert_close(means[3:7].mean(), images.div(10).square().mean(), rtol=1e-4, atol=0)
