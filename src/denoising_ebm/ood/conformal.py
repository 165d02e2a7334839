r"""A promise about false alarms: split-conformal p-values (Vovk et al., 2005; Bates et al., 2023).

A detector's scores mean nothing by themselves. Beside the scores of n calibration images, which are normal and had no part
in fitting, the score s of a new image gets

    p(s) = (1 + #{i : s_i >= s}) / (n + 1).

If the new image is as normal as they are (exchangeable with them), p is at most alpha with a chance of at most alpha, for
every alpha and whatever the model: flagging p <= alpha raises at most a share alpha of false alarms in expectation.

Images that come in groups (frames of a scene, slices of a patient) are not exchangeable, but the groups are. Then with K
groups, each of which has one say, however many images it has,

    p(s) = (1 + sum_k #{i in k : s_i >= s} / #k) / (K + 1)

keeps the promise for an image of a new group (Lee, Barber & Willett, 2023, hierarchical conformal prediction).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

# Rounding must not decide whether 5 of 100 is at most 5 %.
_SLACK = 1e-9


def p_values(calibration: Tensor, scores: Tensor, *, groups: Tensor | None = None) -> Tensor:
    """Return the conformal p-value of each score, float64, shape `(m,)`, in (0, 1]; a tie counts as "at least".

    Args:
        calibration: Scores of normal images kept out of fitting, large = anomalous, shape `(n,)`.
        scores: Scores of new images, shape `(m,)`.
        groups: Number of the group of each calibration image, shape `(n,)`; if None each is one of its own.

    Raises:
        ValueError: If there are no calibration scores, a value is NaN or groups are not as many as scores.
    """
    calibration, scores = _checked(calibration, "calibration scores"), _checked(scores, "scores")
    if len(calibration) == 0:
        raise ValueError("no calibration scores")
    calibration, order = calibration.sort()
    below = torch.searchsorted(calibration, scores, side="left")
    if groups is None:
        return (1 + len(calibration) - below).double() / (len(calibration) + 1)
    if groups.shape != calibration.shape:
        raise ValueError(f"groups must have shape ({len(calibration)},), got {tuple(groups.shape)}")
    _, numbers, sizes = np.unique(groups.numpy(), return_inverse=True, return_counts=True)
    weights = torch.from_numpy(1 / sizes[numbers])[order]
    above = torch.cat([weights.flip(0).cumsum(0).flip(0), torch.zeros(1).double()])
    return ((1 + above[below]) / (len(sizes) + 1)).clamp_max(1)


def flagged(p: Tensor, fpr: float, num_calibration: int, unit: str = "images") -> Tensor:
    """Return which images to flag so that at most a share `fpr` of normal ones is, bool, shape of `p`.

    Args:
        p: Conformal p-values.
        fpr: The false-alarm rate to keep, in (0, 1).
        num_calibration: How many calibration images, or groups of them, the p-values were computed with.
        unit: Which of both, for the error.

    Raises:
        ValueError: If `fpr` is not in (0, 1), or so small that no image could be flagged with so few calibration images.
    """
    check_rate(fpr, num_calibration, unit)
    return p <= fpr + _SLACK


def check_rate(fpr: float, num_calibration: int, unit: str = "images") -> None:
    """Refuse a false-alarm rate that `num_calibration` images, or groups of images by the name of `unit`, cannot promise.

    Raises:
        ValueError: If `fpr` is not in (0, 1), or `num_calibration` < 1 / fpr - 1.
    """
    if not 0 < fpr < 1:
        raise ValueError(f"the false-alarm rate must be in (0, 1), got {fpr:g}")
    needed = math.ceil(1 / fpr - 1 - _SLACK)
    if num_calibration < needed:
        raise ValueError(
            f"a false-alarm rate of {fpr:g} needs at least {needed} calibration {unit}, there are {num_calibration}"
        )


def fpr_interval(fpr: float, num_calibration: int, num_new: int, *, share: float = 0.95) -> tuple[float, float]:
    """Return between which shares of `num_new` normal images are flagged at rate `fpr`, with a chance of `share`.

    The calibration images are random too: given n of them, k = floor((n + 1) fpr), the number of false alarms is
    beta-binomial with parameters k and n + 1 - k (Vovk, 2012).

    Raises:
        ValueError: As `check_rate`.
    """
    from scipy.stats import betabinom

    check_rate(fpr, num_calibration)
    allowed = math.floor((num_calibration + 1) * fpr + _SLACK)
    count = betabinom(num_new, allowed, num_calibration + 1 - allowed)
    low, high = count.ppf([(1 - share) / 2, (1 + share) / 2]) / num_new
    return float(low), float(high)


def benjamini_hochberg(p: Tensor, fdr: float) -> Tensor:
    """Return which images of a batch to flag so that at most a share `fdr` of those flagged are normal, in expectation.

    Conformal p-values that share their calibration images depend on each other in the way that the procedure allows
    (Bates et al., 2023, theorem 2).

    Args:
        p: Conformal p-values of the batch, shape `(m,)`.
        fdr: False discovery rate, in (0, 1).

    Returns:
        bool, shape `(m,)`.

    Raises:
        ValueError: If `fdr` is not in (0, 1) or a value is NaN.
    """
    if not 0 < fdr < 1:
        raise ValueError(f"the false discovery rate must be in (0, 1), got {fdr:g}")
    from scipy.stats import false_discovery_control

    p = _checked(p, "p-values")
    return torch.from_numpy(false_discovery_control(p.numpy())) <= fdr + _SLACK if len(p) else torch.zeros(0).bool()


def min_bh_rejections(fdr: float, num_calibration: int, num_images: int) -> int:
    """Return how many of a batch Benjamini-Hochberg flags at least, if it flags any.

    So many suffice whose scores are above all of calibration, where the p-value is the smallest, 1 / (num_calibration + 1).

    Args:
        fdr: False discovery rate, in (0, 1).
        num_calibration: Calibration images.
        num_images: Images of the batch.
    """
    return max(1, math.ceil(num_images / (fdr * (num_calibration + 1)) - _SLACK))


def _checked(values: Tensor, name: str) -> Tensor:
    if values.ndim != 1:
        raise ValueError(f"{name} must have shape (n,), got {tuple(values.shape)}")
    values = values.detach().double().cpu()
    if bool(values.isnan().any()):
        raise ValueError(f"{name} contain NaN")
    return values
