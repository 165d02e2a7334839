r"""Chains and solvers on energies whose stationary distributions are known.

On U = |x|^2 / 2v one Langevin step is x' = (1 - h / v) x + sqrt(2 h T) e with h = step_size * sigma^2; its stationary
variance is T v / (1 - h / 2v). A variance measured on n independent numbers has the standard error v sqrt(2 / n).
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from analytic import Gaussian, GaussianMixture
from denoising_ebm.config import SamplingConfig, TrainingStage
from denoising_ebm.energies import Energy, SemanticEnergy, TextureEnergy, value_and_gradient
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.noise import geometric_sigmas, karras_sigmas
from denoising_ebm.samplers import (
    ChainState,
    ReplayBuffer,
    annealed,
    heun,
    langevin,
    mala,
    texture_chain,
    two_stage,
    ula,
)
from support import tiny_config

TAU, SIGMA = 0.5, 1.0
V = TAU**2 + SIGMA**2
STEP = 0.5  # h / v = 0.4: forty steps leave 0.6^40 = 1e-9 of the start
BIASED = V / (1 - STEP * SIGMA**2 / (2 * V))
DATA = Gaussian(TAU)
NUM = 40_000
ERROR = math.sqrt(2 / NUM)


def start(generator: torch.Generator, num: int = NUM) -> Tensor:
    return math.sqrt(V) * torch.randn(num, 1, generator=generator, dtype=torch.float64)


# -- stationary variances -------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_mala_has_no_bias(temperature: float, generator: torch.Generator) -> None:
    levels = torch.full((60,), SIGMA, dtype=torch.float64)
    x, accepted = mala(
        DATA.energy, start(generator), levels, step_size=STEP, temperature=temperature, generator=generator
    )
    assert float(x.var()) == pytest.approx(temperature * V, rel=4.5 * ERROR)
    assert 0.5 < accepted < 1.0


def test_mala_accepts_less_with_longer_steps(generator: torch.Generator) -> None:
    levels, seen = torch.full((20,), SIGMA, dtype=torch.float64), list[ChainState]()
    rates = []
    for step_size in (0.05, 0.5, 2.4):
        x = math.sqrt(V) * torch.randn(2000, 4, generator=generator, dtype=torch.float64)
        rates.append(mala(DATA.energy, x, levels, step_size=step_size, generator=generator, callback=seen.append)[1])
    assert 1 > rates[0] > rates[1] > rates[2] > 0
    last = [state.acceptance for state in seen[-20:]]
    assert rates[2] == pytest.approx(sum(rate for rate in last if rate is not None) / 20)


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


# -- annealing ------------------------------------------------------------------------------------------------------


def point_mass(x: Tensor, sigma: Tensor) -> Tensor:
    return x.square().flatten(1).sum(1) / (2 * sigma**2)


def test_consistent_noise_keeps_every_level_exactly(generator: torch.Generator) -> None:
    levels = geometric_sigmas(2.0, 0.05, 20).double()
    x = 2.0 * torch.randn(NUM, 1, generator=generator, dtype=torch.float64)
    ratios: list[float] = []

    def see(state: ChainState) -> None:
        expected = float(levels[min(state.step, len(levels) - 1)])
        ratios.append(float(state.x.var()) / expected**2)

    annealed(point_mass, x, levels, step_size=0.4, consistent=True, generator=generator, callback=see)
    assert ratios == pytest.approx([1.0] * 20, abs=4.5 * ERROR)

    plain: list[ChainState] = []
    annealed(point_mass, x, levels, step_size=0.4, generator=generator, callback=plain.append)
    assert float(plain[-1].x.var()) / 0.05**2 > 1.5  # without it the chain lags behind its levels


def test_consistent_steps_reach_the_next_level_however_small(generator: torch.Generator) -> None:
    """A step of 0.1 takes a tenth of the noise away where the levels halve: it is made as long as it must be."""
    levels = 4.0 * 0.5 ** torch.arange(6)
    x = 4.0 * torch.randn(20_000, 1, generator=generator)
    stds: list[float] = []

    def see(state: ChainState) -> None:
        stds.append(float(state.x.std()))

    annealed(point_mass, x, levels, step_size=0.1, consistent=True, generator=generator, callback=see)
    for spread, level in zip(stds, [*levels[1:].tolist(), float(levels[-1])], strict=True):
        assert spread == pytest.approx(level, rel=0.03)


def test_consistent_noise_around_thin_data(generator: torch.Generator) -> None:
    thin = Gaussian(1e-4, mean=0.7)
    levels = geometric_sigmas(1.0, 0.05, 12).double()
    x = 0.7 + torch.randn(NUM, 1, generator=generator, dtype=torch.float64)
    x = annealed(thin.energy, x, levels, step_size=0.5, consistent=True, generator=generator)
    assert float(x.var()) == pytest.approx(0.05**2, rel=4.5 * ERROR + 1e-5)
    assert float(x.mean()) == pytest.approx(0.7, abs=5 * 0.05 / math.sqrt(NUM) + 0.5**12 * 5 / math.sqrt(NUM))


def test_chains_run_cold_below_their_level(generator: torch.Generator) -> None:
    """Around a point every step leaves (1 - eta)^2 of the variance and adds T (s'^2 - (1 - eta)^2 s^2)."""
    levels = geometric_sigmas(2.0, 0.05, 12).double()
    x = 2.0 * torch.randn(NUM, 1, generator=generator, dtype=torch.float64)
    config = SamplingConfig(
        texture_step_size=0.0,
        consistent=True,
        temperature=0.9,
        low_temperature=0.4,
        low_temperature_sigma=float(levels[6]),
    )
    variances: list[float] = []
    energy = Energy(point_mass)
    texture_chain(energy, x, levels, config, generator=generator, callback=lambda s: variances.append(float(s.x.var())))
    expected, variance, eta = [], 4.0, 0.0
    for i, level in enumerate(levels.tolist()):
        after = float(levels[min(i + 1, 11)])
        eta = 1 - (after / level) ** 2 if i < 11 else eta
        # The level that a step ends at decides, and cold_sigma itself is not below.
        temperature = 0.9 * (0.4 if i >= 6 else 1.0)
        variance = (1 - eta) ** 2 * variance + temperature * (after**2 - (1 - eta) ** 2 * level**2)
        expected.append(variance)
    assert variances == pytest.approx(expected, rel=4.5 * ERROR)


@pytest.mark.parametrize("sampler", ["two-stage", "annealed"])
def test_models_draw_as_cold_as_their_settings(tiny_model: DenoisingEBM, sampler: Any) -> None:
    drawn = {}
    for temperature, sigma in ((1.0, 0.25), (0.5, 0.25), (0.5, 1e-3)):
        sampling = replace(tiny_model.config.sampling, low_temperature=temperature, low_temperature_sigma=sigma)
        tiny_model.config = replace(tiny_model.config, sampling=sampling)
        drawn[temperature, sigma] = tiny_model.sample(2, sampler=sampler, seed=1)
    assert not torch.equal(drawn[0.5, 0.25], drawn[1.0, 0.25])
    assert torch.equal(drawn[0.5, 1e-3], drawn[1.0, 0.25])  # no step ends there


def test_temperatures_are_one_or_one_a_step(generator: torch.Generator) -> None:
    x, levels = torch.ones(2, 1), torch.tensor([1.0, 0.5])
    frozen = annealed(DATA.energy, x, levels, step_size=0.1, temperature=torch.zeros(2), generator=generator)
    torch.testing.assert_close(frozen, annealed(DATA.energy, x, levels, step_size=0.1, temperature=0.0))
    with pytest.raises(
        ValueError, match=r"temperature must be a number or have shape \(2,\), one for each step, got \(3,\)"
    ):
        annealed(DATA.energy, x, levels, step_size=0.1, temperature=torch.ones(3))
    with pytest.raises(ValueError, match="temperature must be >= 0"):
        annealed(DATA.energy, x, levels, step_size=0.1, temperature=torch.tensor([1.0, -1.0]))


def wide(x: Tensor, sigma: Tensor) -> Tensor:
    """The energy whose gradient is (x - D(x)) / sigma^2 for the denoiser D of N(0, TAU^2)."""
    return x.square().flatten(1).sum(1) / (2 * (TAU**2 + sigma**2))


def test_step_size_zero_takes_the_steps_of_the_reverse_diffusion(generator: torch.Generator) -> None:
    levels = torch.tensor([3.0, 2.0, 1.0, 0.5, 0.2, 0.1], dtype=torch.float64)
    x = torch.randn(NUM, 1, generator=generator, dtype=torch.float64) * (TAU**2 + 9) ** 0.5
    # One step by the textbook: x' = x + (s^2 - s'^2) score + s' / s sqrt(s^2 - s'^2) e.
    e = torch.randn(NUM, 1, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    expected = x - (9 - 4) * x / (TAU**2 + 9) + 2 / 3 * 5**0.5 * e
    options = {"step_size": 0.0, "consistent": True}
    moved: list[Tensor] = []
    twin = torch.Generator().manual_seed(8)
    end = annealed(wide, x, levels, generator=twin, callback=lambda s: moved.append(s.x.clone()), **options)  # type: ignore[arg-type]
    torch.testing.assert_close(moved[0], expected)
    # The last step, which no level follows, is the one before again: the noise of 0.1 stays.
    eta = 1 - (0.1 / 0.2) ** 2
    a = 1 - eta * 0.1**2 / (TAU**2 + 0.1**2)
    variance = a**2 * float(moved[-2].var()) + 0.1**2 * (1 - (1 - eta) ** 2)
    assert float(end.var()) == pytest.approx(variance, rel=4.5 * ERROR)


def test_steps_of_the_reverse_diffusion_keep_wide_data(generator: torch.Generator) -> None:
    """On N(0, TAU^2) its bias vanishes with the number of steps; one fixed large step smooths the data away."""
    x = torch.randn(NUM, 1, generator=generator, dtype=torch.float64) * (TAU**2 + 16) ** 0.5
    spread = {}
    for num in (20, 80):
        levels = karras_sigmas(4.0, 0.05, num).double()
        spread[num] = float(annealed(wide, x, levels, step_size=0.0, consistent=True, generator=generator).std())
    target = (TAU**2 + 0.05**2) ** 0.5
    assert abs(spread[80] / target - 1) < 0.4 * abs(spread[20] / target - 1) < 0.1
    levels = karras_sigmas(4.0, 0.05, 80).double()
    smoothed = float(annealed(wide, x, levels, step_size=0.7, consistent=True, generator=generator).std())
    assert smoothed < 0.85 * target < 0.9 * spread[80]


def arrival_variance(levels: Tensor, order: int, monkeypatch: pytest.MonkeyPatch) -> float:
    """The exact variance with which chains on `wide` arrive at the last level: they are linear in their draws.

    One chain for each draw, which is 1 there and 0 elsewhere: the squares of their ends add up.
    """
    drawn = iter(torch.eye(len(levels) + 1, dtype=torch.float64)[1:, :, None])
    monkeypatch.setattr(langevin, "draw_noise", lambda *_: next(drawn))
    x = torch.zeros(len(levels) + 1, 1, dtype=torch.float64)
    x[0] = (TAU**2 + float(levels[0]) ** 2) ** 0.5
    states: list[Tensor] = []
    options: dict[str, Any] = {"step_size": 0.0, "consistent": True, "order": order}
    annealed(wide, x, levels, callback=lambda state: states.append(state.x), **options)
    # The step before the last arrives at the last level, where one more is taken.
    return float(states[-2].square().sum())


@pytest.mark.parametrize("kind", ["geometric", "karras"])
def test_second_order_steps_converge_with_the_square_of_the_step(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    low, high = 0.3, 4.0
    errors = {}
    for order in (1, 2):
        for num in (24, 48, 96):
            levels = (geometric_sigmas if kind == "geometric" else karras_sigmas)(high, low, num).double()
            variance = arrival_variance(levels, order, monkeypatch)
            errors[order, num] = abs(variance / (TAU**2 + low**2) - 1)
    for num in (48, 96):
        assert errors[1, num // 2] / errors[1, num] == pytest.approx(2, rel=0.15)
        assert errors[2, num // 2] / errors[2, num] == pytest.approx(4, rel=0.3)
    assert errors[2, 24] < errors[1, 96]


def test_second_order_carries_nothing_over_equal_levels(generator: torch.Generator) -> None:
    """A step between levels that are equal, but for rounding, moves nothing, and the step after it is of first order."""
    x = torch.randn(10, 1, generator=generator, dtype=torch.float64)
    for second in (1.0, 1.0 - 1e-9):
        levels = torch.tensor([1.0, second, 0.5, 0.2], dtype=torch.float64)
        states: list[Tensor] = []
        twin = torch.Generator().manual_seed(3)
        options: dict[str, Any] = {
            "step_size": 0.0,
            "consistent": True,
            "callback": lambda s, states=states: states.append(s.x),
        }
        annealed(wide, x, levels, order=2, generator=twin, **options)
        torch.testing.assert_close(states[0], x, atol=1e-3, rtol=0)
        twin = torch.Generator().manual_seed(3)
        plain: list[Tensor] = []
        options["callback"] = lambda s, plain=plain: plain.append(s.x)
        annealed(wide, x, levels, order=1, generator=twin, **options)
        torch.testing.assert_close(states[1], plain[1], atol=1e-4, rtol=0)
        assert float((states[2] - plain[2]).abs().max()) > 1e-3


@pytest.mark.parametrize("sampler", ["two-stage", "annealed"])
def test_models_draw_with_the_order_of_their_settings(tiny_model: DenoisingEBM, sampler: Any) -> None:
    images = {}
    for order in (1, 2):
        sampling = replace(tiny_model.config.sampling, texture_steps=4, texture_step_size=0.0, consistent=True)
        tiny_model.config = replace(tiny_model.config, sampling=replace(sampling, texture_order=order))
        images[order] = tiny_model.sample(2, sampler=sampler, seed=1)
        assert not images[order].requires_grad
    assert float((images[1] - images[2]).abs().max()) > 1e-3


def test_temperature_zero_descends() -> None:
    x = torch.tensor([[1.0]], dtype=torch.float64)
    levels = torch.full((3,), 2.0, dtype=torch.float64)
    x = annealed(point_mass, x, levels, step_size=0.25, temperature=0.0)
    assert float(x) == pytest.approx(0.75**3)


def test_a_step_is_the_formula() -> None:
    """x' = x - eta sigma^2 grad U + sqrt(2 eta T) sigma e, with e from the generator."""
    x = torch.tensor([[0.3, -1.0]], dtype=torch.float64)
    e = torch.randn(1, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    expected = x - 0.2 * 0.6**2 * x / (TAU**2 + 0.6**2) + math.sqrt(2 * 0.2 * 0.9) * 0.6 * e
    generator = torch.Generator().manual_seed(4)
    moved = ula(DATA.energy, x, 0.6, step_size=0.2, num_steps=1, temperature=0.9, generator=generator)
    torch.testing.assert_close(moved, expected)


def ring() -> GaussianMixture:
    angles = 2 * math.pi * torch.arange(8) / 8
    return GaussianMixture(2 * torch.stack([angles.cos(), angles.sin()], 1), 0.1)


def mmd(x: Tensor, y: Tensor) -> float:
    """Unbiased MMD^2 with the mean of three Gaussian kernels."""
    kernels = [torch.exp(-torch.cdist(a, b).square() / (2 * w**2)) for a, b in ((x, x), (y, y), (x, y)) for w in WIDTHS]
    n, m = len(x), len(y)
    within_x = sum(float(k.sum()) - n for k in kernels[:3]) / (n * (n - 1))
    within_y = sum(float(k.sum()) - m for k in kernels[3:6]) / (m * (m - 1))
    return (within_x + within_y - 2 * sum(float(k.mean()) for k in kernels[6:])) / 3


WIDTHS = (0.1, 0.4, 1.6)


@pytest.mark.parametrize("sampler", ["ula", "mala"])
def test_ring_of_gaussians_by_annealing(sampler: str, generator: torch.Generator) -> None:
    data, num = ring(), 1500
    truth = data.sample(num, generator)
    floor = [mmd(data.sample(num, generator), data.sample(num, generator)) for _ in range(8)]
    mean, spread = sum(floor) / 8, float(torch.tensor(floor).std())
    levels = geometric_sigmas(5.0, 0.02, 40).repeat_interleave(6)
    x = math.sqrt(25 + 2) * torch.randn(num, 2, generator=generator)
    if sampler == "ula":
        x = annealed(data.energy, x, levels, step_size=0.15, generator=generator)
    else:
        x, _ = mala(data.energy, x, levels, step_size=0.5, generator=generator)
    x = data.denoise(x, 0.02)
    # A Gaussian with the same mean and covariance is far off, so the measure sees the modes.
    wrong = math.sqrt(2.01) * torch.randn(num, 2, generator=generator)
    assert mmd(wrong, truth) > mean + 100 * spread
    assert mmd(x, truth) < mean + 5 * spread
    assert torch.bincount(torch.cdist(x, data.means).argmin(1), minlength=8).min() > num / 16


# -- the probability-flow ODE ---------------------------------------------------------------------------------------


def solve(steps: int) -> float:
    levels = torch.linspace(3.0, 0.3, steps + 1, dtype=torch.float64)
    return float(heun(DATA.denoise, torch.tensor([[1.7]], dtype=torch.float64), levels, final_denoise=False))


def test_heun_is_of_second_order() -> None:
    exact = 1.7 * math.sqrt((TAU**2 + 0.3**2) / (TAU**2 + 3.0**2))
    errors = [abs(solve(steps) - exact) for steps in (40, 80, 160)]
    assert errors[2] < 1e-4
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(2, abs=0.1)


def test_heun_ends_with_the_denoiser() -> None:
    x, levels = torch.tensor([[1.7]], dtype=torch.float64), torch.tensor([3.0, 1.0, 0.3], dtype=torch.float64)
    states: list[ChainState] = []
    raw = heun(DATA.denoise, x, levels, final_denoise=False, callback=states.append)
    torch.testing.assert_close(heun(DATA.denoise, x, levels), DATA.denoise(raw, 0.3))
    torch.testing.assert_close(heun(DATA.denoise, x, levels[-1:]), DATA.denoise(x, 0.3))
    assert [(state.step, state.num_steps) for state in states] == [(1, 2), (2, 2)]
    a = TAU**2 / (TAU**2 + 9)
    torch.testing.assert_close(states[0].energy, (1 - a) ** 2 * x.square().sum(1) / 18)


@pytest.mark.parametrize("levels", [[], [1.0, 0.0], [[1.0]]])
def test_heun_refuses_bad_levels(levels: list[float]) -> None:
    with pytest.raises(ValueError, match="sigmas must be a list"):
        heun(DATA.denoise, torch.zeros(1, 1), torch.tensor(levels))


# -- two stages -----------------------------------------------------------------------------------------------------


SAMPLING = SamplingConfig(
    semantic_steps=60,
    semantic_step_size=STEP,
    semantic_sigma_max=SIGMA,
    semantic_sigma_min=SIGMA,
    texture_steps=0,
    texture_step_size=STEP,
    texture_sigma_max=SIGMA,
    texture_sigma_min=SIGMA,
)


def decode(z: Tensor) -> Tensor:
    return 2 * z.reshape(len(z), 1, 1, -1)


def test_two_stages_have_their_variances(generator: torch.Generator) -> None:
    z = torch.randn(NUM, 1, generator=generator, dtype=torch.float64)
    semantic, texture = Energy(DATA.energy), Energy(DATA.energy)
    first = two_stage(semantic, decode, texture, DATA.denoise, z, SAMPLING, generator=generator)
    assert float(first.latents.var()) == pytest.approx(BIASED, rel=4.5 * ERROR)
    assert torch.equal(first.semantic, 2 * first.latents[:, None, None])
    assert torch.equal(first.images, first.semantic)  # no step in pixels, and no denoising either

    config = replace(SAMPLING, semantic_steps=0, texture_steps=60)
    second = two_stage(semantic, decode, texture, DATA.denoise, z, config, generator=generator)
    assert torch.equal(second.latents, z)
    a = TAU**2 / V
    assert float(second.images.var()) == pytest.approx(a**2 * BIASED, rel=4.5 * ERROR)
    raw = two_stage(
        semantic, decode, texture, DATA.denoise, z, replace(config, final_denoise=False), generator=generator
    )
    assert float(raw.images.var()) == pytest.approx(BIASED, rel=4.5 * ERROR)


def test_two_stages_on_the_semantic_energy(generator: torch.Generator) -> None:
    """h(z) = 2 z, r = a x: U^s = (1-a)^2 4 z^2 / 2 sigma^2 + prior z^2 / 2, steps in units of sigma / 2."""
    a, prior = TAU**2 / V, 0.5
    semantic = SemanticEnergy(decode, DATA.denoise, inner_noise=False, prior=prior, jacobian_norm=2.0)
    v = 1 / (4 * (1 - a) ** 2 / SIGMA**2 + prior)
    h = STEP * (SIGMA / 2) ** 2
    z = torch.randn(NUM, 1, generator=generator, dtype=torch.float64)
    texture = TextureEnergy(DATA.denoise, inner_noise=False)
    sample = two_stage(semantic, decode, texture, DATA.denoise, z, SAMPLING, generator=generator)
    assert float(sample.latents.var()) == pytest.approx(v / (1 - h / (2 * v)), rel=4.5 * ERROR)


@pytest.mark.parametrize("noise_init", [False, True])
def test_two_stages_are_their_parts(noise_init: bool) -> None:
    config = SamplingConfig(
        semantic_steps=5,
        semantic_sigma_max=1.0,
        semantic_sigma_min=0.2,
        texture_steps=7,
        texture_step_size=0.3,
        texture_sigma_max=0.8,
        texture_sigma_min=0.1,
        noise_init=noise_init,
        consistent=True,
        temperature=0.7,
    )
    z = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    states: list[ChainState] = []
    energies = Energy(DATA.energy), Energy(DATA.energy)
    sample = two_stage(
        energies[0],
        decode,
        energies[1],
        DATA.denoise,
        z,
        config,
        generator=torch.Generator().manual_seed(1),
        callback=states.append,
    )
    generator = torch.Generator().manual_seed(1)
    options = {"temperature": 0.7, "generator": generator}
    latents = annealed(DATA.energy, z, geometric_sigmas(1.0, 0.2, 5), step_size=0.1, **options)  # type: ignore[arg-type]
    x = decode(latents)
    if noise_init:
        x = x + 0.8 * torch.randn(x.shape, generator=generator)
    levels = geometric_sigmas(0.8, 0.1, 7)
    x = annealed(DATA.energy, x, levels, step_size=0.3, consistent=True, **options)  # type: ignore[arg-type]
    assert torch.equal(sample.latents, latents)
    assert torch.equal(sample.semantic, decode(latents))
    assert torch.equal(sample.images, DATA.denoise(x, 0.1))
    assert [state.stage for state in states] == ["semantic"] * 5 + ["texture"] * 7


# -- what every chain keeps to --------------------------------------------------------------------------------------


def test_callbacks_see_every_step(generator: torch.Generator) -> None:
    x = start(generator, 3)
    levels = geometric_sigmas(2.0, 0.5, 4)
    for run in (annealed, mala):
        states: list[ChainState] = []
        run(DATA.energy, x, levels, step_size=0.1, generator=generator, callback=states.append, stage="here")
        assert [(s.stage, s.step, s.num_steps) for s in states] == [("here", i, 4) for i in (1, 2, 3, 4)]
        assert [s.sigma for s in states] == pytest.approx(levels.tolist())
        torch.testing.assert_close(states[0].energy, DATA.energy(x, 2.0))
        torch.testing.assert_close(states[2].energy, DATA.energy(states[1].x, float(levels[2])))


def test_no_steps_return_the_start(generator: torch.Generator) -> None:
    x, none = start(generator, 3), torch.zeros(0)
    results = [
        ula(DATA.energy, x, 1.0, step_size=0.1, num_steps=0),
        annealed(DATA.energy, x, none, step_size=0.1),
        mala(DATA.energy, x, none, step_size=0.1)[0],
    ]
    for result in results:
        assert torch.equal(result, x)
        assert result.data_ptr() != x.data_ptr()
    assert math.isnan(mala(DATA.energy, x, none, step_size=0.1)[1])


def test_chains_leave_start_and_network_alone(tiny_model: DenoisingEBM, generator: torch.Generator) -> None:
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    x = torch.randn(2, 1, 16, 16, generator=generator)
    kept, levels = x.clone(), geometric_sigmas(1.0, 0.1, 3)
    ends = [
        annealed(tiny_model.texture("energy"), x, levels, step_size=0.1, generator=generator),
        annealed(tiny_model.texture("denoiser"), x, levels, step_size=0.1, generator=generator),
        mala(tiny_model.texture(), x, levels, step_size=0.1, generator=generator)[0],
        heun(tiny_model.denoise, x, levels),
        annealed(tiny_model.semantic(), x.flatten(1)[:, :4], levels, step_size=0.1, generator=generator),
        tiny_model.two_stage(2).images,
    ]
    assert torch.equal(x, kept)
    assert all(not end.requires_grad and bool(end.isfinite().all()) for end in ends)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in tiny_model.parameters())
    for name, value in tiny_model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)


def test_seeds_decide(generator: torch.Generator) -> None:
    x = start(generator, 3)
    runs = [
        ula(DATA.energy, x, 1.0, step_size=0.1, num_steps=3, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_energies_are_differentiated_under_no_grad(generator: torch.Generator) -> None:
    x = start(generator, 3)
    with torch.no_grad():
        gradient = value_and_gradient(DATA.energy, x, torch.ones(3, dtype=torch.float64))[1]
    torch.testing.assert_close(gradient, x / V)


@pytest.mark.parametrize(
    ("options", "field"),
    [({"step_size": 0.0}, "step_size"), ({"step_size": 0.1, "temperature": -1.0}, "temperature")],
)
def test_bad_options_are_refused(options: dict[str, float], field: str) -> None:
    x, levels = torch.zeros(1, 1), torch.ones(1)
    for run in (annealed, mala):
        with pytest.raises(ValueError, match=f"{field} must be"):
            run(DATA.energy, x, levels, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"step_size must be > 0, got -0\.1"):
        annealed(DATA.energy, x, levels, step_size=-0.1, consistent=True)
    with pytest.raises(ValueError, match="order must be 1, or 2 with step_size 0, got 2"):
        annealed(DATA.energy, x, levels, step_size=0.1, consistent=True, order=2)
    with pytest.raises(ValueError, match=f"{field} must be"):
        ula(DATA.energy, x, 1.0, num_steps=1, **options)  # type: ignore[arg-type]


def test_more_refusals() -> None:
    x = torch.zeros(1, 1)
    with pytest.raises(ValueError, match="num_steps must be >= 0, got -1"):
        ula(DATA.energy, x, 1.0, step_size=0.1, num_steps=-1)
    with pytest.raises(ValueError, match="temperature must be > 0 for mala"):
        mala(DATA.energy, x, torch.ones(1), step_size=0.1, temperature=0.0)
    with pytest.raises(ValueError, match="sigmas must have shape"):
        annealed(DATA.energy, x, torch.ones(1, 1, 1), step_size=0.1)


# -- samplers of a model --------------------------------------------------------------------------------------------


def gaussian_model(sigma_max: float, sigma_min: float) -> DenoisingEBM:
    """An untrained network with energy preconditioning is the exact model of N(0, sigma_data^2 = 0.25)."""
    config = tiny_config(TrainingStage("score"))
    sampling = replace(config.sampling, texture_step_size=0.2, final_denoise=False)
    noise = replace(config.noise, sigma_max=sigma_max, sigma_min=sigma_min)
    return DenoisingEBM(replace(config, sampling=sampling, noise=noise))


def test_model_samples_gaussian_data() -> None:
    model, num, error = gaussian_model(2.0, 0.2), 32, math.sqrt(2 / (32 * 256))
    # Heun's start has variance s^2 + 4, is carried to s^2 + sigma^2 and denoised: s^4 / (s^2 + sigma^2).
    x = model.sample(num, sampler="heun", steps=25, seed=1)
    assert float(x.var()) == pytest.approx(0.5**4 / 0.29, rel=4.5 * error + 0.01)
    # Falling levels leave Langevin chains behind; by how much is known step by step.
    expected = 4.25
    for level in geometric_sigmas(2.0, 0.2, 30).tolist():
        h = 0.2 * level**2
        expected = (1 - h / (0.25 + level**2)) ** 2 * expected + 2 * h
    x = model.sample(num, sampler="annealed", steps=30, seed=1)
    assert float(x.var()) == pytest.approx(expected, rel=4.5 * error)
    # At (almost) one level MALA keeps the distribution it starts with, which unadjusted steps would widen by 9 %.
    model = gaussian_model(1.0, 0.999)
    x = model.sample(num, sampler="mala", steps=30, seed=1)
    assert float(x.var()) == pytest.approx(1.25, rel=4.5 * error)
    assert not torch.equal(x, model.sample(num, sampler="mala", steps=1, seed=1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num": 0}, "number of images must be >= 1, got 0"),
        ({"num": 1, "steps": 0}, "steps must be >= 1, got 0"),
        ({"num": 1, "sampler": "gibbs"}, "unknown sampler 'gibbs': use two-stage, annealed, mala or heun"),
    ],
)
def test_model_refuses(arguments: dict[str, Any], message: str, tiny_model: DenoisingEBM) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model.sample(**arguments)


# -- persistent chains ----------------------------------------------------------------------------------------------


def full_buffer(capacity: int = 10, restart_rate: float = 0.3) -> ReplayBuffer:
    buffer = ReplayBuffer(capacity, restart_rate)
    values = torch.arange(capacity).float()
    buffer.put(torch.full((capacity,), -1), {"x": values, "z": torch.stack([values, -values], 1)})
    return buffer


def test_buffer_fills_first(generator: torch.Generator) -> None:
    buffer = ReplayBuffer(5, 0.0)
    for size in (2, 4, 5):
        slots, states = buffer.draw(2, generator)
        assert slots.tolist() == [-1, -1]
        assert all(len(rows) == 0 for rows in states.values())
        buffer.put(slots, {"x": torch.tensor([size + 0.1, size + 0.2])}, generator)
        assert len(buffer) == size
    slots, states = buffer.draw(4, generator)
    assert sorted(slots.tolist()) != [-1] * 4 and len(set(slots.tolist())) == 4
    assert len(states["x"]) == 4


def test_restart_rate(generator: torch.Generator) -> None:
    buffer, rounds = full_buffer(), 2000
    restarts = sum(int((buffer.draw(6, generator)[0] < 0).sum()) for _ in range(rounds))
    n = 6 * rounds
    assert restarts / n == pytest.approx(0.3, abs=4.5 * math.sqrt(0.3 * 0.7 / n))


def test_slots_are_drawn_once_and_evenly(generator: torch.Generator) -> None:
    buffer, counts = full_buffer(restart_rate=0.0), torch.zeros(10)
    for _ in range(2000):
        slots = buffer.draw(4, generator)[0]
        assert len(set(slots.tolist())) == 4
        counts[slots] += 1
    assert bool(((counts / 2000 - 0.4).abs() < 5 * math.sqrt(0.4 * 0.6 / 2000)).all())


def test_continued_chains_go_back_to_their_slot(generator: torch.Generator) -> None:
    buffer = full_buffer()
    for turn in range(50):
        before = {name: rows.clone() for name, rows in buffer.state_dict().items()}
        slots, states = buffer.draw(6, generator)
        going_on = slots >= 0
        assert torch.equal(states["x"], before["x"][slots[going_on]])
        assert torch.equal(states["z"][:, 1], before["z"][slots[going_on], 1])
        new = 100.0 * (turn + 1) + torch.arange(6)
        buffer.put(slots, {"x": new, "z": torch.stack([new, -new], 1)}, generator)
        after = buffer.state_dict()
        assert len(buffer) == 10
        assert torch.equal(after["x"][slots[going_on]], new[going_on])
        assert set(new.tolist()) <= set(after["x"].tolist())  # restarts are stored too, nothing of this round is lost
        assert int((after["x"] == before["x"]).sum()) == 4  # and nothing else has changed
        assert torch.equal(after["z"], torch.stack([after["x"], -after["x"]], 1))  # rows stay together


def test_buffer_state_round_trip(generator: torch.Generator) -> None:
    first, second = full_buffer(), ReplayBuffer(10, 0.3)
    second.load_state_dict(first.state_dict())
    for _ in range(3):
        draws = [b.draw(5, torch.Generator().manual_seed(3)) for b in (first, second)]
        assert torch.equal(draws[0][0], draws[1][0])
        assert torch.equal(draws[0][1]["x"], draws[1][1]["x"])
        new = torch.rand(5, generator=generator)
        for buffer in (first, second):
            buffer.put(draws[0][0], {"x": new, "z": new[:, None].repeat(1, 2)}, torch.Generator().manual_seed(4))
    assert torch.equal(first.state_dict()["x"], second.state_dict()["x"])
    assert first.state_dict()["x"].data_ptr() != second.state_dict()["x"].data_ptr()


def test_more_chains_than_the_buffer_holds(generator: torch.Generator) -> None:
    buffer = full_buffer(capacity=4, restart_rate=0.0)
    slots, states = buffer.draw(7, generator)
    assert sorted(slots.tolist()) == [-1, -1, -1, 0, 1, 2, 3] and len(states["x"]) == 4
    new = 100.0 + torch.arange(7)
    buffer.put(slots, {"x": new, "z": torch.stack([new, -new], 1)}, generator)
    assert len(buffer) == 4
    assert torch.equal(buffer.state_dict()["x"][slots[:4]], new[:4])


def test_buffer_refuses() -> None:
    with pytest.raises(ValueError, match="buffer_size"):
        ReplayBuffer(0, 0.1)
    with pytest.raises(ValueError, match="restart_rate"):
        ReplayBuffer(3, 1.1)
