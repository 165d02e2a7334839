"""What is usual for images of the same complexity: features judged by others."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from denoising_ebm.ood.densities import Fitted, checked, rotated, rotation


class HeteroscedasticRegression(Fitted):
    r"""Mean and log variance of columns as quadratic functions of other columns, `given`.

    Of `given` the first principal components c are taken, so

        standardise(y, given) = (y - m(c)) / sqrt(v(c)).

    How far features of an image lie from their mean depends most of all on how much there is to see in it. Measured
    against images of equal energies, what is left is how unusual it is.

    Args:
        components: Principal components of `given`.
        ridge: Penalty on the coefficients of both regressions, in images.
    """

    def __init__(self, components: int = 5, ridge: float = 30.0) -> None:
        super().__init__()
        self._components, self._ridge = components, ridge

    def fit(self, y: Tensor, given: Tensor) -> Self:
        """Estimate both regressions.

        Args:
            y: Columns of about unit variance, shape `(n, d)`.
            given: What to judge them by, shape `(n, g)`.

        Raises:
            ValueError: If a value is not finite or the rows differ in number.
        """
        y, given = checked(y), checked(given)
        if len(y) != len(given):
            raise ValueError(f"{len(y)} rows of features, but {len(given)} of what they are judged by")
        condition = rotation(given, 1.0, limit=self._components)
        design = _quadratic(rotated(given, condition))
        penalty = self._ridge * torch.eye(design.shape[1], dtype=torch.float64)
        penalty[0, 0] = 0  # the intercept
        gram = design.mT @ design + penalty
        mean = torch.linalg.solve(gram, design.mT @ y)
        logs = ((y - design @ mean).square() + 1e-3).log()
        log_variance = torch.linalg.solve(gram, design.mT @ logs)
        self._kept = {f"given.{name}": value for name, value in condition.items() if name != "basis"}
        self._kept |= {"mean": mean, "log_variance": log_variance, "centre": logs.mean(0)}
        return self

    def standardise(self, y: Tensor, given: Tensor) -> Tensor:
        """Return (y - m) / sqrt(v), float64, shape of `y`.

        Raises:
            ValueError: If `fit` was not called, or the rows of `y` and `given` differ in number.
        """
        self._require()
        if len(y) != len(given):
            raise ValueError(f"{len(y)} rows of features, but {len(given)} of what they are judged by")
        condition = {name: self._kept[f"given.{name}"] for name in ("mean", "spread", "components")}
        design = _quadratic(rotated(self._incoming(given, len(condition["mean"])), condition))
        # Far outside of what was fitted the regressions may say anything.
        centre = self._kept["centre"]
        logs = (design @ self._kept["log_variance"]).clamp(centre - 3, centre + 3)
        residual: Tensor = (y - design @ self._kept["mean"]) * (-logs / 2).exp()
        return residual


class Conditional(Fitted):
    r"""Distance from what is usual for images of the same complexity: a Gaussian whose mean and spread depend on others.

    The features are standardised and rotated to principal components y of unit variance, and with m and v of `HeteroscedasticRegression`

        score = log mean_j (y_j - m_j)^2 / v_j.

    Args:
        share: Share of the variance that the kept components of the features have together, in (0, 1].
        components: Principal components of `given`.
    """

    def __init__(self, share: float = 0.99, components: int = 5) -> None:
        super().__init__()
        self._share, self._expectation = share, HeteroscedasticRegression(components)

    def fit(self, features: Tensor, given: Tensor) -> Self:
        """Estimate both regressions.

        Args:
            features: What to judge, shape `(n, d)`.
            given: What to judge it by, shape `(n, g)`.

        Raises:
            ValueError: If a value is not finite or the rows differ in number.
        """
        features = checked(features)
        found = rotation(features, self._share, limit=max(1, len(features) // 5))
        self._expectation.fit(rotated(features, found), given)
        self._kept = {name: value for name, value in found.items() if name != "basis"}
        return self

    def score(self, features: Tensor, given: Tensor) -> Tensor:
        """Return the scores, float64 `(n,)`; arguments as for `fit`."""
        self._require()
        y = rotated(self._incoming(features, len(self._kept["mean"])), self._kept)
        distance = self._expectation.standardise(y, given).square().mean(1)
        return distance.clamp_min(torch.finfo(torch.float64).tiny).log()

    def tensors(self) -> dict[str, Tensor]:
        """Return all that fitting found, that of the regressions under `expectation.`."""
        return {**super().tensors(), **self._expectation.nested("expectation.")}

    def load(self, tensors: dict[str, Tensor]) -> Self:
        """Take over what `tensors` returned."""
        return super().load(self._expectation.take("expectation.", tensors))


def _quadratic(c: Tensor) -> Tensor:
    """Return one, every column and every product of two, of columns held within four standard deviations."""
    c = c.clamp(-4, 4)
    first, second = torch.triu_indices(c.shape[1], c.shape[1])
    return torch.cat([torch.ones(len(c), 1, dtype=c.dtype), c, c[:, first] * c[:, second]], dim=1)
