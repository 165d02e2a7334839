from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from chains import DATA, ERROR, SIGMA, STEP, V, start
from denoising_ebm.energies import Energy
from denoising_ebm.samplers import (
    ChainState,
    mala,
)


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_mala_has_no_bias(temperature: float, generator: torch.Generator) -> None:
    levels = torch.full((60,), SIGMA, dtype=torch.float64)
    rates: list[float] = []
    x = mala(
        DATA.energy,
        start(generator),
        levels,
        step_size=STEP,
        temperature=temperature,
        generator=generator,
        callback=lambda state: rates.append(state.acceptance or 0.0),
    )
    assert float(x.var()) == pytest.approx(temperature * V, rel=4.5 * ERROR)
    assert 0.5 < sum(rates) / len(rates) < 1.0


def test_mala_accepts_less_with_longer_steps(generator: torch.Generator) -> None:
    levels, rates = torch.full((20,), SIGMA, dtype=torch.float64), []
    for step_size in (0.05, 0.5, 2.4):
        x = math.sqrt(V) * torch.randn(2000, 4, generator=generator, dtype=torch.float64)
        seen: list[ChainState] = []
        mala(DATA.energy, x, levels, step_size=step_size, generator=generator, callback=seen.append)
        rates.append(sum(state.acceptance or 0.0 for state in seen) / 20)
    assert 1 > rates[0] > rates[1] > rates[2] > 0


def test_mala_holds_the_inner_noise_within_a_step(generator: torch.Generator) -> None:
    """With inner noise redrawn between proposal and test, the energy would be no function."""

    class Shifted(Energy):
        """(x - e)^2 / 2 with its noise e; counts what is asked of it."""

        draws = 0

        def __init__(self, shift: Tensor | None = None) -> None:
            super().__init__(lambda x, sigma: 0.5 * (x - (0 if shift is None else shift)).square().sum(1))
            self.asked = 0

        def gradient(self, x: Tensor, sigma: Tensor | float) -> tuple[Tensor, Tensor]:
            self.asked += 1
            return super().gradient(x, sigma)

        def resample_noise(self, x: Tensor, generator: torch.Generator | None) -> Energy:
            Shifted.draws += 1
            held = Shifted(torch.randn(x.shape, generator=generator, dtype=x.dtype))
            held_ones.append(held)
            return held

    held_ones: list[Shifted] = []
    mala(Shifted(), start(generator, 5), torch.ones(7), step_size=0.1, generator=generator)
    assert Shifted.draws == 7
    assert [held.asked for held in held_ones] == [2] * 7


def test_mala_takes_one_gradient_a_step_at_one_level(generator: torch.Generator) -> None:
    """And its chains are those of an energy that is asked anew at every step, as one with inner noise is."""

    class Counted(Energy):
        asked = 0

        def gradient(self, x: Tensor, sigma: Tensor | float) -> tuple[Tensor, Tensor]:
            self.asked += 1
            return super().gradient(x, sigma)

    class Anew(Counted):
        def resample_noise(self, x: Tensor, generator: torch.Generator | None) -> Energy:
            return Energy(DATA.energy)

    levels = torch.tensor([SIGMA] * 6 + [SIGMA / 2] * 2, dtype=torch.float64)
    counted, x = Counted(DATA.energy), start(generator, 50)
    ends, rates = [], []
    for energy in (counted, Anew(DATA.energy)):
        source = torch.Generator().manual_seed(3)
        rates.append([0.0])
        seen = lambda state: rates[-1].append(state.acceptance or 0.0)  # noqa: E731
        ends.append(mala(energy, x, levels, step_size=1.0, generator=source, callback=seen))
    assert torch.equal(*ends) and rates[0] == rates[1] and 0.2 < sum(rates[0]) / 8 < 0.9
    assert counted.asked == len(levels) + 2
