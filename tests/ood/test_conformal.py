"""The promise about false alarms, exactly where it can be counted and by its distribution where it is random."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from denoising_ebm.ood.conformal import benjamini_hochberg, check_rate, flagged, min_bh_rejections, p_values


def test_p_values_count_calibration_scores_at_least_as_large() -> None:
    calibration = torch.tensor([1.0, 2.0, 2.0, 5.0])
    scores = torch.tensor([0.0, 1.0, 2.0, 3.0, 5.0, 6.0])
    expected = torch.tensor([5, 5, 4, 2, 2, 1], dtype=torch.float64) / 5
    assert torch.equal(p_values(calibration, scores), expected)


@given(st.integers(1, 60), st.integers(1, 99))
def test_ranks_of_exchangeable_scores_are_uniform(num: int, percent: int) -> None:
    """Each of n + 1 distinct scores in turn is the new one: exactly floor(alpha (n + 1)) of them are flagged."""
    scores, alpha = torch.arange(num + 1).double(), percent / 100
    hits = 0
    for i in range(num + 1):
        calibration = torch.cat([scores[:i], scores[i + 1 :]])
        hits += int(p_values(calibration, scores[i : i + 1]) <= alpha + 1e-9)
    assert hits == math.floor(alpha * (num + 1) + 1e-9) <= alpha * (num + 1) + 1e-9


def test_false_alarm_rate_of_random_splits_is_beta_distributed(generator: torch.Generator) -> None:
    """Given the calibration set, the rate over new images is Beta(k, n + 1 - k), k = floor(alpha (n + 1)) (Vovk, 2012)."""
    num, alpha, rates = 99, 0.1, []
    for _ in range(400):
        draws = torch.rand(num + 2000, generator=generator)
        p = p_values(draws[:num], draws[num:])
        rates.append(float(flagged(p, alpha, num).double().mean()))
    assert sum(rates) / len(rates) == pytest.approx(alpha, abs=4 * 0.03 / 400**0.5)
    # The rate over 2,000 new images adds binomial noise to it, a fifth of the spread.
    assert stats.kstest(rates, stats.beta(10, 90).cdf).pvalue > 0.001


@pytest.mark.parametrize(("fpr", "needed"), [(0.05, 19), (0.01, 99), (0.1, 9), (0.3, 3), (0.5, 1)])
def test_too_few_calibration_images_are_refused_with_the_number_needed(fpr: float, needed: int) -> None:
    check_rate(fpr, needed)
    # With exactly as many, an image more anomalous than all of them is flagged.
    assert bool(flagged(p_values(torch.zeros(needed), torch.ones(1)), fpr, needed))
    with pytest.raises(ValueError, match=f"needs at least {needed} calibration images, there are {needed - 1}"):
        check_rate(fpr, needed - 1)


@pytest.mark.parametrize("fpr", [0.0, 1.0, -0.1, float("nan")])
def test_rates_outside_the_unit_interval_are_refused(fpr: float) -> None:
    with pytest.raises(ValueError, match=r"false-alarm rate must be in \(0, 1\)"):
        check_rate(fpr, 100)
    with pytest.raises(ValueError, match=r"false discovery rate must be in \(0, 1\)"):
        benjamini_hochberg(torch.ones(3), fpr)


def test_benjamini_hochberg_against_scipy(generator: torch.Generator) -> None:
    for _ in range(50):
        p = torch.cat([torch.rand(40, generator=generator), 0.02 * torch.rand(10, generator=generator)]).double()
        expected = stats.false_discovery_control(p.numpy(), method="bh") <= 0.1
        assert benjamini_hochberg(p, 0.1).tolist() == expected.tolist()
    assert not benjamini_hochberg(torch.ones(5), 0.1).any()
    assert benjamini_hochberg(torch.empty(0), 0.1).shape == (0,)


@pytest.mark.parametrize(("fdr", "num", "images"), [(0.1, 199, 10_000), (0.1, 199, 20), (0.2, 40, 100), (0.5, 9, 7)])
def test_least_number_of_discoveries(fdr: float, num: int, images: int) -> None:
    least = min_bh_rejections(fdr, num, images)
    for count in (least - 1, least):
        scores = torch.cat([torch.ones(count), torch.full((max(images - count, 0),), -1.0)])
        assert bool(benjamini_hochberg(p_values(torch.zeros(num), scores), fdr).any()) == (count == least <= images)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        ranks = torch.randint(1, max(2, num // 8), (images,), generator=generator)
        count = int(benjamini_hochberg(ranks / (num + 1), fdr).sum())
        assert count == 0 or count >= least


def test_bad_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="no calibration scores"):
        p_values(torch.empty(0), torch.ones(1))
    with pytest.raises(ValueError, match="scores contain NaN"):
        p_values(torch.ones(3), torch.tensor([float("nan")]))
    with pytest.raises(ValueError, match=r"calibration scores must have shape \(n,\)"):
        p_values(torch.ones(3, 1), torch.ones(1))
