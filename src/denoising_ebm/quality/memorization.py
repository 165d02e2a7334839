"""Memorization: are samples copies of training images? Nearest neighbours in feature space."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from denoising_ebm.quality.prdc import CHUNK, pairwise_distances


def nearest(features: Tensor, pool: Tensor, *, exclude_itself: bool = False) -> tuple[Tensor, Tensor]:
    """Return distance to and index of the nearest vector of `pool`, each of shape `(n,)`.

    Args:
        features: Shape `(n, d)`.
        pool: Shape `(m, d)`.
        exclude_itself: `pool` is `features`, and a vector is no neighbour of itself.
    """
    distances, indices = [], []
    for start in range(0, len(features), CHUNK):
        table = pairwise_distances(features[start : start + CHUNK], pool)
        if exclude_itself:
            rows = torch.arange(len(table))
            table[rows, start + rows] = float("inf")
        distance, index = table.min(1)
        distances.append(distance)
        indices.append(index)
    return torch.cat(distances), torch.cat(indices)


@dataclass(frozen=True)
class Memorization:
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


def memorization_test(samples: Tensor, train: Tensor, held_out: Tensor) -> Memorization:
    """Look for copies of training images: compare distances to them with those to as many held-out images.

    The three-sample idea of Meehan et al. (2020) with one count: how often the nearest neighbour is a training image.

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
    return Memorization(
        nearer=wins / len(samples),
        interval=(float(interval.low), float(interval.high)),
        p_value=float(test.pvalue),
        to_train=to_train,
        to_held_out=to_held_out,
        index=index,
    )
