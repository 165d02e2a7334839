from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from denoising_ebm.config import NoiseConfig
from denoising_ebm.noise import (
    append_dims,
    draw_sigmas,
    expand_sigma,
    falling_sigmas,
    geometric_sigmas,
    karras_sigmas,
    loss_weights,
)


def test_falling_levels_by_name() -> None:
    assert torch.equal(falling_sigmas("geometric", 4.0, 0.1, 7), geometric_sigmas(4.0, 0.1, 7))
    assert torch.equal(falling_sigmas("karras", 4.0, 0.1, 7), karras_sigmas(4.0, 0.1, 7))
    for kind in ("geometric", "karras"):
        assert falling_sigmas(kind, 4.0, 0.1, 1).tolist() == pytest.approx([0.1])  # type: ignore[arg-type]


def test_papers_grid() -> None:
    sigmas = geometric_sigmas(1.0, 0.01, 128)
    expected = [0.01 ** (i / 127) for i in range(128)]
    assert sigmas.tolist() == pytest.approx(expected, rel=1e-6)


@given(low=st.floats(1e-3, 1.0), ratio=st.floats(1.01, 1e3), num=st.integers(2, 300))
def test_grids_fall_with_exact_ends(low: float, ratio: float, num: int) -> None:
    high = low * ratio
    for sigmas in (geometric_sigmas(high, low, num), karras_sigmas(high, low, num)):
        assert len(sigmas) == num
        assert sigmas[0].item() == pytest.approx(high, rel=2e-7)
        assert sigmas[-1].item() == pytest.approx(low, rel=2e-7)
        # Neighbours of a dense grid may round to the same float32.
        assert bool((sigmas.diff() <= 0).all())
        if num < 50:
            assert bool((sigmas.diff() < 0).all())


def test_a_grid_of_one_level_is_the_last() -> None:
    assert geometric_sigmas(5.0, 0.1, 1).tolist() == pytest.approx([0.1])


def test_karras_formula() -> None:
    high, low = 80 ** (1 / 7), 0.002 ** (1 / 7)
    expected = [(high + i / 17 * (low - high)) ** 7 for i in range(18)]
    assert karras_sigmas(80, 0.002, 18).tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [((1.0, 0.0, 3), "sigma_min"), ((0.1, 0.2, 3), "sigma_max"), ((1.0, 0.1, 0), "number of noise levels")],
)
def test_bad_grids_are_refused(arguments: tuple[float, float, int], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        geometric_sigmas(*arguments)


def test_grid_draw_is_uniform_over_the_levels(generator: torch.Generator) -> None:
    config = NoiseConfig(sigma_min=0.1, sigma_max=1.0, num_sigmas=10)
    draws = draw_sigmas(config, 20_000, generator)
    counts = (draws[:, None] == geometric_sigmas(1.0, 0.1, 10)).sum(0)
    assert int(counts.sum()) == 20_000  # only levels of the grid
    # Binomial standard error sqrt(n p (1 - p)) = 42; 5 of them.
    assert bool(((counts - 2000).abs() < 5 * math.sqrt(20_000 * 0.1 * 0.9)).all())


def test_lognormal_draw_has_its_quantiles_and_is_clipped(generator: torch.Generator) -> None:
    config = NoiseConfig(sigma_min=0.05, sigma_max=2.0, draw="lognormal", p_mean=-1.2, p_std=1.2)
    draws = draw_sigmas(config, 40_000, generator)
    normal = torch.distributions.Normal(-1.2, 1.2)
    for level in (0.05, 0.1, 0.3, 1.0, 1.999):
        expected = float(normal.cdf(torch.tensor(math.log(level))))
        share = float((draws <= level + 1e-7).float().mean())
        assert share == pytest.approx(expected, abs=5 * math.sqrt(expected * (1 - expected) / 40_000))
    assert float(draws.min()) == pytest.approx(0.05)
    assert float(draws.max()) == pytest.approx(2.0)


def test_a_seed_gives_the_same_draw() -> None:
    config = NoiseConfig(draw="lognormal")
    first, second = (draw_sigmas(config, 5, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)


def test_weights() -> None:
    sigma = torch.tensor([0.1, 1.0, 5.0], dtype=torch.float64)
    assert torch.equal(loss_weights("uniform", sigma, 0.5), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(loss_weights("energy", sigma, 0.5), 0.5 / sigma**2)
    # EDM's weight is 1 / c_out^2 with c_out = sigma sigma_data / sqrt(sigma^2 + sigma_data^2).
    c_out = sigma * 0.5 / (sigma**2 + 0.25).sqrt()
    torch.testing.assert_close(loss_weights("edm", sigma, 0.5) * c_out**2, torch.ones_like(sigma))


def test_sigma_of_any_form() -> None:
    x = torch.zeros(3, 1, 2, 2)
    assert expand_sigma(0.5, x).tolist() == [0.5, 0.5, 0.5]
    assert expand_sigma(torch.tensor(0.5), x).tolist() == [0.5, 0.5, 0.5]
    assert expand_sigma(torch.tensor([1.0, 2.0, 3.0]), x).tolist() == [1.0, 2.0, 3.0]
    assert expand_sigma(0.1, x.double()).dtype == torch.float64
    assert expand_sigma(0.1, x.bfloat16()).dtype == torch.float32
    assert append_dims(torch.tensor([1.0, 2.0, 3.0]), x).shape == (3, 1, 1, 1)
    with pytest.raises(ValueError, match=r"sigma must be a number or have shape \(3,\), got \(2,\)"):
        expand_sigma(torch.ones(2), x)
