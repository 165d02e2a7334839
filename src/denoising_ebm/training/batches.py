"""The random numbers of training: each is a function of (seed, step), so a resumed run needs no generator states."""

from __future__ import annotations

import torch
from torch import Tensor

from denoising_ebm.config import Config
from denoising_ebm.datasets.images import to_float
from denoising_ebm.noise import draw_sigmas
from denoising_ebm.training.objectives import Batch
from denoising_ebm.utils.seeds import hashed_generator


def draw_batch(
    pixels: Tensor,
    config: Config,
    step: int,
    stage_step: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | None = None,
) -> list[Batch]:
    """Draw a process's share of a training batch (Algorithm 1, line 3), as micro-batches.

    Every process draws the whole batch and takes its slice, so the batch of a step is the same however many processes
    share it.

    Args:
        pixels: All training images, uint8, shape (n, channels, height, width), on the device of training or, if they do
            not fit there, on the CPU.
        config: Batch sizes, noise draw, flips and seed.
        step: Optimizer step of the run.
        stage_step: Step within the training stage.
        rank: Which slice to take.
        world_size: Number of slices; must divide the batch size.
        device: Of training; that of `pixels` if None.
    """
    training = config.training
    total = training.batch_size
    if total % world_size:
        raise ValueError(
            f"training.batch_size must be divisible by the number of processes ({world_size}), got {total}"
        )
    place = device or pixels.device
    generator = hashed_generator(place, training.seed, step, 0)
    index = torch.randint(len(pixels), (total,), generator=generator, device=place)
    flip = torch.rand(total, generator=generator, device=place) < (0.5 if training.flip else 0.0)
    sigma = draw_sigmas(config.noise, total, generator)
    noise = torch.randn((total, *pixels.shape[1:]), generator=generator, device=place)

    share = total // world_size
    mine = slice(rank * share, (rank + 1) * share)
    x0 = to_float(pixels[index[mine].to(pixels.device)].to(place))
    x0 = torch.where(flip[mine, None, None, None], x0.flip(3), x0)
    size = training.micro_batch_size or share
    starts = range(0, share, size)
    return [
        Batch(
            x0[start : start + size],
            sigma[mine][start : start + size],
            noise[mine][start : start + size],
            step=stage_step,
            generator=hashed_generator(place, training.seed, step, 1, rank, start),
        )
        for start in starts
    ]
