"""Kernel distance between two sets of features: unbiased, so that it also compares sets of few and of unequal numbers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class KernelDistance(NamedTuple):
    """Kernel distance over subsets: KID where the features are Inception's.

    Attributes:
        mean: Over the subsets.
        deviation: Standard deviation over the subsets, which is not the error of the mean: subsets share images.
    """

    mean: float
    deviation: float


def kernel_distance(a: Tensor, b: Tensor) -> float:
    r"""Unbiased estimate of the squared maximum mean discrepancy of the kernel $(x \cdot y / d + 1)^3$.

    Bińkowski et al. (2018), eq. (4); on Inception's features, averaged over subsets, it is KID. For equal distributions
    its mean is 0 at any number of images, where a Fréchet distance grows as images get fewer; single values may be
    negative.

    Args:
        a: Shape `(n, d)`, n >= 2, any floating dtype.
        b: Shape `(m, d)`, m >= 2.

    Raises:
        ValueError: If shapes do not fit or a set has fewer than two vectors.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"features must have shapes (n, d) and (m, d), got {tuple(a.shape)} and {tuple(b.shape)}")
    if min(len(a), len(b)) < 2:
        raise ValueError(f"need at least 2 feature vectors a set, got {len(a)} and {len(b)}")
    a, b = a.double(), b.double()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: Tensor) -> Tensor:
        table = kernel(x, x)
        return (table.sum() - table.diagonal().sum()) / (len(x) * (len(x) - 1))

    return float(within(a) + within(b) - 2 * torch.mean(kernel(a, b)))


def subset_kernel_distance(
    a: Tensor, b: Tensor, *, subsets: int = 100, size: int = 1000, seed: int = 2020
) -> KernelDistance:
    """Return the `kernel_distance` of random subsets, which is how KID is published (Bińkowski et al., 2018).

    Args:
        a: Shape `(n, d)`, n >= 2.
        b: Shape `(m, d)`, m >= 2.
        subsets: Number of pairs of subsets, >= 1.
        size: Vectors of a subset, drawn without replacement; all of the smaller set where that has fewer.
        seed: Of the draw; the default draws the subsets of torch-fidelity.

    Raises:
        ValueError: If shapes do not fit, a set has fewer than two vectors, or a number is too small.
    """
    if subsets < 1 or size < 2:
        raise ValueError(f"need subsets >= 1 and size >= 2, got {subsets} and {size}")
    # NumPy's generator of old, so that the subsets are those of torch-fidelity.
    draws, size = np.random.RandomState(seed), min(size, len(a), len(b))

    def subset(x: Tensor) -> Tensor:
        return x[torch.as_tensor(draws.choice(len(x), size, replace=False))]

    values = [kernel_distance(subset(a), subset(b)) for _ in range(subsets)]
    return KernelDistance(float(np.mean(values)), float(np.std(values)))
