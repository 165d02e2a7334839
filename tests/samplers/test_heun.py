from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from chains import DATA, TAU, wide
from denoising_ebm.samplers import (
    ChainState,
    heun,
)


def solve(steps: int) -> float:
    levels = torch.linspace(3.0, 0.3, steps + 1, dtype=torch.float64)
    return float(heun(wide, torch.tensor([[1.7]], dtype=torch.float64), levels))


def test_heun_is_of_second_order() -> None:
    exact = 1.7 * math.sqrt((TAU**2 + 0.3**2) / (TAU**2 + 3.0**2))
    errors = [abs(solve(steps) - exact) for steps in (40, 80, 160)]
    assert errors[2] < 1e-4
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(2, abs=0.1)


def test_heun_tells_its_callback_of_each_step() -> None:
    x, levels = torch.tensor([[1.7]], dtype=torch.float64), torch.tensor([3.0, 1.0, 0.3], dtype=torch.float64)
    states: list[ChainState] = []
    end = heun(wide, x, levels, callback=states.append)
    torch.testing.assert_close(states[1].x, end)
    torch.testing.assert_close(heun(wide, x, levels[-1:]), x)
    assert [(state.step, state.num_steps) for state in states] == [(1, 2), (2, 2)]
    torch.testing.assert_close(states[0].energy, wide(x, torch.tensor([3.0])))


def test_a_heun_step_is_the_formula() -> None:
    """The mean of the slopes (x - D) / sigma at both ends, with D = a x."""
    x, levels = torch.tensor([[1.7]], dtype=torch.float64), torch.tensor([3.0, 1.0], dtype=torch.float64)
    slope = x * 3 / (TAU**2 + 9)
    ahead = x - 2 * slope
    expected = x - (slope + ahead / (TAU**2 + 1))
    torch.testing.assert_close(heun(wide, x, levels), expected)


@pytest.mark.parametrize("levels", [[], [1.0, 0.0]])
def test_heun_refuses_bad_levels(levels: list[float]) -> None:
    with pytest.raises(ValueError, match="sigmas must be a list"):
        heun(DATA.energy, torch.zeros(1, 1), torch.tensor(levels))
