from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from chains import ERROR, NUM, TAU, ring, wide
from denoising_ebm.noise import geometric_sigmas, karras_sigmas
from denoising_ebm.samplers import (
    ancestral,
    consistent_annealed_sampling,
    diffusion,
    dpmpp_2m_sde,
)


def test_ancestral_steps_are_the_formula(generator: torch.Generator) -> None:
    levels = torch.tensor([3.0, 2.0, 1.0, 0.5, 0.2, 0.1], dtype=torch.float64)
    x = torch.randn(NUM, 1, generator=generator, dtype=torch.float64) * (TAU**2 + 9) ** 0.5
    # One step by the textbook: x' = x + (s^2 - s'^2) score + s' / s sqrt(s^2 - s'^2) e.
    e = torch.randn(NUM, 1, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    expected = x - (9 - 4) * x / (TAU**2 + 9) + 2 / 3 * 5**0.5 * e
    moved: list[Tensor] = []
    twin = torch.Generator().manual_seed(8)
    end = ancestral(wide, x, levels, generator=twin, callback=lambda s: moved.append(s.x.clone()))
    torch.testing.assert_close(moved[0], expected)
    # The last step, which no level follows, is the one before again: the noise of 0.1 stays.
    eta = 1 - (0.1 / 0.2) ** 2
    a = 1 - eta * 0.1**2 / (TAU**2 + 0.1**2)
    variance = a**2 * float(moved[-2].var()) + 0.1**2 * (1 - (1 - eta) ** 2)
    assert float(end.var()) == pytest.approx(variance, rel=4.5 * ERROR)


def test_ancestral_steps_keep_wide_data(generator: torch.Generator) -> None:
    """On N(0, TAU^2) its bias vanishes with the number of steps; one fixed large step smooths the data away."""
    x = torch.randn(NUM, 1, generator=generator, dtype=torch.float64) * (TAU**2 + 16) ** 0.5
    spread = {}
    for num in (20, 80):
        levels = karras_sigmas(4.0, 0.05, num).double()
        spread[num] = float(ancestral(wide, x, levels, generator=generator).std())
    target = (TAU**2 + 0.05**2) ** 0.5
    assert abs(spread[80] / target - 1) < 0.4 * abs(spread[20] / target - 1) < 0.1
    levels = karras_sigmas(4.0, 0.05, 80).double()
    smoothed = float(consistent_annealed_sampling(wide, x, levels, step_size=0.7, generator=generator).std())
    assert smoothed < 0.85 * target < 0.9 * spread[80]


def arrival_variance(levels: Tensor, solve: Any, monkeypatch: pytest.MonkeyPatch) -> float:
    """The exact variance with which chains on `wide` arrive at the last level: they are linear in their draws.

    One chain for each draw, which is 1 there and 0 elsewhere: the squares of their ends add up.
    """
    drawn = iter(torch.eye(len(levels) + 1, dtype=torch.float64)[1:, :, None])
    monkeypatch.setattr(diffusion, "draw_noise", lambda *_: next(drawn))
    x = torch.zeros(len(levels) + 1, 1, dtype=torch.float64)
    x[0] = (TAU**2 + float(levels[0]) ** 2) ** 0.5
    states: list[Tensor] = []
    solve(wide, x, levels, callback=lambda state: states.append(state.x))
    # The step before the last arrives at the last level, where one more is taken.
    return float(states[-2].square().sum())


@pytest.mark.parametrize("kind", ["geometric", "karras"])
def test_errors_fall_with_the_order_of_the_method(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    low, high = 0.3, 4.0
    errors = {}
    for order, solve in ((1, ancestral), (2, dpmpp_2m_sde)):
        for num in (24, 48, 96):
            levels = (geometric_sigmas if kind == "geometric" else karras_sigmas)(high, low, num).double()
            variance = arrival_variance(levels, solve, monkeypatch)
            errors[order, num] = abs(variance / (TAU**2 + low**2) - 1)
    for num in (48, 96):
        assert errors[1, num // 2] / errors[1, num] == pytest.approx(2, rel=0.15)
        assert errors[2, num // 2] / errors[2, num] == pytest.approx(4, rel=0.3)
    assert errors[2, 24] < errors[1, 96]


def test_dpmpp_carries_nothing_over_equal_levels(generator: torch.Generator) -> None:
    """A step between levels that are equal, but for rounding, moves nothing, and the step after it is of first order."""
    x = torch.randn(10, 1, generator=generator, dtype=torch.float64)
    for second in (1.0, 1.0 - 1e-9):
        levels = torch.tensor([1.0, second, 0.5, 0.2], dtype=torch.float64)
        states: list[Tensor] = []
        twin = torch.Generator().manual_seed(3)
        dpmpp_2m_sde(wide, x, levels, generator=twin, callback=lambda s, states=states: states.append(s.x))
        torch.testing.assert_close(states[0], x, atol=1e-3, rtol=0)
        twin = torch.Generator().manual_seed(3)
        plain: list[Tensor] = []
        ancestral(wide, x, levels, generator=twin, callback=lambda s, plain=plain: plain.append(s.x))
        torch.testing.assert_close(states[1], plain[1], atol=1e-4, rtol=0)
        assert float((states[2] - plain[2]).abs().max()) > 1e-3


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers with NumPy 2
@pytest.mark.parametrize("kind", ["geometric", "karras"])
def test_dpmpp_is_diffusers_sde_dpmsolver(kind: str, generator: torch.Generator) -> None:
    """On the same noise, with the denoiser of a mixture, which is no linear function."""
    from diffusers import DPMSolverMultistepScheduler

    data = ring()
    levels = (geometric_sigmas if kind == "geometric" else karras_sigmas)(4.0, 0.01, 16).double()
    x = 4.0 * torch.randn(64, 2, generator=generator, dtype=torch.float64)
    states: list[Tensor] = []
    twin = torch.Generator().manual_seed(5)
    dpmpp_2m_sde(data.energy, x, levels, generator=twin, callback=lambda state: states.append(state.x))

    scheduler = DPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver++", solver_order=2, prediction_type="sample", lower_order_final=False
    )
    scheduler.set_timesteps(len(levels))
    # Its sigmas come from a table of betas: ours in their place. It scales states by 1 / sqrt(1 + sigma^2).
    scheduler.sigmas = levels
    scheduler.timesteps = torch.arange(len(levels))
    twin = torch.Generator().manual_seed(5)
    theirs = x / (1 + levels[0] ** 2).sqrt()
    for i, level in enumerate(levels[:-1]):
        noise = torch.randn(x.shape, generator=twin, dtype=torch.float64)
        denoised = data.denoise(theirs * (1 + level**2).sqrt(), float(level))
        # A scheduler keeps states in the dtype of what it is given.
        theirs = scheduler.step(denoised, scheduler.timesteps[i], theirs, variance_noise=noise).prev_sample
        torch.testing.assert_close(states[i], theirs * (1 + levels[i + 1] ** 2).sqrt(), atol=1e-4, rtol=0)
