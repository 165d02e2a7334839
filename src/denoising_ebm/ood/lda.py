"""Fisher's linear discriminants between normal images and corruptions of them, put together as one likelihood ratio."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from denoising_ebm.ood.regression import CovariateAdjustment, Fitted, checked


@dataclass(frozen=True)
class FisherDiscriminants(Fitted):
    r"""How far an image lies in the direction of each corruption that was shown.

    A density on all features sees an anomalous image only where it leaves what hundreds of features span. Most anomalous
    images leave it by little, in directions that corruptions point out. Features are adjusted for covariates
    (`CovariateAdjustment`); with f the residuals, S their covariance over normal images and d_k their mean change under
    corruption k, Fisher's discriminants (1936)

        p_k(f) = w_k^T f,    w_k = (S + ridge I)^{-1} d_k,

    are scaled to mean 0 and standard deviation 1 on normal images that S was not estimated on. S of thousands of columns is
    known poorly from thousands of images, so p_k may be the mean of several discriminants, each on a block of columns.

    Attributes:
        adjustment: From features and covariates to residuals.
        directions: w_k as columns, scaled, shape `(d, kinds)`.
        offset: Added to the projections, shape `(kinds,)`.
    """

    adjustment: CovariateAdjustment
    directions: Tensor
    offset: Tensor

    @classmethod
    def fit(
        cls,
        features: Tensor,
        covariates: Tensor,
        corrupted: Tensor,
        corrupted_covariates: Tensor,
        *,
        blocks: Sequence[Sequence[int]] = (),
        components: int = 5,
        ridge: float = 5.0,
    ) -> Self:
        """Find the directions.

        Args:
            features: Of normal images in random order, shape `(n, d)`.
            covariates: Of the same images, shape `(n, g)`.
            corrupted: Features of m images as they are, then of the same under each corruption, shape `(1 + kinds, m, d)`.
            corrupted_covariates: Of these, shape `(1 + kinds, m, g)`.
            blocks: Columns of each block; one of all columns if there are none.
            components: Principal components of the covariates.
            ridge: Added to S, in units of the residuals' variance.

        Raises:
            ValueError: If a value is not finite, rows differ in number, or there are fewer than 5 normal images.
        """
        features = checked(features)
        _check_shapes(features, covariates, corrupted, corrupted_covariates)
        # The scale of few images is a guess, and the direction with the least would decide alone.
        num_held = max(len(features) // 5, min(len(features) // 2, 30))
        train, held_out = features[num_held:], features[:num_held]

        # 1 and 2: standardise, and regress on the covariates.
        adjustment = CovariateAdjustment.fit(train, covariates[num_held:], components=components)
        normal, fresh = adjustment(train, covariates[num_held:]), adjustment(held_out, covariates[:num_held])
        tables = zip(corrupted, corrupted_covariates, strict=True)
        clean, *changed = (adjustment(table, by).mean(0) for table, by in tables)

        # 3: solve for the directions, block by block; each block has the same say.
        covariance = torch.cov(normal.mT).reshape(features.shape[1], -1)
        changes = torch.stack([mean - clean for mean in changed], dim=1)
        directions = torch.zeros_like(changes)
        for block in map(torch.tensor, blocks or [range(features.shape[1])]):
            found = _solve(covariance[block][:, block], changes[block], ridge)
            directions[block] += found / _spread(fresh[:, block] @ found)

        # 4: set the scale on images that the directions do not know.
        projections = fresh @ directions
        scale = _spread(projections)
        return cls(adjustment, directions / scale, -projections.mean(0) / scale)

    def projections(self, features: Tensor, covariates: Tensor) -> Tensor:
        """Return every p_k, float64 `(n, kinds)`: how many standard deviations an image lies in each direction.

        Raises:
            ValueError: If the tables have other columns than in `fit`, or a value is not finite.
        """
        projections: Tensor = self.adjustment(features, covariates) @ self.directions + self.offset
        return projections


def log_mean_exp(projections: Tensor, shift: float = 1.0) -> Tensor:
    r"""Return the score of projections, shape `(n, kinds)`, as `(n,)`.

    Had an anomalous image each of its projections shifted by `shift` with equal chance, its likelihood ratio to a normal one
    would be, up to a constant, the exponential of `shift` times

        score = log mean_k exp(shift p_k) / shift.
    """
    return (torch.logsumexp(shift * projections, dim=1) - math.log(projections.shape[1])) / shift


def _solve(covariance: Tensor, changes: Tensor, ridge: float) -> Tensor:
    solution: Tensor = torch.linalg.solve(covariance + ridge * torch.eye(len(covariance), dtype=torch.float64), changes)
    return solution


def _spread(projections: Tensor) -> Tensor:
    return projections.std(0).clamp_min(torch.finfo(torch.float64).tiny)


def _check_shapes(features: Tensor, covariates: Tensor, corrupted: Tensor, corrupted_covariates: Tensor) -> None:
    if len(features) < 5:
        raise ValueError(f"discriminants need at least 5 normal images, got {len(features)}")
    if len(covariates) != len(features):
        raise ValueError(f"{len(features)} rows of features, but {len(covariates)} of covariates")
    columns = features.shape[1]
    if corrupted.ndim != 3 or corrupted.shape[2] != columns or corrupted_covariates.shape[:2] != corrupted.shape[:2]:
        raise ValueError(
            f"corrupted must have shape (1 + kinds, m, {columns}) and corrupted_covariates (1 + kinds, m, g), "
            f"got {tuple(corrupted.shape)} and {tuple(corrupted_covariates.shape)}"
        )
