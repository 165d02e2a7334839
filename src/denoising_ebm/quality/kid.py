"""Kernel distance between two sets of features: unbiased, so that it also compares sets of few and of unequal numbers."""

from __future__ import annotations

import torch
from torch import Tensor


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
