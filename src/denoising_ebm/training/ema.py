"""Averaged weights: what is evaluated, sampled from and saved."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from denoising_ebm.model import DenoisingEBM


def averaged_weights(model: DenoisingEBM, decay: float) -> AveragedModel:
    """Return an exponential moving average of `model`, with buffers copied at each update.

    The decay of update n is min(decay, (1 + n) / (10 + n)), so that short runs do not average in their first weights.
    """

    def average(averaged: list[Tensor], current: list[Tensor], num_averaged: Tensor | int) -> None:
        count = int(num_averaged)
        weight = 1 - min(decay, (1 + count) / (10 + count))
        # One call for all tensors: at a few milliseconds a step a loop over them is noticed.
        torch._foreach_lerp_(averaged, current, weight)

    return AveragedModel(model, multi_avg_fn=average)  # type: ignore[arg-type]
