r"""Sums of energies against Gaussians: N(m_1, v_1) N(m_2, v_2) is a Gaussian whose precisions add."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from analytic import Gaussian
from denoising_ebm.energies import Energy, SumEnergy, TextureEnergy
from denoising_ebm.samplers import annealed_langevin, mala

SIGMA = 0.3
LEFT, RIGHT = Gaussian(0.8, mean=-1.0), Gaussian(0.4, mean=1.0)
#: Precisions of both at SIGMA.
PRECISIONS = [1 / (part.tau**2 + SIGMA**2) for part in (LEFT, RIGHT)]


def product(weights: tuple[float, float]) -> tuple[float, float]:
    """Mean and standard deviation of the product of both to the powers `weights`."""
    parts = [weight * precision for weight, precision in zip(weights, PRECISIONS, strict=True)]
    return (parts[0] * LEFT.mean + parts[1] * RIGHT.mean) / sum(parts), 1 / math.sqrt(sum(parts))


def test_value_gradient_and_denoiser_are_those_of_the_product(generator: torch.Generator) -> None:
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    weights = (0.5, 2.0)
    energy = SumEnergy(list(zip(weights, (LEFT.energy, Energy(RIGHT.energy)), strict=True)))
    mean, deviation = product(weights)
    value, gradient = energy.gradient(x, SIGMA)
    torch.testing.assert_close(value, 0.5 * LEFT.energy(x, SIGMA) + 2 * RIGHT.energy(x, SIGMA))
    torch.testing.assert_close(energy(x, SIGMA), value)
    torch.testing.assert_close(gradient, (x - mean) / deviation**2)
    torch.testing.assert_close(energy.denoise(x, SIGMA)[1], x - SIGMA**2 * (x - mean) / deviation**2)


def test_operators_build_the_same_sum(generator: torch.Generator) -> None:
    x = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    left, right = Energy(LEFT.energy), Energy(RIGHT.energy)
    expected = SumEnergy([(0.5, left), (1.0, right), (1.0, LEFT.energy)])
    torch.testing.assert_close((0.5 * left + right + LEFT.energy)(x, SIGMA), expected(x, SIGMA))
    torch.testing.assert_close((right + left * 0.5 + LEFT.energy).gradient(x, SIGMA), expected.gradient(x, SIGMA))


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.25, 0.0), (2.0, 0.5)])
def test_mala_samples_the_product(weights: tuple[float, float], generator: torch.Generator) -> None:
    """Of two Gaussians, and of one made flatter by a power (a temperature of 4)."""
    energy = weights[0] * Energy(LEFT.energy) + weights[1] * Energy(RIGHT.energy)
    mean, deviation = product(weights)
    start = torch.zeros(4000, 1, dtype=torch.float64)
    x = mala(energy, start, torch.full((150,), SIGMA), step_size=(deviation / SIGMA) ** 2, generator=generator)
    assert abs(float(x.mean()) - mean) < 4.5 * deviation / math.sqrt(len(x))
    assert abs(float(x.std()) / deviation - 1) < 4.5 / math.sqrt(2 * len(x))


def test_a_sum_at_a_noise_level_is_not_the_smoothed_product() -> None:
    """Closed forms of both variances, for two equal Gaussians: what the docstring warns of."""
    energy = Energy(LEFT.energy) + LEFT.energy
    x = torch.tensor([[-1.0], [0.0]], dtype=torch.float64)
    precision = float(energy.gradient(x, SIGMA)[1].diff(dim=0))
    smoothed_product = 1 / (LEFT.tau**2 / 2 + SIGMA**2)
    assert precision == pytest.approx(2 / (LEFT.tau**2 + SIGMA**2)) and precision > 1.1 * smoothed_product


def test_terms_keep_their_drift_and_inner_noise(generator: torch.Generator) -> None:
    """The noise of a texture energy is redrawn, and held fixed, inside a sum as outside of it."""
    x = torch.randn(3, 1, 4, 4, generator=generator, dtype=torch.float64)
    noisy = TextureEnergy(LEFT.denoise, inner_noise=True, drift="denoiser")
    energy = noisy + RIGHT.energy
    assert energy.resample_noise(x, generator) is not energy
    held = energy.resample_noise(x, torch.Generator().manual_seed(1))
    alone = noisy.resample_noise(x, torch.Generator().manual_seed(1))
    for _ in range(2):
        value, gradient = held.gradient(x, SIGMA)
        torch.testing.assert_close(value, alone(x, SIGMA) + RIGHT.energy(x, SIGMA))
        expected = alone.gradient(x, SIGMA)[1] + Energy(RIGHT.energy).gradient(x, SIGMA)[1]
        torch.testing.assert_close(gradient, expected)
    assert not torch.allclose(energy(x, SIGMA), held(x, SIGMA))
    plain = Energy(LEFT.energy) + RIGHT.energy
    assert plain.resample_noise(x, generator) is plain


def test_steps_are_measured_in_the_noise_scale_of_the_first_term(generator: torch.Generator) -> None:
    class Scaled(Energy):
        def noise_scale(self, sigma: Tensor) -> Tensor:
            return sigma / 10

    zero = Scaled(lambda x, sigma: 0 * x.sum(1))
    x = torch.zeros(4000, 1, dtype=torch.float64)
    steps = {"step_size": 0.5, "generator": generator}
    moved = annealed_langevin(zero + LEFT.energy, x, torch.full((1,), SIGMA), **steps)  # type: ignore[arg-type]
    assert float(moved.std()) == pytest.approx(SIGMA / 10, rel=0.05)


def test_bad_sums_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one term"):
        SumEnergy([])
    with pytest.raises(ValueError, match="must be finite, got nan"):
        float("nan") * Energy(LEFT.energy)
