"""Bits per dimension of discrete images, against probabilities that are known."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from denoising_ebm.likelihood.discrete import bound_bits, decoding_cost, energy_bits, integral_bits
from denoising_ebm.likelihood.gaussian import GaussianFit
from denoising_ebm.likelihood.immse import Quadrature
from denoising_ebm.noise import append_dims


class FourLevels:
    """Images of three pixels with four grey levels, of 64 probabilities that are all different."""

    def __init__(self) -> None:
        levels = torch.tensor([-1, -1 / 3, 1 / 3, 1], dtype=torch.float64)
        self.images = torch.stack([torch.stack(each) for each in itertools.product(levels, repeat=3)])
        weights = torch.randn(64, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        self.log_p = (2 * weights).log_softmax(0)
        self.entropy = -float((self.log_p.exp() * self.log_p).sum()) / (3 * math.log(2))  # bits per dimension

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        squared = (x[:, None] - self.images).square().sum(2)
        weights = (self.log_p - squared / (2 * append_dims(sigma, x) ** 2)).softmax(1)
        return weights @ self.images

    def mean(self, values: Tensor) -> float:
        return float((self.log_p.exp() * values).sum())


@pytest.mark.parametrize("centre", [-1.3, -0.999, 0.0, 0.0041, 0.7, 1.5])
@pytest.mark.parametrize("sigma", [0.001, 0.01, 0.3])
def test_decoder_is_a_distribution(centre: float, sigma: float) -> None:
    levels = -1 + 2 * torch.arange(256, dtype=torch.float64)[:, None] / 255
    cost = decoding_cost(levels, torch.full_like(levels, centre), sigma)
    assert cost.isfinite().all()
    assert float((-cost).exp().sum()) == pytest.approx(1, abs=1e-9)


def test_decoder_costs_nothing_where_the_image_is_known() -> None:
    images = -1 + 2 * torch.arange(256, dtype=torch.float64).reshape(1, -1) / 255
    assert float(decoding_cost(images, images, 1e-4)) == pytest.approx(0, abs=1e-9)
    # ... and by the narrowest of eight widths, an eighth of sigma, where sigma is 4 half steps: erf(2 / sqrt 2) each.
    expected = -254 * math.log(math.erf(2 / 2**0.5)) - 2 * math.log((1 + math.erf(2 / 2**0.5)) / 2) + math.log(8)
    assert float(decoding_cost(images, images, 4 / 255)) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("sigma", [0.05, 0.3, 0.6])
def test_bound_is_above_the_entropy(sigma: float, generator: torch.Generator) -> None:
    data = FourLevels()
    how = {"quadrature": Quadrature(200, 8), "generator": generator, "num_steps": 3}
    found = bound_bits(data.denoise, data.images, sigma, 20.0, **how)  # type: ignore[arg-type]
    error = data.mean(found.standard_error.square() * data.log_p.exp()) ** 0.5
    gap = data.mean(found.value) - data.entropy
    assert gap > -4 * error
    # The smaller the noise, the less the decoder loses by taking pixels for independent: at .05 nothing.
    assert abs(gap) < 4 * error + 0.005 if sigma == 0.05 else gap > 0.01


def test_bound_holds_for_a_wrong_denoiser(generator: torch.Generator) -> None:
    data = FourLevels()
    wrong = lambda x, sigma: 0.8 * data.denoise(x, sigma)  # noqa: E731
    how = {"quadrature": Quadrature(100, 4), "generator": generator, "num_steps": 3}
    found = bound_bits(wrong, data.images, 0.2, 20.0, **how)  # type: ignore[arg-type]
    assert data.mean(found.value) > data.entropy + 0.1


def test_both_ways_of_the_density_agree_in_grey_levels(generator: torch.Generator) -> None:
    fit = GaussianFit(torch.zeros(5).double(), torch.logspace(-2, 0, 5).double(), torch.eye(5).double())
    images = torch.randn(200, 5, generator=generator, dtype=torch.float64) * fit.variances.sqrt()
    denoise = lambda x, sigma: x * fit.variances / (fit.variances + append_dims(sigma, x) ** 2)  # noqa: E731
    energy = energy_bits(fit.energy, images, 0.1, draws=100, generator=generator)
    how = {"quadrature": Quadrature(64, 4), "anchor": fit, "generator": generator}
    integral = integral_bits(denoise, images, 0.1, 3.0, **how)  # type: ignore[arg-type]
    exact = fit.energy(images, 0.1, jitter=0.1) / (5 * math.log(2)) + math.log2(255 / 2)
    for found in (energy, integral):
        assert float(((found.value - exact) / found.standard_error).abs().max()) < 5
        assert abs(float((found.value - exact).mean())) < 0.01
