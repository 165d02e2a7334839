"""How well scores separate odd sets from a normal one, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from denoising_ebm.ood.metrics import aupr, auroc, fpr_at_tpr

_METRICS: dict[str, Callable[..., float]] = {"auroc": auroc, "aupr": aupr, "fpr_at_95_tpr": fpr_at_tpr}


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
    """How one odd set came out; definitions in `ood.metrics`."""

    name: str
    num: int  #: Images in the odd set.
    auroc: Interval
    aupr: Interval
    fpr_at_95_tpr: Interval


def evaluate(normal: Tensor, odd: Mapping[str, Tensor], *, resamples: int = 200, seed: int = 0) -> list[SetResult]:
    """Compare the scores of normal images with those of each odd set.

    Args:
        normal: Scores of normal images, larger = more odd, shape `(n,)`.
        odd: Name to scores, shape `(m,)`.
        resamples: Bootstrap samples, both sets drawn anew with replacement, for the 2.5 and 97.5 % quantiles.
        seed: Of these draws.

    Raises:
        ValueError: If `resamples` < 2, a set is empty or a score is NaN.
    """
    if resamples < 2:
        raise ValueError(f"resamples must be >= 2, got {resamples}")
    ordinary = normal.detach().double().cpu().numpy()
    results = []
    for name, scores in odd.items():
        outliers = scores.detach().double().cpu().numpy()
        values = {metric: compute(ordinary, outliers) for metric, compute in _METRICS.items()}
        rng = np.random.default_rng(seed)
        draws = np.empty((resamples, len(_METRICS)))
        for i in range(resamples):
            some = ordinary[rng.integers(0, len(ordinary), len(ordinary))]
            others = outliers[rng.integers(0, len(outliers), len(outliers))]
            draws[i] = [compute(some, others) for compute in _METRICS.values()]
        low, high = np.quantile(draws, [0.025, 0.975], axis=0)
        intervals = {
            metric: Interval(value, float(low[i]), float(high[i])) for i, (metric, value) in enumerate(values.items())
        }
        results.append(SetResult(name, len(outliers), **intervals))
    return results
