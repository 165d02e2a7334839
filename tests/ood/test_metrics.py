from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu, norm
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from denoising_ebm.ood import metrics
from denoising_ebm.ood.metrics import aupr, auroc, evaluate, fpr_at_tpr


def random_scores(seed: int, decimals: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping scores of different counts; few decimals give many ties."""
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1, 137).round(decimals), rng.normal(0.8, 1.5, 211).round(decimals)


def labelled(inside: np.ndarray, outside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.r_[np.zeros(len(inside)), np.ones(len(outside))], np.r_[inside, outside]


def test_separated_scores_are_perfect():
    inside, outside = np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0])
    assert auroc(inside, outside) == 1.0
    assert aupr(inside, outside) == 1.0
    assert fpr_at_tpr(inside, outside) == 0.0


def test_a_case_counted_by_hand():
    # Pairs (out above in): 2 is above 1; 4 is above 1 and 3. Three of four.
    inside, outside = np.array([1.0, 3.0]), np.array([2.0, 4.0])
    assert auroc(inside, outside) == 0.75
    # Thresholds 4: recall 1/2 at precision 1; 2: recall 1 at precision 2/3.
    assert aupr(inside, outside) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    # To catch 95 % of two OOD images both must be caught: threshold 2, and 3 is a false alarm.
    assert fpr_at_tpr(inside, outside) == 0.5
    assert fpr_at_tpr(inside, outside, tpr=0.5) == 0.0


def test_ties_count_one_half():
    assert auroc(np.array([1.0, 1.0]), np.array([1.0])) == 0.5
    assert auroc(np.array([0.0, 1.0]), np.array([1.0, 2.0])) == (1 + 0.5 + 1 + 1) / 4
    assert fpr_at_tpr(np.array([1.0, 1.0]), np.array([1.0])) == 1.0
    assert aupr(np.array([1.0, 1.0]), np.array([1.0])) == pytest.approx(1 / 3)


@pytest.mark.parametrize("decimals", [0, 6])
def test_negation_gives_the_complement(decimals: int):
    inside, outside = random_scores(0, decimals)
    assert auroc(-inside, -outside) == pytest.approx(1 - auroc(inside, outside), abs=1e-12)


@pytest.mark.parametrize("decimals", [0, 1, 6])
def test_agrees_with_mann_and_whitney_and_with_scikit_learn_on_scores(decimals: int):
    inside, outside = random_scores(1, decimals)
    labels, scores = labelled(inside, outside)
    statistic = mannwhitneyu(outside, inside).statistic
    assert auroc(inside, outside) == pytest.approx(statistic / (inside.size * outside.size), abs=1e-12)
    assert auroc(inside, outside) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert aupr(inside, outside) == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    for tpr in (0.5, 0.8, 0.95, 1.0):
        assert fpr_at_tpr(inside, outside, tpr) == pytest.approx(false[true >= tpr].min(), abs=1e-12)


def test_large_energies_keep_their_order():
    # Scores of this size come out equal where a sigmoid is applied first.
    assert auroc(torch.tensor([1000.0, 1001.0]), torch.tensor([1002.0, 1003.0])) == 1.0
    # Neighbours in float64, and the largest of all.
    assert auroc(np.array([1e300, np.nextafter(1e300, 0)]), np.array([np.nextafter(1e300, np.inf), np.inf])) == 1.0


def test_tensors_and_arrays_agree():
    inside, outside = random_scores(2)
    tensors = torch.from_numpy(inside).requires_grad_(), torch.from_numpy(outside)
    for metric in (auroc, fpr_at_tpr, aupr):
        assert metric(*tensors) == metric(inside, outside)


def test_nineteen_of_twenty_are_enough():
    outside = np.arange(20.0)
    assert fpr_at_tpr(np.array([0.5]), outside, tpr=0.95) == 0.0
    assert fpr_at_tpr(np.array([0.5]), outside, tpr=0.96) == 1.0


def test_refuses_what_it_cannot_order():
    good = np.array([0.0, 1.0])
    with pytest.raises(ValueError, match="out_scores contains 1 NaN"):
        auroc(good, np.array([np.nan, 1.0]))
    with pytest.raises(ValueError, match="in_scores must be one-dimensional and not empty"):
        aupr(np.array([]), good)
    with pytest.raises(ValueError, match="in_scores must be one-dimensional"):
        aupr(good[None], good)
    with pytest.raises(ValueError, match="tpr must be in"):
        fpr_at_tpr(good, good, tpr=0.0)


def test_roc_curve_has_the_area_of_auroc():
    inside, outside = random_scores(3, decimals=1)
    false_alarms, caught = metrics.roc_curve(inside, outside)
    assert (false_alarms[0], caught[0]) == (0, 0) and (false_alarms[-1], caught[-1]) == (1, 1)
    assert len(caught) == 1 + len(np.unique(np.r_[inside, outside]))
    area = torch.trapezoid(torch.from_numpy(caught), torch.from_numpy(false_alarms))
    assert float(area) == pytest.approx(auroc(inside, outside), abs=1e-12)


def test_bootstrap_intervals_have_the_width_of_the_standard_error():
    """DeLong et al. (1988): the variance of an AUROC from the spread of each image's share of pairs won."""
    rng = np.random.default_rng(4)
    inside, outside = rng.normal(0, 1, 150), rng.normal(1, 1, 250)
    (result,) = evaluate(torch.from_numpy(inside), {"far": torch.from_numpy(outside)}, resamples=1000, seed=1)
    won = outside[:, None] > inside
    error = (won.mean(0).var(ddof=1) / 150 + won.mean(1).var(ddof=1) / 250) ** 0.5
    width = 2 * norm.ppf(0.975) * error
    assert (result.name, result.num) == ("far", 250) and result.auroc.value == auroc(inside, outside)
    # Of 1,000 resamples each end has a standard error of some 5 % of half the width.
    assert result.auroc.high - result.auroc.low == pytest.approx(width, rel=0.15)
    for interval in (result.auroc, result.aupr, result.fpr_at_95_tpr):
        assert 0 <= interval.low < interval.value < interval.high <= 1
    assert str(result.auroc) == f"{result.auroc.value:.3f} ({result.auroc.low:.3f}-{result.auroc.high:.3f})"
    with pytest.raises(ValueError, match="resamples must be >= 2, got 1"):
        evaluate(torch.zeros(3), {"a": torch.zeros(3)}, resamples=1)
