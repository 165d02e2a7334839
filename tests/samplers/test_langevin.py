from __future__ import annotations

import math

import pytest
import torch

from chains import BIASED, DATA, ERROR, NUM, SIGMA, STEP, TAU, V, point_mass, start
from denoising_ebm.samplers import (
    annealed_langevin,
    ula,
)


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_ula_has_its_known_bias(temperature: float, generator: torch.Generator) -> None:
    x = ula(
        DATA.energy, start(generator), SIGMA, step_size=STEP, num_steps=40, temperature=temperature, generator=generator
    )
    assert float(x.var()) == pytest.approx(temperature * BIASED, rel=4.5 * ERROR)
    assert abs(float(x.var()) / temperature / V - 1) > 20 * ERROR  # so the test sees the bias


def test_ula_follows_each_chains_level(generator: torch.Generator) -> None:
    sigma = torch.tensor([0.3, 2.0], dtype=torch.float64).repeat_interleave(NUM // 2)
    x = torch.zeros(NUM, 1, dtype=torch.float64)
    x = ula(DATA.energy, x, sigma, step_size=0.4, num_steps=150, generator=generator)
    for level, part in zip((0.3, 2.0), x.split(NUM // 2), strict=True):
        v, h = TAU**2 + level**2, 0.4 * level**2
        assert float(part.var()) == pytest.approx(v / (1 - h / (2 * v)), rel=4.5 * math.sqrt(4 / NUM))


def test_temperatures_are_one_or_one_a_step(generator: torch.Generator) -> None:
    x, levels = torch.ones(2, 1), torch.tensor([1.0, 0.5])
    frozen = annealed_langevin(DATA.energy, x, levels, step_size=0.1, temperature=torch.zeros(2), generator=generator)
    torch.testing.assert_close(frozen, annealed_langevin(DATA.energy, x, levels, step_size=0.1, temperature=0.0))
    with pytest.raises(
        ValueError, match=r"temperature must be a number or have shape \(2,\), one for each step, got \(3,\)"
    ):
        annealed_langevin(DATA.energy, x, levels, step_size=0.1, temperature=torch.ones(3))
    with pytest.raises(ValueError, match="temperature must be >= 0"):
        annealed_langevin(DATA.energy, x, levels, step_size=0.1, temperature=torch.tensor([1.0, -1.0]))


def test_temperature_zero_descends() -> None:
    x = torch.tensor([[1.0]], dtype=torch.float64)
    levels = torch.full((3,), 2.0, dtype=torch.float64)
    x = annealed_langevin(point_mass, x, levels, step_size=0.25, temperature=0.0)
    assert float(x) == pytest.approx(0.75**3)


def test_a_step_is_the_formula() -> None:
    """x' = x - eta sigma^2 grad U + sqrt(2 eta T) sigma e, with e from the generator."""
    x = torch.tensor([[0.3, -1.0]], dtype=torch.float64)
    e = torch.randn(1, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    expected = x - 0.2 * 0.6**2 * x / (TAU**2 + 0.6**2) + math.sqrt(2 * 0.2 * 0.9) * 0.6 * e
    generator = torch.Generator().manual_seed(4)
    moved = ula(DATA.energy, x, 0.6, step_size=0.2, num_steps=1, temperature=0.9, generator=generator)
    torch.testing.assert_close(moved, expected)
