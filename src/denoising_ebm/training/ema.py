"""Averaged weights: what is evaluated, sampled from and saved."""

from __future__ import annotations

import torch
from torch import nn
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
        super().__init__(model)
        self._decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Average in the weights of `model`."""
        # torch's own update takes the count to the device and back: it would wait there at every step.
        count = int(self.n_averaged)
        weight = 1 - min(self._decay, (1 + count) / (10 + count)) if count else 1.0
        # One call for all tensors: at a few milliseconds a step a loop over them is noticed.
        torch._foreach_lerp_(list(self.module.parameters()), list(model.parameters()), weight)
        for buffer, now in zip(self.module.buffers(), model.buffers(), strict=True):
            buffer.copy_(now)
        self.n_averaged += 1
