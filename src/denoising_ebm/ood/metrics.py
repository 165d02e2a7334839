"""How well a score separates OOD images from normal ones, by scikit-learn, with bootstrap intervals.

Every function takes the scores of n in-distribution images, shape `(n,)`, and those of m OOD images, shape `(m,)`, and
raises a ValueError if either is empty, of another shape, or contains NaN. High = anomalous, and OOD images are the positive
class, as in pytorch-ood. Only the order of the scores matters, so they are passed on as ranks: torchmetrics, for one, sends
values outside [0, 1] through a sigmoid first, which ties all large energies at 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

Scores: TypeAlias = npt.NDArray[Any] | Tensor


def auroc(in_scores: Scores, out_scores: Scores) -> float:
    r"""Chance that a random OOD image scores higher than a random in-distribution one; a tie counts one half.

    $$P(s_{out} > s_{in}) + \tfrac12 P(s_{out} = s_{in})$$

    Returns:
        A number in [0, 1]; 0.5 is chance, 1 perfect separation.
    """
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(*_labelled_ranks(in_scores, out_scores)))


def fpr_at_tpr(in_scores: Scores, out_scores: Scores, tpr: float = 0.95) -> float:
    """Share of in-distribution images flagged at the threshold which catches a share `tpr` of the OOD images.

    An image is flagged if its score is at least the threshold, which is the highest one that catches at least `tpr` of the
    OOD images. Swapping the classes gives another number: papers that call in-distribution the positive class report the
    share of OOD images missed when 95 % of in-distribution images are accepted.

    Raises:
        ValueError: If `tpr` is not in (0, 1].
    """
    if not 0 < tpr <= 1:
        raise ValueError(f"tpr must be in (0, 1], got {tpr}")
    inside = _as_array(in_scores, "in_scores")
    outside = np.sort(_as_array(out_scores, "out_scores"))[::-1]
    # 0.95 * 20 may come out a rounding error above 19; that must not ask for a twentieth image.
    caught = max(1, math.ceil(tpr * outside.size - 1e-9))
    return float(np.mean(inside >= outside[caught - 1]))


def roc_curve(in_scores: Scores, out_scores: Scores) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Points of the ROC curve: share of in-distribution images flagged, and of OOD images caught, from (0, 0) to (1, 1).

    Returns:
        False alarms and catches at every distinct threshold, falling, each of shape `(thresholds + 1,)`. The area under
        the straight lines between them is `auroc`.
    """
    from sklearn.metrics import roc_curve as curve

    false_alarms, caught, _ = curve(*_labelled_ranks(in_scores, out_scores), drop_intermediate=False)
    return false_alarms, caught


def aupr(in_scores: Scores, out_scores: Scores) -> float:
    r"""Average precision with the OOD images as positives (AUPR-OUT).

    $$\sum_k (R_k - R_{k-1}) P_k$$

    over the distinct thresholds in falling order, with recall R and precision P. Chance level is the share of OOD images,
    m / (n + m), so values are comparable only at equal proportions.

    Returns:
        A number in (0, 1].
    """
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(*_labelled_ranks(in_scores, out_scores)))


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f}-{self.high:.3f})"


@dataclass(frozen=True)
class SetResult:
    """How well one OOD set is told from the normal images."""

    name: str
    num: int  #: Images in the OOD set.
    auroc: Interval
    aupr: Interval
    fpr_at_95_tpr: Interval


_METRICS: dict[str, Callable[..., float]] = {"auroc": auroc, "aupr": aupr, "fpr_at_95_tpr": fpr_at_tpr}


def evaluate(normal: Tensor, ood: Mapping[str, Tensor], *, resamples: int = 200, seed: int = 0) -> list[SetResult]:
    """Compare the scores of normal images with those of each OOD set.

    Args:
        normal: Scores of normal images, larger = more anomalous, shape `(n,)`.
        ood: Name to scores, shape `(m,)`.
        resamples: Bootstrap samples, both sets drawn anew with replacement, for the 2.5 and 97.5 % quantiles.
        seed: Of these draws.

    Raises:
        ValueError: If `resamples` < 2, a set is empty or a score is NaN.
    """
    if resamples < 2:
        raise ValueError(f"resamples must be >= 2, got {resamples}")
    inside = _as_array(normal, "normal")
    results = []
    for name, scores in ood.items():
        outside = _as_array(scores, name)
        rng = np.random.default_rng(seed)
        samples = [(_resampled(inside, rng), _resampled(outside, rng)) for _ in range(resamples)]
        intervals = {}
        for metric, compute in _METRICS.items():
            low, high = np.quantile([compute(*sample) for sample in samples], [0.025, 0.975])
            intervals[metric] = Interval(compute(inside, outside), float(low), float(high))
        results.append(SetResult(name, len(outside), **intervals))
    return results


def _resampled(scores: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    return scores[rng.integers(0, len(scores), len(scores))]


def _labelled_ranks(in_scores: Scores, out_scores: Scores) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return labels, 1 for OOD, and the ranks of all scores; equal scores, and only these, have equal ranks."""
    from scipy.stats import rankdata

    inside, outside = _as_array(in_scores, "in_scores"), _as_array(out_scores, "out_scores")
    labels = np.repeat([0, 1], [inside.size, outside.size])
    return labels, rankdata(np.concatenate([inside, outside]))


def _as_array(scores: Scores, name: str) -> npt.NDArray[np.float64]:
    values = scores.detach().double().cpu().numpy() if isinstance(scores, Tensor) else scores
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} must be one-dimensional and not empty, got shape {array.shape}")
    if np.isnan(array).any():
        raise ValueError(f"{name} contains {int(np.isnan(array).sum())} NaN values")
    return array
