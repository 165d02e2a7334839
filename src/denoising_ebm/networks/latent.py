"""The semantic space: codes standardised and decorrelated, so that N(0, I) is where the codes of images lie."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Whitening(nn.Module):
    r"""Map raw codes c to z = C^{-1/2} (c - mean), with running mean and covariance C of the codes.

    The latent chain starts at z ~ N(0, I) (eq. 15), so the codes of images must have mean 0 and covariance I there. The
    statistics are buffers without gradient; `update` moves them, `calibrate` sets them from a whole set of codes. The
    symmetric root (ZCA) is used because it changes continuously with C and never rotates the codes.

    Args:
        dim: Dimension of the codes.
        momentum: Weight of a new batch in the running statistics once enough batches were seen.
        shrinkage: Share of the mean variance that is added to every direction, so that unused ones stay finite.
    """

    mean: Tensor
    covariance: Tensor
    whitener: Tensor
    updates: Tensor

    def __init__(self, dim: int, momentum: float = 0.01, shrinkage: float = 1e-3) -> None:
        super().__init__()
        self.momentum = momentum
        self.shrinkage = shrinkage
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("covariance", torch.eye(dim))
        self.register_buffer("whitener", torch.eye(dim))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    def forward(self, codes: Tensor) -> Tensor:
        """Whiten `codes`, shape (batch, dim), in float32 (or float64)."""
        codes = codes.to(self.mean.dtype)
        with torch.autocast(codes.device.type, enabled=False):
            # A copy, since `update` may move the buffer before the backward pass.
            return (codes - self.mean) @ self.whitener.clone()

    @torch.no_grad()
    def update(self, codes: Tensor) -> None:
        """Move the running statistics towards those of `codes`, shape (batch, dim), over all processes."""
        codes = codes.detach().to(self.mean.dtype)
        sums = torch.cat([codes.new_tensor([float(len(codes))]), codes.sum(0), (codes.mT @ codes).flatten()])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        count = sums[0]
        # Codes of a diverged network have no root; the trainer sees the loss and goes back to good weights.
        if count < 1 or not bool(sums.isfinite().all()):
            return
        dim = len(self.mean)
        mean, second = sums[1 : dim + 1] / count, sums[dim + 1 :].reshape(dim, dim) / count
        self.updates += 1
        # A plain average at first, an exponential one later.
        weight = max(self.momentum, 1.0 / int(self.updates))
        old_second = self.covariance + torch.outer(self.mean, self.mean)
        self.mean.lerp_(mean, weight)
        self.covariance.copy_(old_second.lerp(second, weight) - torch.outer(self.mean, self.mean))
        # The root costs as much as a small layer: every step at first, every eighth later.
        if int(self.updates) <= 32 or int(self.updates) % 8 == 0:
            self._refresh()

    @torch.no_grad()
    def calibrate(self, codes: Tensor) -> None:
        """Set the statistics to those of `codes`, shape (n, dim).

        Raises:
            ValueError: If there are fewer codes than dimensions, which leaves the covariance undetermined.
        """
        if len(codes) <= codes.shape[1]:
            raise ValueError(f"calibration needs more codes than dimensions ({codes.shape[1]}), got {len(codes)}")
        codes = codes.to(torch.float64)
        self.mean.copy_(codes.mean(0))
        self.covariance.copy_(torch.cov(codes.mT))
        self._refresh()

    def _refresh(self) -> None:
        covariance = self.covariance.double().cpu()
        covariance = covariance + self.shrinkage * covariance.diagonal().mean() * torch.eye(len(covariance)).double()
        values, vectors = torch.linalg.eigh(covariance)
        self.whitener.copy_((vectors * values.clamp_min(1e-12).rsqrt()) @ vectors.mT)
