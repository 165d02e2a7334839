"""Averaged weights: what is evaluated, sampled from and saved."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from denoising_ebm.model import DenoisingEBM


class AveragedWeights(AveragedModel):
    """An exponential moving average of a model, with buffers copied at each update.

    The decay of update n is min(decay, (1 + n) / (10 + n)), so that short runs do not average in their first weights.

    Args:
        model: Whose weights are averaged.
        decay: The largest decay, in [0, 1).
    """

    def __init__(self, model: DenoisingEBM, decay: float) -> None:
        super().__init__(model, multi_avg_fn=self._update)  # type: ignore[arg-type]
        self._decay = decay
        self._count: int | None = None

    def _update(self, averaged: list[Tensor], current: list[Tensor], num_averaged: Tensor | int) -> None:
        # torch hands the count over on the device: to read it there at every step would wait for the device.
        self._count = int(num_averaged) if self._count is None else self._count + 1
        weight = 1 - min(self._decay, (1 + self._count) / (10 + self._count))
        # One call for all tensors: at a few milliseconds a step a loop over them is noticed.
        torch._foreach_lerp_(averaged, current, weight)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Restore averages and their count."""
        self._count = None
        return super().load_state_dict(*args, **kwargs)
