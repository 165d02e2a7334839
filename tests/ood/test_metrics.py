from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from denoising_ebm.ood.metrics import aupr, auroc, fpr_at_tpr


def random_scores(seed: int, decimals: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping scores of different counts; few decimals give many ties."""
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1, 137).round(decimals), rng.normal(0.8, 1.5, 211).round(decimals)


def labelled(ordinary: np.ndarray, outliers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.r_[np.zeros(len(ordinary)), np.ones(len(outliers))], np.r_[ordinary, outliers]


def test_separated_scores_are_perfect():
    ordinary, outliers = np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0])
    assert auroc(ordinary, outliers) == 1.0
    assert aupr(ordinary, outliers) == 1.0
    assert fpr_at_tpr(ordinary, outliers) == 0.0


def test_a_case_counted_by_hand():
    # Pairs (out above in): 2 is above 1; 4 is above 1 and 3. Three of four.
    ordinary, outliers = np.array([1.0, 3.0]), np.array([2.0, 4.0])
    assert auroc(ordinary, outliers) == 0.75
    # Thresholds 4: recall 1/2 at precision 1; 2: recall 1 at precision 2/3.
    assert aupr(ordinary, outliers) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    # To catch 95 % of two outliers both must be caught: threshold 2, and 3 is a false alarm.
    assert fpr_at_tpr(ordinary, outliers) == 0.5
    assert fpr_at_tpr(ordinary, outliers, tpr=0.5) == 0.0


def test_ties_count_one_half():
    assert auroc(np.array([1.0, 1.0]), np.array([1.0])) == 0.5
    assert auroc(np.array([0.0, 1.0]), np.array([1.0, 2.0])) == (1 + 0.5 + 1 + 1) / 4
    assert fpr_at_tpr(np.array([1.0, 1.0]), np.array([1.0])) == 1.0
    assert aupr(np.array([1.0, 1.0]), np.array([1.0])) == pytest.approx(1 / 3)


@pytest.mark.parametrize("decimals", [0, 6])
def test_negation_gives_the_complement(decimals: int):
    ordinary, outliers = random_scores(0, decimals)
    assert auroc(-ordinary, -outliers) == pytest.approx(1 - auroc(ordinary, outliers), abs=1e-12)


@pytest.mark.parametrize("decimals", [0, 1, 6])
def test_agrees_with_scikit_learn(decimals: int):
    ordinary, outliers = random_scores(1, decimals)
    labels, scores = labelled(ordinary, outliers)
    assert auroc(ordinary, outliers) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert aupr(ordinary, outliers) == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    for tpr in (0.5, 0.8, 0.95, 1.0):
        assert fpr_at_tpr(ordinary, outliers, tpr) == pytest.approx(false[true >= tpr].min(), abs=1e-12)


def test_large_energies_keep_their_order():
    # Scores of this size come out equal where a sigmoid is applied first.
    assert auroc(torch.tensor([1000.0, 1001.0]), torch.tensor([1002.0, 1003.0])) == 1.0


def test_tensors_and_arrays_agree():
    ordinary, outliers = random_scores(2)
    tensors = torch.from_numpy(ordinary).requires_grad_(), torch.from_numpy(outliers)
    for metric in (auroc, fpr_at_tpr, aupr):
        assert metric(*tensors) == metric(ordinary, outliers)


def test_nineteen_of_twenty_outliers_are_enough():
    outliers = np.arange(20.0)
    assert fpr_at_tpr(np.array([0.5]), outliers, tpr=0.95) == 0.0
    assert fpr_at_tpr(np.array([0.5]), outliers, tpr=0.96) == 1.0


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
