"""Detectors: fitted on features of ordinary images, they score how odd others are."""

from __future__ import annotations

import torch
from torch import Tensor


class MahalanobisDetector:
    r"""Distance from the mean of ordinary images in units of their spread.

    $$s(f) = \sqrt{(f - \mu)^T \Sigma^{-1} (f - \mu)}$$

    with the mean and the (unbiased) covariance of the fitted features. On energies at several noise levels it notices
    what a single one cannot: energies too low, and levels that do not go together. Large = odd.
    """

    def __init__(self) -> None:
        self.mean: Tensor | None = None  #: mu, float64 `(d,)`; None until fitted.
        self._factor: Tensor | None = None

    def fit(self, features: Tensor) -> MahalanobisDetector:
        """Estimate mean and covariance.

        Args:
            features: Of ordinary images, shape `(n, d)`, n > d.

        Returns:
            The detector itself.

        Raises:
            ValueError: If there are too few rows, a value is not finite, or the columns are linearly dependent.
        """
        features = _checked(features)
        count, dimension = features.shape
        if count <= dimension:
            raise ValueError(f"fitting {dimension} features needs more than {dimension} images, got {count}")
        mean = features.mean(0)
        centred = features - mean
        factor, info = torch.linalg.cholesky_ex(centred.T @ centred / (count - 1))
        if int(info) != 0:
            raise ValueError("the features' covariance is singular: some of them depend linearly on others")
        self.mean, self._factor = mean, factor
        return self

    def score(self, features: Tensor) -> Tensor:
        """Return the distances, float64 `(n,)`.

        Args:
            features: Shape `(n, d)`.

        Raises:
            ValueError: If the detector is not fitted, was fitted with another d, or a value is not finite.
        """
        if self.mean is None or self._factor is None:
            raise ValueError("the detector is not fitted: call fit first")
        features = _checked(features)
        if features.shape[1] != len(self.mean):
            raise ValueError(f"expected {len(self.mean)} features, as in fit, got {features.shape[1]}")
        whitened: Tensor = torch.linalg.solve_triangular(self._factor, (features - self.mean).T, upper=False)
        return whitened.square().sum(0).sqrt()


def _checked(features: Tensor) -> Tensor:
    if features.ndim != 2:
        raise ValueError(f"features must have shape (n, d), got {tuple(features.shape)}")
    features = features.detach().double().cpu()
    if not bool(features.isfinite().all()):
        raise ValueError("features contain values that are not finite")
    return features
