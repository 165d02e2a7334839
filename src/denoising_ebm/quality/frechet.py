"""Fréchet distance between two sets of images: features -> statistics -> distance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from denoising_ebm.quality.extractors import FeatureExtractor


@dataclass
class FeatureStatistics:
    """Mean and covariance of feature vectors, in float64 on the CPU, gathered batch by batch.

    Attributes:
        mean: Shape `(d,)`.
        scatter: Sum of outer products of the deviations from the mean, shape `(d, d)`.
        count: Number of feature vectors seen.
    """

    mean: Tensor
    scatter: Tensor
    count: int

    @classmethod
    def empty(cls, num_features: int) -> FeatureStatistics:
        """Statistics of no vectors yet, of length `num_features`."""
        zeros = torch.zeros(num_features, dtype=torch.float64)
        return cls(mean=zeros, scatter=torch.outer(zeros, zeros), count=0)

    @classmethod
    def from_features(cls, features: Tensor) -> FeatureStatistics:
        """Statistics of all rows of `features`, shape `(n, d)`."""
        if features.ndim != 2:
            raise ValueError(f"features must have shape (n, d), got {tuple(features.shape)}")
        statistics = cls.empty(features.shape[1])
        statistics.update(features)
        return statistics

    def update(self, features: Tensor) -> None:
        """Add the rows of `features`; the result does not depend on how they are cut into batches.

        Shifts between batch means are added to the scatter (Chan, Golub & LeVeque 1983). Subtracting squares of sums
        instead would lose the digits of features far from zero.

        Args:
            features: Shape `(n, d)`, any floating dtype and device.

        Raises:
            ValueError: If the shape does not fit, or a feature is not finite.
        """
        if features.ndim != 2 or features.shape[1] != self.mean.shape[0]:
            raise ValueError(f"features must have shape (n, {self.mean.shape[0]}), got {tuple(features.shape)}")
        if features.shape[0] == 0:
            return
        if not bool(torch.isfinite(features).all()):
            raise ValueError("features contain values that are not finite")
        batch = features.detach().cpu().double()
        batch_mean = batch.mean(dim=0)
        deviations = batch - batch_mean
        shift = batch_mean - self.mean
        total = self.count + len(batch)
        weight = self.count * len(batch) / total
        self.scatter = self.scatter + deviations.T @ deviations + weight * torch.outer(shift, shift)
        self.mean = self.mean + shift * (len(batch) / total)
        self.count = total

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance, shape `(d, d)`; needs at least two vectors."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 feature vectors, got {self.count}")
        return self.scatter / (self.count - 1)


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    r"""Fréchet (2-Wasserstein) distance, squared, between the Gaussians with these moments.

    $$|m_a - m_b|^2 + \mathrm{tr}(C_a + C_b) - 2\, \mathrm{tr}\,(C_a^{1/2} C_b\, C_a^{1/2})^{1/2}$$

    The last trace is the sum of the singular values of $C_a^{1/2} C_b^{1/2}$. Computed so, it stays exact for
    covariances of low rank, where eigenvalues of the product $C_a C_b$ turn into square roots of rounding errors.
    Source: Dowson & Landau (1982); Heusel et al. (2017), eq. (6).

    Args:
        a: Statistics of one set, of at least two vectors.
        b: Statistics of the other.

    Returns:
        A number >= 0, in squared units of the features.

    Raises:
        ValueError: If the lengths of the features differ, or a set has fewer than two vectors.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features have different lengths: {a.mean.shape[0]} and {b.mean.shape[0]}")
    covariance_a, covariance_b = a.covariance, b.covariance
    cross = torch.linalg.svdvals(_matrix_sqrt(covariance_a) @ _matrix_sqrt(covariance_b)).sum()
    distance = (a.mean - b.mean).square().sum() + covariance_a.trace() + covariance_b.trace() - 2 * cross
    return max(0.0, float(distance))


def feature_statistics(images: Tensor, extractor: FeatureExtractor, *, batch_size: int = 256) -> FeatureStatistics:
    """Statistics of the features of a set of images.

    Args:
        images: uint8, shape `(n, c, h, w)`.
        extractor: Maps images to features.
        batch_size: Images handed to the extractor at once, > 0. The result does not depend on it.

    Returns:
        The statistics; to be kept where one reference serves many samples.

    Raises:
        ValueError: If `batch_size` is not positive or `images` is not uint8.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be > 0, got {batch_size}")
    if images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8, got {images.dtype}")
    statistics = FeatureStatistics.empty(extractor.num_features)
    for batch in torch.split(images, batch_size):
        statistics.update(extractor(batch))
    return statistics


def _matrix_sqrt(covariance: Tensor) -> Tensor:
    """Symmetric square root of a covariance; eigenvalues below rounding error count as zero."""
    values, vectors = torch.linalg.eigh(covariance)
    smallest = values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    roots = torch.where(values > smallest, values, torch.zeros_like(values)).sqrt()
    root: Tensor = (vectors * roots) @ vectors.T
    return root
