"""Linear discriminants between normal images and slight alterations of them, put together as one likelihood ratio."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from denoising_ebm.ood.densities import Fitted, checked
from denoising_ebm.ood.regression import HeteroscedasticRegression

#: Standardised features beyond this count as this: no single one decides alone.
_LIMIT = 6.0


class FisherDiscriminants(Fitted):
    r"""How much an image looks altered, in any of the ways that were shown.

    A density on all features sees an odd image only where it leaves what hundreds of features span. Most odd images leave it
    by little, in directions that alterations point out. Features f are standardised given others (`HeteroscedasticRegression`); with S
    their covariance over normal images and d_k their mean change under alteration k, Fisher's discriminants

        h_k(f) = w_k^T f,    w_k = (S + ridge I)^{-1} d_k,

    are scaled to mean 0 and spread 1 on normal images that S was not estimated on. S of thousands of columns is known poorly
    from thousands of images, so h_k may be the mean of several discriminants, each on a block of columns. Had an odd image
    each of these shifted by `shift` with equal chance, its likelihood ratio to a normal one would be, up to a constant,

        score = log mean_k exp(shift h_k) / shift.

    Args:
        components: Principal components of what the features are judged by.
        ridge: Added to S, in units of the features' variance.
        shift: Size of the shifts expected, in standard deviations.
    """

    def __init__(self, components: int = 5, ridge: float = 5.0, shift: float = 1.0) -> None:
        super().__init__()
        self._expectation, self._ridge, self._shift = HeteroscedasticRegression(components), ridge, shift

    def fit(
        self,
        features: Tensor,
        given: Tensor,
        altered: Tensor,
        altered_given: Tensor,
        blocks: Sequence[Sequence[int]] = (),
    ) -> Self:
        """Find the discriminants.

        Args:
            features: Of normal images in random order, shape `(n, d)`.
            given: What to judge them by, shape `(n, g)`.
            altered: Features of m images as they are, then of the same altered in each way, shape `(1 + kinds, m, d)`.
            altered_given: What to judge these by, shape `(1 + kinds, m, g)`.
            blocks: Columns of each block; one of all columns if there are none.

        Raises:
            ValueError: If a value is not finite, rows differ in number, or there are fewer than 5 normal images.
        """
        features = checked(features)
        if len(features) < 5:
            raise ValueError(f"discriminants need at least 5 normal images, got {len(features)}")
        if len(given) != len(features):
            raise ValueError(f"{len(features)} rows of features, but {len(given)} of what they are judged by")
        if altered.ndim != 3 or altered.shape[2] != features.shape[1] or altered_given.shape[:2] != altered.shape[:2]:
            raise ValueError(
                f"altered must have shape (1 + kinds, m, {features.shape[1]}) and altered_given (1 + kinds, m, g), "
                f"got {tuple(altered.shape)} and {tuple(altered_given.shape)}"
            )
        # A spread of few images is a guess, and the head with the least would decide alone.
        num = max(len(features) // 5, min(len(features) // 2, 30))
        kept, fresh = features[num:], features[:num]
        mean, spread = kept.mean(0), kept.std(0)
        # What varies by rounding alone is constant.
        spread = torch.where(spread > 1e-6 * mean.abs(), spread, torch.ones_like(spread))
        self._expectation.fit((kept - mean) / spread, given[num:])
        self._kept = {"mean": mean, "spread": spread, "centre": torch.zeros_like(mean), "unit": torch.ones_like(mean)}
        usual = self._standard(kept, given[num:])
        unit = usual.std(0)
        self._kept |= {"centre": usual.mean(0), "unit": torch.where(unit > 1e-6, unit, torch.ones_like(unit))}

        usual = self._standard(kept, given[num:])
        pairs = zip(altered, altered_given, strict=True)
        moved = torch.stack([self._standard(checked(table), by).mean(0) for table, by in pairs])
        covariance = torch.cov(usual.mT).reshape(len(mean), len(mean))
        change, fresh = (moved[1:] - moved[0]).mT, self._standard(fresh, given[:num])
        directions = torch.zeros_like(change)
        for block in blocks or [range(len(mean))]:
            columns = torch.tensor(block)
            ridge = self._ridge * torch.eye(len(columns), dtype=torch.float64)
            found = torch.linalg.solve(covariance[columns][:, columns] + ridge, change[columns])
            directions[columns] += found / _spread(fresh[:, columns] @ found)
        scale, offset = _spread(fresh @ directions), -(fresh @ directions).mean(0)
        self._kept |= {"directions": directions / scale, "offset": offset / scale}
        return self

    def heads(self, features: Tensor, given: Tensor) -> Tensor:
        """Return every h_k, float64 `(n, kinds)`: how much, in standard deviations, an image looks altered in that way."""
        self._require()
        features = self._incoming(features, len(self._kept["mean"]))
        heads: Tensor = self._standard(features, given) @ self._kept["directions"] + self._kept["offset"]
        return heads

    def score(self, features: Tensor, given: Tensor) -> Tensor:
        """Return the scores, float64 `(n,)`."""
        heads = self.heads(features, given)
        return (torch.logsumexp(self._shift * heads, dim=1) - math.log(heads.shape[1])) / self._shift

    def _standard(self, features: Tensor, given: Tensor) -> Tensor:
        kept = self._kept
        residual = self._expectation.standardise((features - kept["mean"]) / kept["spread"], given)
        return ((residual - kept["centre"]) / kept["unit"]).clamp(-_LIMIT, _LIMIT)

    def tensors(self) -> dict[str, Tensor]:
        """Return all that fitting found, that of the regressions under `expectation.`."""
        return {**super().tensors(), **self._expectation.nested("expectation.")}

    def load(self, tensors: dict[str, Tensor]) -> Self:
        """Take over what `tensors` returned."""
        return super().load(self._expectation.take("expectation.", tensors))


def _spread(heads: Tensor) -> Tensor:
    return heads.std(0).clamp_min(torch.finfo(torch.float64).tiny)
