"""How well a score separates odd images from ordinary ones.

Every function takes the scores of in-distribution images and those of outliers. High = odd, and the outliers are the
positive class, as in pytorch-ood. Only the order of the scores matters. It is compared in float64 on the scores as they
are: torchmetrics passes values outside [0, 1] through a sigmoid first, which ties all large energies at 1.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

Scores: TypeAlias = npt.NDArray[Any] | Tensor


def auroc(in_scores: Scores, out_scores: Scores) -> float:
    r"""Chance that a random outlier scores higher than a random ordinary image; a tie counts one half.

    $$P(s_{out} > s_{in}) + \tfrac12 P(s_{out} = s_{in})$$

    The Mann-Whitney statistic over the number of pairs, equal to the area under the ROC curve.

    Args:
        in_scores: Scores of in-distribution images, shape `(n,)`.
        out_scores: Scores of outliers, shape `(m,)`.

    Returns:
        A number in [0, 1]; 0.5 is chance, 1 perfect separation.

    Raises:
        ValueError: If either argument is empty, not one-dimensional, or contains NaN.
    """
    ordinary = np.sort(_as_array(in_scores, "in_scores"))
    outliers = _as_array(out_scores, "out_scores")
    below = np.searchsorted(ordinary, outliers, side="left").astype(np.int64)
    not_above = np.searchsorted(ordinary, outliers, side="right").astype(np.int64)
    return float((below.sum() + not_above.sum()) / (2 * ordinary.size * outliers.size))


def fpr_at_tpr(in_scores: Scores, out_scores: Scores, tpr: float = 0.95) -> float:
    """Share of ordinary images called odd at the threshold which catches a share `tpr` of the outliers.

    An image is called odd if its score is at least the threshold, which is the highest one that catches at least `tpr`
    of the outliers. Swapping the classes gives another number: papers that call in-distribution the positive class
    report the share of outliers missed when 95 % of ordinary images are accepted.

    Args:
        in_scores: Scores of in-distribution images, shape `(n,)`.
        out_scores: Scores of outliers, shape `(m,)`.
        tpr: Share of outliers to catch, in (0, 1].

    Returns:
        A number in [0, 1]; low is good.

    Raises:
        ValueError: If `tpr` is not in (0, 1], or either argument is empty, not one-dimensional, or contains NaN.
    """
    if not 0 < tpr <= 1:
        raise ValueError(f"tpr must be in (0, 1], got {tpr}")
    ordinary = _as_array(in_scores, "in_scores")
    outliers = np.sort(_as_array(out_scores, "out_scores"))[::-1]
    # 0.95 * 20 may come out a rounding error above 19; that must not ask for a twentieth outlier.
    caught = max(1, math.ceil(tpr * outliers.size - 1e-9))
    return float(np.mean(ordinary >= outliers[caught - 1]))


def roc_curve(in_scores: Scores, out_scores: Scores) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Points of the ROC curve: share of ordinary images called odd, and share of outliers caught, from (0, 0) to (1, 1).

    Args:
        in_scores: Scores of in-distribution images, shape `(n,)`.
        out_scores: Scores of outliers, shape `(m,)`.

    Returns:
        False alarms and catches at every distinct threshold, falling, each of shape `(thresholds + 1,)`. The area under
        the straight lines between them is `auroc`.

    Raises:
        ValueError: If either argument is empty, not one-dimensional, or contains NaN.
    """
    ordinary = np.sort(_as_array(in_scores, "in_scores"))
    outliers = np.sort(_as_array(out_scores, "out_scores"))
    thresholds = np.unique(np.concatenate([ordinary, outliers]))[::-1]
    shares = [1 - np.searchsorted(scores, thresholds, side="left") / scores.size for scores in (ordinary, outliers)]
    return np.append(0.0, shares[0]), np.append(0.0, shares[1])


def aupr(in_scores: Scores, out_scores: Scores) -> float:
    r"""Average precision with the outliers as positives (AUPR-OUT).

    $$\sum_k (R_k - R_{k-1}) P_k$$

    over the distinct thresholds in falling order, with recall R and precision P. Chance level is the share of outliers,
    m / (n + m), so values are comparable only at equal proportions.

    Args:
        in_scores: Scores of in-distribution images, shape `(n,)`.
        out_scores: Scores of outliers, shape `(m,)`.

    Returns:
        A number in (0, 1].

    Raises:
        ValueError: If either argument is empty, not one-dimensional, or contains NaN.
    """
    ordinary = np.sort(_as_array(in_scores, "in_scores"))
    outliers = np.sort(_as_array(out_scores, "out_scores"))
    thresholds, counts = np.unique(outliers, return_counts=True)
    caught = outliers.size - np.searchsorted(outliers, thresholds, side="left")
    false_alarms = ordinary.size - np.searchsorted(ordinary, thresholds, side="left")
    return float(np.sum(counts / outliers.size * caught / (caught + false_alarms)))


def _as_array(scores: Scores, name: str) -> npt.NDArray[np.float64]:
    values = scores.detach().double().cpu().numpy() if isinstance(scores, Tensor) else scores
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} must be one-dimensional and not empty, got shape {array.shape}")
    if np.isnan(array).any():
        raise ValueError(f"{name} contains {int(np.isnan(array).sum())} NaN values")
    return array
