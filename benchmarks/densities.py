"""Densities on features of normal images, which the package's detector was chosen against. Larger score = more anomalous.

Each is fitted to a table, shape (n, d), in float64 on the CPU, by scikit-learn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import torch
from sklearn.covariance import EmpiricalCovariance
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from denoising_ebm.ood.regression import HeteroscedasticRegression, checked

Features = Mapping[str, Tensor]


class Density(Protocol):
    """What the grid needs of a density."""

    def fit(self, features: Tensor) -> Self:
        """Fit to normal images, shape `(n, d)`."""
        ...

    def score(self, features: Tensor) -> Tensor:
        """Return how anomalous each row is, float64 `(n,)`."""
        ...


class TwoSided:
    r"""Distance from the median in units of the spread on that side, the root mean square over columns.

    An image may be anomalous by an energy too low as well as too high (Nalisnick et al., 2019: typicality). The spread of a
    side is the distance from the median to the 16 % or 84 % quantile, one standard deviation of a normal distribution.
    """

    def fit(self, features: Tensor) -> Self:
        levels = torch.tensor([0.1587, 0.5, 0.8413], dtype=torch.float64)
        low, self._median, high = torch.quantile(checked(features), levels, dim=0)
        self._below, self._above = (side.clamp_min(1e-30) for side in (self._median - low, high - self._median))
        return self

    def score(self, features: Tensor) -> Tensor:
        offset = checked(features, len(self._median)) - self._median
        return (offset / torch.where(offset < 0, self._below, self._above)).square().mean(1).sqrt()


class Mahalanobis:
    r"""Logarithm of the distance from the mean in units of the spread, $\sqrt{(f - \mu)^T \Sigma^{-1} (f - \mu)}$.

    A distance spreads by factors: its logarithm is nearly normal.
    """

    def fit(self, features: Tensor) -> Self:
        """Estimate mean and covariance.

        Raises:
            ValueError: If there are too few rows, a value is not finite, or the columns are linearly dependent.
        """
        table = checked(features).numpy()
        if len(table) <= table.shape[1]:
            raise ValueError(
                f"fitting {table.shape[1]} features needs more than {table.shape[1]} images, got {len(table)}"
            )
        self._covariance = EmpiricalCovariance().fit(table)
        if np.linalg.matrix_rank(self._covariance.covariance_) < table.shape[1]:
            raise ValueError("the features' covariance is singular: some of them depend linearly on others")
        return self

    def score(self, features: Tensor) -> Tensor:
        return 0.5 * torch.from_numpy(self._covariance.mahalanobis(checked(features).numpy())).clamp_min(1e-24).log()


class Mixture:
    """Negative log density of a mixture of Gaussians, fitted by EM."""

    def __init__(self, components: int = 8, regularisation: float = 1e-3, seed: int = 0) -> None:
        self._mixture = GaussianMixture(components, reg_covar=regularisation, random_state=seed)

    def fit(self, features: Tensor) -> Self:
        self._mixture.fit(checked(features).numpy())
        return self

    def score(self, features: Tensor) -> Tensor:
        return -torch.from_numpy(self._mixture.score_samples(checked(features).numpy()))


class Neighbours:
    """Logarithm of the distance to the k-th nearest of the fitted rows (Sun et al., 2022; on norms of scores: MSMA)."""

    def __init__(self, k: int = 5) -> None:
        self._neighbours = NearestNeighbors(n_neighbors=k)

    def fit(self, features: Tensor) -> Self:
        self._neighbours.fit(checked(features).numpy())
        return self

    def score(self, features: Tensor) -> Tensor:
        distances = self._neighbours.kneighbors(checked(features).numpy())[0][:, -1]
        return torch.from_numpy(distances).clamp_min(1e-12).log()


class Principal:
    """Another density on the principal components of standardised columns, each scaled to unit variance.

    Args:
        density: What is fitted there.
        share: Share of the variance that the kept components have together, in (0, 1].
    """

    def __init__(self, density: Density, share: float = 0.999) -> None:
        self._density, self._share = density, share

    def fit(self, features: Tensor) -> Self:
        self._whitening = _whitening(features, self._share, images_a_direction=10)
        self._density.fit(self._project(features))
        return self

    def score(self, features: Tensor) -> Tensor:
        return self._density.score(self._project(features))

    def _project(self, features: Tensor) -> Tensor:
        return torch.from_numpy(self._whitening.transform(checked(features).numpy()))


class Conditional:
    r"""Distance from what is normal given covariates: a Gaussian whose mean and spread depend on them.

    The features are rotated to principal components y of unit variance, and with m and v of `HeteroscedasticRegression`

        score = log mean_j (y_j - m_j)^2 / v_j.
    """

    def __init__(self, share: float = 0.999, components: int = 5) -> None:
        self._share, self._components = share, components

    def fit(self, features: Tensor, covariates: Tensor) -> Self:
        """Estimate both regressions, on tables of shape `(n, d)` and `(n, g)`."""
        self._whitening = _whitening(features, self._share, images_a_direction=5)
        self._regression = HeteroscedasticRegression.fit(
            self._project(features), covariates, components=self._components
        )
        return self

    def score(self, features: Tensor, covariates: Tensor) -> Tensor:
        residuals = self._regression.standardise(self._project(features), covariates)
        return residuals.square().mean(1).clamp_min(torch.finfo(torch.float64).tiny).log()

    def _project(self, features: Tensor) -> Tensor:
        return torch.from_numpy(self._whitening.transform(checked(features).numpy()))


def _whitening(features: Tensor, share: float, *, images_a_direction: int):  # type: ignore[no-untyped-def]
    """Return scaling and PCA that keep a share of the variance, with enough images for each direction."""
    table = checked(features).numpy()
    scaled = StandardScaler().fit_transform(table)
    variances = PCA(svd_solver="full").fit(scaled).explained_variance_
    kept = int((np.cumsum(variances) / variances.sum() < share - 1e-12).sum()) + 1
    # With fewer images a direction its variance is a guess.
    kept = max(1, min(kept, int((variances > 1e-9 * variances[0]).sum()), len(table) // images_a_direction))
    return make_pipeline(StandardScaler(), PCA(kept, whiten=True, svd_solver="full")).fit(table)


@dataclass
class Member:
    """A density on some families of features, its score standardised on a tenth of the normal images."""

    families: tuple[str, ...]
    density: Density | Conditional
    covariates: tuple[str, ...] = ()

    def fit(self, features: Features) -> Self:
        """Fit to features of normal images in random order, by family."""
        num_held = max(2, len(features[self.families[0]]) // 10)
        self.density.fit(*self._tables({family: table[num_held:] for family, table in features.items()}))
        held_out = self.density.score(*self._tables({family: table[:num_held] for family, table in features.items()}))
        self._mean, self._std = held_out.mean(), held_out.std().clamp_min(1e-12)
        return self

    def score(self, features: Features) -> Tensor:
        """Return the standardised scores, `(n,)`."""
        return (self.density.score(*self._tables(features)) - self._mean) / self._std

    def _tables(self, features: Features) -> list[Tensor]:
        return [table_of(features, families) for families in (self.families, self.covariates) if families]


def table_of(features: Features, families: tuple[str, ...]) -> Tensor:
    """Return the features of some families side by side."""
    return torch.cat([features[family] for family in families], dim=1)
