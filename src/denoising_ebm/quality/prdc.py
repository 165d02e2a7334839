"""What nearest neighbours in feature space say of samples: precision, recall, density, coverage, and copies."""

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
        distances = _distances(generated[start : start + CHUNK], real)
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


def nearest(features: Tensor, pool: Tensor, *, exclude_itself: bool = False) -> tuple[Tensor, Tensor]:
    """Return distance to and index of the nearest vector of `pool`, each of shape `(n,)`.

    Args:
        features: Shape `(n, d)`.
        pool: Shape `(m, d)`.
        exclude_itself: `pool` is `features`, and a vector is no neighbour of itself.
    """
    distances, indices = [], []
    for start in range(0, len(features), CHUNK):
        table = _distances(features[start : start + CHUNK], pool)
        if exclude_itself:
            rows = torch.arange(len(table))
            table[rows, start + rows] = float("inf")
        distance, index = table.min(1)
        distances.append(distance)
        indices.append(index)
    return torch.cat(distances), torch.cat(indices)


@dataclass(frozen=True)
class Copies:
    """Whether samples lie nearer to training images than to images that were not trained on.

    Attributes:
        nearer: Share of samples whose nearest neighbour among equally many training and held-out images is a training
            image; 0.5 if nothing was memorised.
        interval: 95 % interval (Wilson) around it.
        p_value: Of "neither pool is nearer" (Wilcoxon's signed-rank test, since both distances are of the same samples).
        to_train: Distance of every sample to its nearest training image, shape `(n,)`.
        to_held_out: The same to held-out images.
        index: Nearest training image of every sample, shape `(n,)`.
    """

    nearer: float
    interval: tuple[float, float]
    p_value: float
    to_train: Tensor
    to_held_out: Tensor
    index: Tensor


def copies(samples: Tensor, train: Tensor, held_out: Tensor) -> Copies:
    """Look for copies: compare distances to training images with those to as many held-out ones.

    Args:
        samples: Features of samples, shape `(n, d)`.
        train: Features of training images, shape `(m, d)`.
        held_out: Features of images that were not trained on, shape `(m, d)`: equal numbers, since the nearest of more
            images is nearer.

    Raises:
        ValueError: If the two pools differ in size.
    """
    # Here, since importing it changes the filters of warnings.
    from scipy import stats

    if len(train) != len(held_out):
        raise ValueError(f"the pools must have equal sizes, got {len(train)} and {len(held_out)}")
    to_train, index = nearest(samples, train)
    to_held_out, _ = nearest(samples, held_out)
    wins = int((to_train < to_held_out).sum())
    interval = stats.binomtest(wins, len(samples)).proportion_ci(method="wilson")
    test = stats.wilcoxon(to_train.numpy(), to_held_out.numpy())
    return Copies(
        nearer=wins / len(samples),
        interval=(float(interval.low), float(interval.high)),
        p_value=float(test.pvalue),
        to_train=to_train,
        to_held_out=to_held_out,
        index=index,
    )


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # By matrix products, which are fast, in float64, since they lose half of the digits of small distances.
    return torch.cdist(a.double(), b.double(), compute_mode="use_mm_for_euclid_dist")


def _radii(features: Tensor, k: int) -> Tensor:
    """Return the distance of every vector to its k-th neighbour, itself not counted."""
    radii = []
    for start in range(0, len(features), CHUNK):
        table = _distances(features[start : start + CHUNK], features)
        rows = torch.arange(len(table))
        table[rows, start + rows] = float("inf")
        radii.append(table.kthvalue(k, dim=1).values)
    # The neighbour that bounds a ball lies within it, also after the rounding of a distance taken the other way round.
    return torch.cat(radii) * (1 + 1e-9)
