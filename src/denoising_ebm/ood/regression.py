"""Features of an image adjusted for how hard it is to restore: regression on covariates."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self, get_type_hints

import torch
from torch import Tensor

#: Standardised features beyond this count as this: no single one decides alone.
LIMIT = 6.0


class Fitted:
    """A dataclass of tensors that fitting found, some of them in parts that are such classes too."""

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors, those of a part under `part.name`."""
        found: dict[str, Tensor] = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            part = value.tensors() if isinstance(value, Fitted) else {"": value}
            found |= {f"{field.name}.{name}".rstrip("."): tensor for name, tensor in part.items()}
        return found

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], prefix: str = "") -> Self:
        """Rebuild what `tensors` returned, from those whose names begin with `prefix`.

        Raises:
            KeyError: If one is missing.
        """
        values = {}
        for name, kind in get_type_hints(cls).items():
            place = f"{prefix}{name}"
            values[name] = (
                kind.from_tensors(tensors, f"{place}.") if issubclass(kind, Fitted) else tensors[place].double()
            )
        return cls(**values)


@dataclass(frozen=True)
class Scaler(Fitted):
    """Mean and standard deviation of every column, shape `(d,)`."""

    mean: Tensor
    std: Tensor

    @classmethod
    def fit(cls, table: Tensor, *, unit: Tensor | float) -> Self:
        """Estimate both from a table, shape `(n, d)`; a column that varies by less than 1e-6 `unit` counts as constant."""
        std = table.std(0)
        return cls(table.mean(0), torch.where(std > 1e-6 * unit, std, torch.ones_like(std)))

    def __call__(self, table: Tensor) -> Tensor:
        """Return the table with every column standardised."""
        return (table - self.mean) / self.std


@dataclass(frozen=True)
class PrincipalComponents(Fitted):
    """The first principal components of standardised columns, each scaled to unit variance.

    `mean` and `std` have shape `(g,)`, `components` `(g, kept)`.
    """

    mean: Tensor
    std: Tensor
    components: Tensor

    @classmethod
    def fit(cls, table: Tensor, num_components: int) -> Self:
        """Find at most so many components of a table, shape `(n, g)`; those without variance are left out."""
        from sklearn.decomposition import PCA
        from sklearn.preprocessing import StandardScaler

        scaler = StandardScaler().fit(table.numpy())
        pca = PCA(min(num_components, *table.shape), svd_solver="full").fit(scaler.transform(table.numpy()))
        variances = torch.from_numpy(pca.explained_variance_)
        kept = max(1, int((variances > 1e-9 * variances[0]).sum()))
        components = torch.from_numpy(pca.components_[:kept]).mT * variances[:kept].clamp_min(1e-300).rsqrt()
        return cls(torch.from_numpy(scaler.mean_), torch.from_numpy(scaler.scale_), components)

    def __call__(self, table: Tensor) -> Tensor:
        """Return the components, shape `(n, kept)`."""
        return (table - self.mean) / self.std @ self.components


@dataclass(frozen=True)
class HeteroscedasticRegression(Fitted):
    r"""Mean and log variance of columns y as quadratic functions of covariates.

    Of the covariates the first principal components c are taken, so

        standardise(y, covariates) = (y - m(c)) / sqrt(v(c)).

    How far features of an image lie from their mean depends most of all on how much there is to see in it. Compared with
    images of equal energies, what is left tells how atypical it is.

    Attributes:
        pca: From covariates to c.
        mean: Coefficients of m, shape `(terms, d)`.
        log_variance: Coefficients of log v, shape `(terms, d)`.
        mean_log_variance: Mean over the fitted rows of the logarithm that log v estimates, shape `(d,)`.
    """

    pca: PrincipalComponents
    mean: Tensor
    log_variance: Tensor
    mean_log_variance: Tensor

    @classmethod
    def fit(cls, y: Tensor, covariates: Tensor, *, components: int = 5, ridge: float = 30.0) -> Self:
        """Estimate both regressions.

        Args:
            y: Columns of about unit variance, shape `(n, d)`.
            covariates: Shape `(n, g)`.
            components: Principal components of the covariates.
            ridge: Penalty on the coefficients of both regressions, in images.

        Raises:
            ValueError: If a value is not finite or the rows differ in number.
        """
        y, covariates = checked(y), checked(covariates)
        _check_rows(y, covariates)
        pca = PrincipalComponents.fit(covariates, components)
        design = _quadratic(pca(covariates))
        penalty = ridge * torch.eye(design.shape[1], dtype=torch.float64)
        penalty[0, 0] = 0  # the intercept
        gram = design.mT @ design + penalty
        mean = torch.linalg.solve(gram, design.mT @ y)
        logs = ((y - design @ mean).square() + 1e-3).log()
        return cls(pca, mean, torch.linalg.solve(gram, design.mT @ logs), logs.mean(0))

    def standardise(self, y: Tensor, covariates: Tensor) -> Tensor:
        """Return (y - m) / sqrt(v), float64, shape of `y`.

        Raises:
            ValueError: If a covariate is missing or not finite, or the rows of `y` and `covariates` differ in number.
        """
        covariates = checked(covariates, len(self.pca.mean))
        _check_rows(y, covariates)
        design = _quadratic(self.pca(covariates))
        # Far outside of what was fitted the regressions may say anything.
        centre = self.mean_log_variance
        logs = (design @ self.log_variance).clamp(centre - 3, centre + 3)
        residual: Tensor = (y - design @ self.mean) * (-logs / 2).exp()
        return residual


@dataclass(frozen=True)
class CovariateAdjustment(Fitted):
    """Features given covariates as residuals of mean 0 and standard deviation 1, held within `LIMIT`."""

    scaler: Scaler
    regression: HeteroscedasticRegression
    residual_scaler: Scaler

    @classmethod
    def fit(cls, features: Tensor, covariates: Tensor, *, components: int = 5) -> Self:
        """Fit to tables of shape `(n, d)` and `(n, g)`; arguments and errors as for `HeteroscedasticRegression.fit`."""
        features = checked(features)
        scaler = Scaler.fit(features, unit=features.mean(0).abs())
        regression = HeteroscedasticRegression.fit(scaler(features), covariates, components=components)
        residuals = regression.standardise(scaler(features), covariates)
        # Held before their spread is measured, too: a single wild one must not hide a column.
        return cls(scaler, regression, Scaler.fit(residuals.clamp(-LIMIT, LIMIT), unit=1.0))

    def __call__(self, features: Tensor, covariates: Tensor) -> Tensor:
        """Return the residuals, float64, shape of `features`.

        Raises:
            ValueError: If the tables have other columns than in `fit` or a value is not finite.
        """
        features = checked(features, len(self.scaler.mean))
        residuals = self.residual_scaler(self.regression.standardise(self.scaler(features), covariates))
        return residuals.clamp(-LIMIT, LIMIT)


def checked(features: Tensor, columns: int | None = None) -> Tensor:
    """Return a table of features in float64 on the CPU.

    Raises:
        ValueError: If the shape is not `(n, d)`, d is not `columns`, or a value is not finite.
    """
    if features.ndim != 2:
        raise ValueError(f"features must have shape (n, d), got {tuple(features.shape)}")
    features = features.detach().double().cpu()
    if not bool(features.isfinite().all()):
        raise ValueError("features contain values that are not finite")
    if columns is not None and features.shape[1] != columns:
        raise ValueError(f"expected {columns} features, as in fit, got {features.shape[1]}")
    return features


def _check_rows(features: Tensor, covariates: Tensor) -> None:
    if len(features) != len(covariates):
        raise ValueError(f"{len(features)} rows of features, but {len(covariates)} of covariates")


def _quadratic(c: Tensor) -> Tensor:
    """Return one, every column and every product of two, of columns held within four standard deviations."""
    c = c.clamp(-4, 4)
    first, second = torch.triu_indices(c.shape[1], c.shape[1])
    return torch.cat([torch.ones(len(c), 1, dtype=c.dtype), c, c[:, first] * c[:, second]], dim=1)
