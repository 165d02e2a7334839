"""Densities on features: fitted on those of normal images, they score how odd others are. Larger = more odd.

Each is fitted on a table, shape (n, d), in float64 on the CPU, and is kept as a dict of tensors.
"""

from __future__ import annotations

import math
from typing import Literal, Protocol, Self

import torch
from torch import Tensor

DensityName = Literal["single", "two-sided", "mahalanobis", "mixture", "neighbours", "conditional", "discriminants"]


class Density(Protocol):
    """What a detector needs of a density."""

    def fit(self, features: Tensor) -> Self:
        """Fit to normal images, shape `(n, d)`."""
        ...

    def score(self, features: Tensor) -> Tensor:
        """Return how odd each row is, float64 `(n,)`."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Return all that fitting found."""
        ...

    def load(self, tensors: dict[str, Tensor]) -> Self:
        """Take over what `tensors` returned."""
        ...


class Fitted:
    """Checks, and the keeping of tensors: what all of them share."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def tensors(self) -> dict[str, Tensor]:
        """Return all that fitting found."""
        self._require()
        return dict(self._kept)

    def load(self, tensors: dict[str, Tensor]) -> Self:
        """Take over what `tensors` returned."""
        self._kept = {name: tensor.double() for name, tensor in tensors.items()}
        return self

    def nested(self, prefix: str) -> dict[str, Tensor]:
        """Return `tensors` under longer names, for one that this is part of."""
        return {f"{prefix}{name}": tensor for name, tensor in self.tensors().items()}

    def take(self, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take over those of `tensors` that are named `prefix`..., and return the others."""
        self.load({name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)})
        return {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}

    def _require(self) -> None:
        if not self._kept:
            raise ValueError("the detector is not fitted: call fit first")

    def _incoming(self, features: Tensor, dimension: int) -> Tensor:
        features = checked(features)
        if features.shape[1] != dimension:
            raise ValueError(f"expected {dimension} features, as in fit, got {features.shape[1]}")
        return features


class Single(Fitted):
    """The sum of the columns as it is: for one energy, the paper's score -log p up to a constant."""

    def fit(self, features: Tensor) -> Self:
        """Remember the number of columns."""
        self._kept = {"mean": checked(features).mean(0)}
        return self

    def score(self, features: Tensor) -> Tensor:
        """Return the sums, float64 `(n,)`."""
        self._require()
        return self._incoming(features, len(self._kept["mean"])).sum(1)


class TwoSided(Fitted):
    r"""Distance from the median in units of the spread on that side, the root mean square over columns.

    An image may be odd by an energy too low as well as too high (Nalisnick et al., 2019: typicality). The spread of a side
    is the distance from the median to the 16 % or 84 % quantile, one standard deviation of a normal distribution.
    """

    def fit(self, features: Tensor) -> Self:
        """Estimate medians and spreads."""
        levels = torch.tensor([0.1587, 0.5, 0.8413], dtype=torch.float64)
        low, median, high = torch.quantile(checked(features), levels, dim=0)
        # The least that float32, in which detectors are kept, can tell from zero.
        tiny = float(torch.finfo(torch.float32).tiny)
        self._kept = {
            "median": median,
            "below": (median - low).clamp_min(tiny),
            "above": (high - median).clamp_min(tiny),
        }
        return self

    def score(self, features: Tensor) -> Tensor:
        """Return the distances, float64 `(n,)`."""
        self._require()
        offset = self._incoming(features, len(self._kept["median"])) - self._kept["median"]
        spread = torch.where(offset < 0, self._kept["below"], self._kept["above"])
        return (offset / spread).square().mean(1).sqrt()


class Mahalanobis(Fitted):
    r"""Distance from the mean in units of the spread, $\sqrt{(f - \mu)^T \Sigma^{-1} (f - \mu)}$.

    On energies at several noise levels it notices what a single one cannot: energies too low, and levels that do not go
    together.

    Args:
        shrinkage: Share of each column's variance that is put in the place of its covariances: 0 is the sample covariance.
    """

    def __init__(self, shrinkage: float = 0.0) -> None:
        super().__init__()
        self._shrinkage = shrinkage

    def fit(self, features: Tensor) -> Self:
        """Estimate mean and (unbiased) covariance.

        Raises:
            ValueError: If there are too few rows, a value is not finite, or the columns are linearly dependent.
        """
        features = checked(features)
        count, dimension = features.shape
        if count <= dimension:
            raise ValueError(f"fitting {dimension} features needs more than {dimension} images, got {count}")
        mean = features.mean(0)
        covariance = torch.cov(features.mT).reshape(dimension, dimension)
        covariance = (1 - self._shrinkage) * covariance + self._shrinkage * covariance.diagonal().diag()
        self._kept = {"mean": mean, "factor": factor_of(covariance)}
        return self

    def score(self, features: Tensor) -> Tensor:
        """Return the distances, float64 `(n,)`."""
        self._require()
        mean = self._kept["mean"]
        return _distances(self._incoming(features, len(mean)) - mean, self._kept["factor"]).sqrt()


class Mixture(Fitted):
    """Negative log density of a mixture of Gaussians, fitted by EM (scikit-learn).

    Args:
        components: Number of Gaussians.
        regularisation: Added to the variances.
        seed: Of the starts of EM.
    """

    def __init__(self, components: int = 8, regularisation: float = 1e-3, seed: int = 0) -> None:
        super().__init__()
        self._components, self._regularisation, self._seed = components, regularisation, seed

    def fit(self, features: Tensor) -> Self:
        """Run EM.

        Raises:
            ValueError: If there are too few rows or a value is not finite.
        """
        from sklearn.mixture import GaussianMixture

        features = checked(features)
        if len(features) < 2 * self._components:
            raise ValueError(f"fitting {self._components} components needs more images than {len(features)}")
        fitted = GaussianMixture(
            self._components, reg_covar=self._regularisation, random_state=self._seed, covariance_type="full"
        ).fit(features.numpy())
        self._kept = {
            "log_weights": torch.as_tensor(fitted.weights_).double().log(),
            "means": torch.as_tensor(fitted.means_).double(),
            "factors": factor_of(torch.as_tensor(fitted.covariances_).double()),
        }
        return self

    def score(self, features: Tensor) -> Tensor:
        """Return -log p, float64 `(n,)`."""
        self._require()
        means, factors = self._kept["means"], self._kept["factors"]
        features = self._incoming(features, means.shape[1])
        logs = []
        for log_weight, mean, factor in zip(self._kept["log_weights"], means, factors, strict=True):
            volume = factor.diagonal().log().sum() + 0.5 * len(mean) * math.log(2 * math.pi)
            logs.append(log_weight - volume - 0.5 * _distances(features - mean, factor))
        return -torch.logsumexp(torch.stack(logs), dim=0)


class Neighbours(Fitted):
    """Distance to the k-th nearest of the fitted rows (Sun et al., 2022; on norms of scores: MSMA).

    Args:
        k: Which neighbour.
    """

    def __init__(self, k: int = 5) -> None:
        super().__init__()
        self._k = k

    def fit(self, features: Tensor) -> Self:
        """Keep all rows.

        Raises:
            ValueError: If there are fewer than k.
        """
        features = checked(features)
        if len(features) < self._k:
            raise ValueError(f"the {self._k}-th nearest neighbour needs at least {self._k} images, got {len(features)}")
        self._kept = {"rows": features}
        return self

    def score(self, features: Tensor) -> Tensor:
        """Return the distances, float64 `(n,)`."""
        self._require()
        rows = self._kept["rows"]
        features = self._incoming(features, rows.shape[1])
        parts = [torch.cdist(part, rows).kthvalue(self._k, dim=1).values for part in torch.split(features, 512)]
        return torch.cat(parts)


class Principal(Fitted):
    """Another density on the principal components of standardised columns, each scaled to unit variance.

    Args:
        density: What is fitted there.
        share: Share of the variance that the kept components have together, in (0, 1].
        residual: Add the part of a row outside the kept components as one more column.
    """

    def __init__(self, density: Density, share: float = 1.0, residual: bool = False) -> None:
        super().__init__()
        self._density, self._share, self._residual = density, share, residual

    def fit(self, features: Tensor) -> Self:
        """Find the components and fit the density in them."""
        features = checked(features)
        # Ten images for a direction, at least: with fewer its variance is a guess.
        self._kept = rotation(features, self._share, limit=max(1, len(features) // 10))
        self._density.fit(self._project(features))
        return self

    def score(self, features: Tensor) -> Tensor:
        """Return the density's scores of the projected rows."""
        self._require()
        return self._density.score(self._project(self._incoming(features, len(self._kept["mean"]))))

    def _project(self, features: Tensor) -> Tensor:
        columns = rotated(features, self._kept)
        if not self._residual:
            return columns
        basis = self._kept["basis"]
        standard = (features - self._kept["mean"]) / self._kept["spread"]
        rest = (standard - standard @ basis @ basis.mT).square().sum(1, keepdim=True)
        return torch.cat([columns, rest.clamp_min(1e-12).log()], dim=1)

    def tensors(self) -> dict[str, Tensor]:
        """Return all that fitting found, that of the inner density under `density.`."""
        inner = {f"density.{name}": tensor for name, tensor in self._density.tensors().items()}
        return {**super().tensors(), **inner}

    def load(self, tensors: dict[str, Tensor]) -> Self:
        """Take over what `tensors` returned."""
        prefix = "density."
        self._density.load({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
        return super().load({name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)})


def rotation(features: Tensor, share: float, *, limit: int | None = None) -> dict[str, Tensor]:
    """Return mean and spread of the columns, and the directions of the first principal components, scaled to variance 1."""
    mean, spread = features.mean(0), features.std(0)
    # A column that never moves says nothing, unless it does move later: then by any amount at all.
    spread = torch.where(spread > 0, spread, torch.ones_like(spread))
    standard = (features - mean) / spread
    values, vectors = torch.linalg.eigh(standard.mT @ standard / max(len(features) - 1, 1))
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    shares = values.cumsum(0) / values.sum()
    kept = min(int((shares < share - 1e-12).sum()) + 1, int((values > 1e-9 * values[0]).sum()))
    kept = max(1, min(kept, limit or kept))
    basis = vectors[:, :kept]
    return {"mean": mean, "spread": spread, "components": basis * values[:kept].rsqrt(), "basis": basis}


def rotated(features: Tensor, rotation: dict[str, Tensor]) -> Tensor:
    """Return the columns in the directions that `rotation` found, each of unit variance there."""
    return (features - rotation["mean"]) / rotation["spread"] @ rotation["components"]


def checked(features: Tensor) -> Tensor:
    """Return `features` in float64 on the CPU.

    Raises:
        ValueError: If the shape is not `(n, d)` or a value is not finite.
    """
    if features.ndim != 2:
        raise ValueError(f"features must have shape (n, d), got {tuple(features.shape)}")
    features = features.detach().double().cpu()
    if not bool(features.isfinite().all()):
        raise ValueError("features contain values that are not finite")
    return features


def factor_of(covariance: Tensor) -> Tensor:
    """Return the Cholesky factor, shape of `covariance`.

    Raises:
        ValueError: If it has none.
    """
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(covariance)
    if bool((info != 0).any()):
        raise ValueError("the features' covariance is singular: some of them depend linearly on others")
    return factor


def _distances(centred: Tensor, factor: Tensor) -> Tensor:
    whitened: Tensor = torch.linalg.solve_triangular(factor, centred.mT, upper=False)
    return whitened.square().sum(0)
