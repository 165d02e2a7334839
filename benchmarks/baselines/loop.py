"""One training loop for all baselines: the images, optimizer, averages and minutes of `debm train`.

So all of them see mirrored images and are drawn from with averaged weights, whether or not their papers have these.
(`debm train` also keeps 512 images out of training.)
"""

from __future__ import annotations

import time
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from denoising_ebm.config import Config
from denoising_ebm.training.batches import draw_batch
from denoising_ebm.training.ema import AveragedWeights
from denoising_ebm.training.lr import learning_rate
from denoising_ebm.training.objectives import Batch
from denoising_ebm.utils.device import autocast, choose_precision

M = TypeVar("M", bound=nn.Module)


class Trainable(Protocol):
    """What the loop trains: a module with a loss."""

    def loss(self, batch: Batch) -> Tensor:
        """Return the loss of a batch, a number."""
        ...


def fit(model: M, pixels: Tensor, config: Config, minutes: float) -> tuple[M, int]:
    """Train a module that is `Trainable` for `minutes`.

    Args:
        model: Trained in place.
        pixels: uint8, shape (n, c, h, w).
        config: Batches, noise draw, learning rate with warm-up and cooldown, averages, clipping.
        minutes: Of training.

    Returns:
        The averaged model in eval mode, and how many images it saw.
    """
    training, place = config.training, next(model.parameters()).device
    optimizer = torch.optim.Adam(model.parameters(), lr=training.learning_rate, betas=training.betas, fused=True)
    average = AveragedWeights(model, training.ema_decay)  # type: ignore[arg-type]
    precision, step, started = choose_precision("auto", place), 0, time.monotonic()
    while (progress := (time.monotonic() - started) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(training, step * training.batch_size, progress)
        (batch,) = draw_batch(pixels, config, step, step)
        with autocast(place, precision):
            loss = model.loss(batch)  # type: ignore[operator]
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update_parameters(model)
        step += 1
    averaged: M = average.module  # type: ignore[assignment]
    return averaged.eval(), step * training.batch_size
