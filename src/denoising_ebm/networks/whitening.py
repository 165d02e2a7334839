"""The semantic space: codes standardised and decorrelated, so that N(0, I) is where the codes of images lie."""

from __future__ import annotations

from typing import Any

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
        memory: Codes that the running statistics remember, about: a batch of n weighs n / memory once enough were seen.
        shrinkage: Share of the mean variance that is added to every direction, so that unused ones stay finite.
    """

    mean: Tensor
    covariance: Tensor
    whitener: Tensor
    updates: Tensor

    def __init__(self, dim: int, memory: float = 6000.0, shrinkage: float = 1e-3) -> None:
        super().__init__()
        self.memory = memory
        self.shrinkage = shrinkage
        self.register_buffer("mean", torch.zeros(dim))
        # No `torch.eye`: for modules without memory it takes seconds of imports.
        self.register_buffer("covariance", torch.zeros(dim, dim).fill_diagonal_(1.0))
        self.register_buffer("whitener", torch.zeros(dim, dim).fill_diagonal_(1.0))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        # `updates` as a plain number, read once after loading: reading it every step would make a GPU wait.
        self._count: int | None = None

    def forward(self, codes: Tensor) -> Tensor:
        """Whiten `codes`, shape (batch, dim), in float32 (or float64)."""
        codes = codes.to(self.mean.dtype)
        with torch.autocast(codes.device.type, enabled=False):
            return (codes - self.mean) @ self.whitener

    @torch.no_grad()
    def update(self, codes: Tensor, keep: Tensor | None = None) -> None:
        """Move the running statistics towards those of a batch, over all processes, without waiting for the device.

        Args:
            codes: Raw codes, shape (batch, dim).
            keep: Which of them count, bool, shape (batch,); all if None.
        """
        codes = codes.detach().to(self.mean.dtype)
        weights = codes.new_ones(len(codes)) if keep is None else keep.to(codes.dtype)
        weighted = weights[:, None] * codes
        # In full precision: the covariance is a small difference of second moments, which bf16 would leave to rounding.
        with torch.autocast(codes.device.type, enabled=False):
            second = weighted.mT @ codes
        sums = torch.cat([weights.sum()[None], weighted.sum(0), second.flatten()])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        # A batch without codes to count, or with those of a diverged network (which the trainer notices by the loss and
        # rolls back), changes nothing.
        usable = sums.isfinite().all() & (sums[0] > 0)
        sums = torch.where(usable, sums, torch.ones_like(sums))
        dim = len(self.mean)
        mean, second = sums[1 : dim + 1] / sums[0], sums[dim + 1 :].reshape(dim, dim) / sums[0]
        self.updates += 1
        self._count = int(self.updates) if self._count is None else self._count + 1
        # A plain average at first, an exponential one later.
        weight = usable * (sums[0] / self.memory).clamp(1.0 / self._count, 1.0)
        old_second = self.covariance + torch.outer(self.mean, self.mean)
        self.mean.lerp_(mean, weight)
        self.covariance.copy_(old_second.lerp(second, weight) - torch.outer(self.mean, self.mean))
        # The root costs as much as a small layer, and on a GPU a wait: every step at first, every eighth later.
        if self._count <= 32 or self._count % 8 == 0:
            self._refresh()

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        super()._load_from_state_dict(*args, **options)
        self._count = None

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
        # A new tensor, since a backward pass may still need the old one (a copy in `forward` would not do: compiled, it is
        # made in the backward pass).
        whitener = (vectors * values.clamp_min(1e-12).rsqrt()) @ vectors.mT
        self.whitener = whitener.to(self.whitener)
