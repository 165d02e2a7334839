from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from chains import DATA, ERROR, NUM, V, mmd, point_mass, ring, start, wide
from denoising_ebm.config import PixelSampler
from denoising_ebm.energies import Energy, value_and_gradient
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.noise import geometric_sigmas
from denoising_ebm.samplers import (
    METHODS,
    ChainState,
    ancestral,
    annealed_langevin,
    consistent_annealed_sampling,
    dpmpp_2m_sde,
    heun,
    mala,
    pixel_nfe,
    sample_pixels,
    ula,
)


def test_low_temperature_holds_below_its_level(generator: torch.Generator) -> None:
    """Around a point every step leaves (1 - eta)^2 of the variance and adds T (s'^2 - (1 - eta)^2 s^2)."""
    levels = geometric_sigmas(2.0, 0.05, 12).double()
    x = 2.0 * torch.randn(NUM, 1, generator=generator, dtype=torch.float64)
    sampler = PixelSampler(
        "ancestral",
        steps=12,
        sigma_max=2.0,
        sigma_min=0.05,
        temperature=0.9,
        low_temperature=0.4,
        low_temperature_sigma=float(levels[6]),
    )
    variances: list[float] = []
    energy = Energy(point_mass)
    sample_pixels(energy, x, sampler, generator=generator, callback=lambda s: variances.append(float(s.x.var())))
    expected, variance, eta = [], 4.0, 0.0
    for i, level in enumerate(levels.tolist()):
        after = float(levels[min(i + 1, 11)])
        eta = 1 - (after / level) ** 2 if i < 11 else eta
        # The level that a step ends at decides, and low_temperature_sigma itself is not below.
        temperature = 0.9 * (0.4 if i >= 6 else 1.0)
        variance = (1 - eta) ** 2 * variance + temperature * (after**2 - (1 - eta) ** 2 * level**2)
        expected.append(variance)
    assert variances == pytest.approx(expected, rel=4.5 * ERROR)


@pytest.mark.parametrize("sampler", ["ula", "mala"])
def test_ring_of_gaussians_by_annealing(sampler: str, generator: torch.Generator) -> None:
    data, num = ring(), 1500
    truth = data.sample(num, generator)
    floor = [mmd(data.sample(num, generator), data.sample(num, generator)) for _ in range(8)]
    mean, spread = sum(floor) / 8, float(torch.tensor(floor).std())
    levels = geometric_sigmas(5.0, 0.02, 40).repeat_interleave(6)
    x = math.sqrt(25 + 2) * torch.randn(num, 2, generator=generator)
    if sampler == "ula":
        x = annealed_langevin(data.energy, x, levels, step_size=0.15, generator=generator)
    else:
        x = mala(data.energy, x, levels, step_size=0.5, generator=generator)
    x = data.denoise(x, 0.02)
    # A Gaussian with the same mean and covariance is far off, so the measure sees the modes.
    wrong = math.sqrt(2.01) * torch.randn(num, 2, generator=generator)
    assert mmd(wrong, truth) > mean + 100 * spread
    assert mmd(x, truth) < mean + 5 * spread
    assert torch.bincount(torch.cdist(x, data.means).argmin(1), minlength=8).min() > num / 16


STEPPED = [annealed_langevin, consistent_annealed_sampling, mala]
FREE = [ancestral, dpmpp_2m_sde]


def options_of(run: Any) -> dict[str, Any]:
    return {"step_size": 0.1} if run in STEPPED else {}


@pytest.mark.parametrize("run", [*STEPPED, *FREE])
def test_callbacks_see_every_step(run: Any, generator: torch.Generator) -> None:
    x = start(generator, 3)
    levels = geometric_sigmas(2.0, 0.5, 4)
    states: list[ChainState] = []
    run(DATA.energy, x, levels, generator=generator, callback=states.append, **options_of(run))
    assert [(s.step, s.num_steps) for s in states] == [(i, 4) for i in (1, 2, 3, 4)]
    assert [s.sigma for s in states] == pytest.approx(levels.tolist())
    torch.testing.assert_close(states[0].energy, DATA.energy(x, 2.0))
    torch.testing.assert_close(states[2].energy, DATA.energy(states[1].x, float(levels[2])))


def test_no_steps_return_the_start(generator: torch.Generator) -> None:
    x, none = start(generator, 3), torch.zeros(0)
    results = [
        ula(DATA.energy, x, 1.0, step_size=0.1, num_steps=0),
        *(run(DATA.energy, x, none, **options_of(run)) for run in (*STEPPED, *FREE)),
    ]
    for result in results:
        assert torch.equal(result, x)
        assert result.data_ptr() != x.data_ptr()


def test_chains_leave_start_and_network_alone(tiny_model: DenoisingEBM, generator: torch.Generator) -> None:
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    x = torch.randn(2, 1, 16, 16, generator=generator)
    kept, levels = x.clone(), geometric_sigmas(1.0, 0.1, 3)
    ends = [
        *(
            run(tiny_model.pixel_energy(drift), x, levels, generator=generator, **options_of(run))
            for run in (*STEPPED, *FREE, heun)
            for drift in ("energy", "denoiser")
        ),
        annealed_langevin(tiny_model.semantic(), x.flatten(1)[:, :4], levels, step_size=0.1, generator=generator),
        tiny_model.sample(2).images,
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


@pytest.mark.parametrize("run", [*STEPPED, *FREE])
def test_bad_options_are_refused(run: Any) -> None:
    x, levels = torch.zeros(1, 1), torch.ones(1)
    options = options_of(run)
    with pytest.raises(ValueError, match="temperature must be >= 0"):
        run(DATA.energy, x, levels, temperature=-1.0, **options)
    with pytest.raises(ValueError, match=r"temperature must be a number or have shape \(1,\)"):
        run(DATA.energy, x, levels, temperature=torch.ones(3), **options)
    with pytest.raises(ValueError, match="sigmas must have shape"):
        run(DATA.energy, x, torch.ones(1, 1, 1), **options)
    if run in STEPPED:
        for step_size in (0.0, -0.1):
            with pytest.raises(ValueError, match=f"step_size must be > 0, got {step_size}"):
                run(DATA.energy, x, levels, step_size=step_size)


def test_more_refusals() -> None:
    x = torch.zeros(1, 1)
    with pytest.raises(ValueError, match="num_steps must be >= 0, got -1"):
        ula(DATA.energy, x, 1.0, step_size=0.1, num_steps=-1)
    with pytest.raises(ValueError, match="step_size must be > 0, got 0"):
        ula(DATA.energy, x, 1.0, step_size=0.0, num_steps=1)
    with pytest.raises(ValueError, match="temperature must be > 0 for mala"):
        mala(DATA.energy, x, torch.ones(1), step_size=0.1, temperature=0.0)


# -- cost -------------------------------------------------------------------------------------------------------------


class Counted(Energy):
    """The energy of data around zero, which counts how often its gradient is asked for."""

    def __init__(self) -> None:
        super().__init__(wide)
        self.asked = 0

    def gradient(self, x: Tensor, sigma: Tensor | float) -> tuple[Tensor, Tensor]:
        self.asked += 1
        return super().gradient(x, sigma)


@pytest.mark.parametrize("name", list(METHODS))
def test_methods_cost_what_they_declare(name: Any, generator: torch.Generator) -> None:
    energy, steps = Counted(), 7
    sampler = PixelSampler(name, steps=steps, final_denoise=False)
    sample_pixels(energy, start(generator, 2), sampler, generator=generator)
    assert energy.asked == METHODS[name].gradients(steps) > 0
    assert pixel_nfe(sampler) == 3 * energy.asked  # a gradient is a forward pass and a backward one of twice the cost
    assert pixel_nfe(replace(sampler, final_denoise=True)) == 3 * energy.asked + 1
    assert pixel_nfe(replace(sampler, final_denoise=True), denoiser="energy") == 3 * energy.asked + 3
    if name != "mala":
        assert pixel_nfe(replace(sampler, drift="denoiser")) == energy.asked
    assert pixel_nfe(replace(sampler, steps=0)) == 0


def test_a_model_costs_what_it_says(tiny_model: DenoisingEBM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward passes of the network are counted; a gradient has one, and a backward pass that counts two."""
    calls = 0
    forward = tiny_model.dae.forward

    def counted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        return forward(*arguments)

    monkeypatch.setattr(tiny_model.dae, "forward", counted)
    sampling = replace(tiny_model.config.sampling, pixel=PixelSampler("dpmpp-2m-sde", steps=5, drift="denoiser"))
    drawn = tiny_model.sample(3, sampler=sampling)
    latent = sampling.semantic.steps
    assert latent == 2 and calls == latent + 5 + 1 and drawn.nfe == 3 * latent + 5 + 1
