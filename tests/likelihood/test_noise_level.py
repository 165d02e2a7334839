r"""Noise levels by the smallest energy, against N(0, tau^2 I), whose best sigma is sqrt(|x|^2 / d - tau^2)."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from denoising_ebm.config import EnergyConfig
from denoising_ebm.likelihood.noise_level import estimate_noise
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.training.calibration import normalise
from support import random_pixels, randomise, tiny_config

DIM, TAU = 400, 0.1


def energy(x: Tensor, sigma: Tensor) -> Tensor:
    variance = TAU**2 + sigma**2
    return x.square().sum(1) / (2 * variance) + DIM / 2 * (2 * math.pi * variance).log()


def data(sigma: float, num: int, generator: torch.Generator) -> Tensor:
    return math.sqrt(TAU**2 + sigma**2) * torch.randn(num, DIM, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("sigma", [0.1, 0.33, 1.0, 2.9])
def test_estimates_are_the_closed_form(sigma: float, generator: torch.Generator) -> None:
    x = data(sigma, 50, generator)
    found = estimate_noise(energy, x, 0.01, 10.0)
    expected = (x.square().mean(1) - TAU**2).sqrt()
    torch.testing.assert_close(found.sigma, expected, rtol=0.005, atol=0)


@pytest.mark.parametrize("num_levels", [3, 9, 40])
def test_the_grid_hardly_matters(num_levels: int, generator: torch.Generator) -> None:
    x = data(0.5, 20, generator)
    expected = (x.square().mean(1) - TAU**2).sqrt()
    found = estimate_noise(energy, x, 0.2, 1.5, num_levels=num_levels)
    torch.testing.assert_close(found.sigma, expected, rtol=0.005 if num_levels > 3 else 0.05, atol=0)


def test_standard_errors_are_the_spread_and_the_information(generator: torch.Generator) -> None:
    sigma = 0.3
    found = estimate_noise(energy, data(sigma, 2000, generator), 0.01, 10.0)
    # Fisher's information of sigma in N(0, (tau^2 + sigma^2) I).
    information = 2 * DIM * sigma**2 / (TAU**2 + sigma**2) ** 2
    assert float(found.standard_error.mean()) == pytest.approx(information**-0.5, rel=0.02)
    assert float((found.sigma - sigma).std()) == pytest.approx(information**-0.5, rel=0.1)


def test_levels_beyond_the_grid_are_its_ends(generator: torch.Generator) -> None:
    """A clean image has the least noise there is; no energy is asked for outside of the levels."""
    asked: list[float] = []

    def seen(x: Tensor, sigma: Tensor) -> Tensor:
        asked.extend(sigma.tolist())
        return energy(x, sigma)

    x = torch.cat([0.5 * data(0, 1, generator), data(4.0, 1, generator), data(0.4, 1, generator)])
    found = estimate_noise(seen, x, 0.05, 1.0)
    torch.testing.assert_close(found.sigma[:2], torch.tensor([0.05, 1.0], dtype=torch.float64))
    assert found.standard_error.isnan().tolist() == [True, True, False]
    assert 0.05 * (1 - 1e-9) <= min(asked) and max(asked) <= 1 + 1e-9


def test_energies_compare_between_levels_only_with_log_z(generator: torch.Generator) -> None:
    """Which of four levels an image has: without log Z the largest always has the smallest energy."""
    levels = torch.tensor([0.1, 0.2, 0.4, 0.8], dtype=torch.float64)
    x = torch.cat([data(float(sigma), 25, generator) for sigma in levels])
    complete = torch.stack([energy(x, sigma.expand(100)) for sigma in levels], dim=1)
    log_z = DIM / 2 * (2 * math.pi * (TAU**2 + levels**2)).log()
    assert torch.equal(complete.argmin(1), torch.arange(4).repeat_interleave(25))
    assert bool(((complete - log_z).argmin(1) == 3).all())


def test_images_do_not_depend_on_each_other(generator: torch.Generator) -> None:
    x = torch.cat([data(sigma, 1, generator) for sigma in (0.05, 0.4, 3.0)])
    alone = torch.cat([estimate_noise(energy, part, 0.01, 10.0).sigma for part in x.split(1)])
    torch.testing.assert_close(estimate_noise(energy, x, 0.01, 10.0).sigma, alone)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma_min": 0.0}, "need 0 < sigma_min < sigma_max, got 0 and 1"),
        ({"sigma_min": 1.0}, "got 1 and 1"),
        ({"num_levels": 2}, "num_levels must be >= 3, got 2"),
        ({"energy": lambda x, sigma: x.sum(1) * math.nan}, "must be finite"),
    ],
)
def test_bad_input_is_refused(options: dict[str, object], message: str) -> None:
    settings: dict[str, object] = {"energy": energy, "x": torch.zeros(1, DIM), "sigma_min": 0.1, "sigma_max": 1.0}
    with pytest.raises(ValueError, match=message):
        estimate_noise(**settings | options)  # type: ignore[arg-type]


def test_noise_level_of_a_model() -> None:
    """It is that of the smallest of many energies, whatever the batch."""
    model = DenoisingEBM(replace(tiny_config(), energy=EnergyConfig(inner_noise=False, density=True)))
    randomise(model)
    x = random_pixels(3) / 127.5 - 1 + 0.3 * torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="not normalised"):
        model.noise_level(x)
    normalise(model, random_pixels(20) / 127.5 - 1, images_per_level=4)
    found = model.noise_level(x)
    low, high = found.sigma.new_tensor([model.config.noise.sigma_min, model.config.noise.sigma_max])
    assert bool((low <= found.sigma).all()) and bool((found.sigma <= high).all())
    torch.testing.assert_close(model.noise_level(x, batch_size=2).sigma, found.sigma)
    levels = torch.exp(torch.linspace(float(low.log()), float(high.log()), 200))
    with torch.no_grad():
        least = torch.stack([model.density_energy(x, float(level)) for level in levels]).amin(0)
        reached = model.density_energy(x, found.sigma.float())
    assert bool((reached <= least + 0.1 * least.abs().clamp_min(1)).all())
