from __future__ import annotations

import math

import pytest
import torch

from analytic import Gaussian
from chains import ERROR, NUM, point_mass
from denoising_ebm.noise import geometric_sigmas
from denoising_ebm.samplers import (
    ChainState,
    annealed_langevin,
    consistent_annealed_sampling,
)


def test_consistent_noise_keeps_every_level_exactly(generator: torch.Generator) -> None:
    levels = geometric_sigmas(2.0, 0.05, 20).double()
    x = 2.0 * torch.randn(NUM, 1, generator=generator, dtype=torch.float64)
    ratios: list[float] = []

    def see(state: ChainState) -> None:
        expected = float(levels[min(state.step, len(levels) - 1)])
        ratios.append(float(state.x.var()) / expected**2)

    consistent_annealed_sampling(point_mass, x, levels, step_size=0.4, generator=generator, callback=see)
    assert ratios == pytest.approx([1.0] * 20, abs=4.5 * ERROR)

    plain: list[ChainState] = []
    annealed_langevin(point_mass, x, levels, step_size=0.4, generator=generator, callback=plain.append)
    assert float(plain[-1].x.var()) / 0.05**2 > 1.5  # without it the chain lags behind its levels


def test_consistent_steps_reach_the_next_level_however_small(generator: torch.Generator) -> None:
    """A step of 0.1 takes a tenth of the noise away where the levels halve: it is made as long as it must be."""
    levels = 4.0 * 0.5 ** torch.arange(6)
    x = 4.0 * torch.randn(20_000, 1, generator=generator)
    stds: list[float] = []

    def see(state: ChainState) -> None:
        stds.append(float(state.x.std()))

    consistent_annealed_sampling(point_mass, x, levels, step_size=0.1, generator=generator, callback=see)
    for spread, level in zip(stds, [*levels[1:].tolist(), float(levels[-1])], strict=True):
        assert spread == pytest.approx(level, rel=0.03)


def test_consistent_noise_around_thin_data(generator: torch.Generator) -> None:
    thin = Gaussian(1e-4, mean=0.7)
    levels = geometric_sigmas(1.0, 0.05, 12).double()
    x = 0.7 + torch.randn(NUM, 1, generator=generator, dtype=torch.float64)
    x = consistent_annealed_sampling(thin.energy, x, levels, step_size=0.5, generator=generator)
    assert float(x.var()) == pytest.approx(0.05**2, rel=4.5 * ERROR + 1e-5)
    assert float(x.mean()) == pytest.approx(0.7, abs=5 * 0.05 / math.sqrt(NUM) + 0.5**12 * 5 / math.sqrt(NUM))
