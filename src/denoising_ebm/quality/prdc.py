"""Precision, recall, density and coverage: what nearest neighbours in feature space say of samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 2048


@dataclass(frozen=True)
class PRDC:
    """How the manifolds of real and generated images overlap, each estimated by balls around its images.

    Attributes:
        precision: Share of generated images within a ball of a real one (Kynkäänniemi et al., 2019).
        recall: Share of real images within a ball of a generated one.
        density: Mean number of real balls around a generated image, over k (Naeem et al., 2020); may exceed 1.
        coverage: Share of real images with a generated one within their ball.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(generated: Tensor, real: Tensor, *, k: int = 3, k_density: int = 5) -> PRDC:
    """Compare two sets of features.

    A ball reaches from an image to its k-th nearest neighbour of the same set, itself not counted.

    Args:
        generated: Features of samples, shape `(n, d)`.
        real: Features of real images, shape `(m, d)`.
        k: Neighbour that bounds the balls of precision and recall (3 in the paper that introduced them).
        k_density: That of density and coverage (5 in theirs).

    Raises:
        ValueError: If shapes do not fit or a set has not more than `k` vectors.
    """
    if generated.ndim != 2 or real.ndim != 2 or generated.shape[1] != real.shape[1]:
        raise ValueError(f"features must have shapes (n, d) and (m, d), got {generated.shape} and {real.shape}")
    if k < 1 or k_density < 1:
        raise ValueError(f"k must be >= 1, got {k} and {k_density}")
    if min(len(generated), len(real)) <= max(k, k_density):
        raise ValueError(f"need more than {max(k, k_density)} images a set, got {len(generated)} and {len(real)}")
    radii_real, radii_density = (_radii(real, n) for n in (k, k_density))
    radii_generated = _radii(generated, k)
    inside_real, balls, inside_generated = 0, 0, torch.zeros(len(real), dtype=torch.bool)
    covered = torch.zeros(len(real), dtype=torch.bool)
    for start in range(0, len(generated), CHUNK):
        distances = pairwise_distances(generated[start : start + CHUNK], real)
        inside_real += int((distances <= radii_real).any(1).sum())
        within = distances <= radii_density
        balls += int(within.sum())
        covered |= within.any(0)
        inside_generated |= (distances <= radii_generated[start : start + CHUNK, None]).any(0)
    return PRDC(
        precision=inside_real / len(generated),
        recall=float(inside_generated.double().mean()),
        density=balls / (k_density * len(generated)),
        coverage=float(covered.double().mean()),
    )


def pairwise_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return Euclidean distances, float64, shape `(n, m)`, of vectors `(n, d)` and `(m, d)`."""
    # By matrix products, which are fast, in float64, since they lose half of the digits of small distances.
    return torch.cdist(a.double(), b.double(), compute_mode="use_mm_for_euclid_dist")


def _radii(features: Tensor, k: int) -> Tensor:
    """Return the distance of every vector to its k-th neighbour, itself not counted."""
    radii = []
    for start in range(0, len(features), CHUNK):
        table = pairwise_distances(features[start : start + CHUNK], features)
        rows = torch.arange(len(table))
        table[rows, start + rows] = float("inf")
        radii.append(table.kthvalue(k, dim=1).values)
    # The neighbour that bounds a ball lies within it, also after the rounding of a distance taken the other way round.
    return torch.cat(radii) * (1 + 1e-9)
