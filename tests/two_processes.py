"""Run by test_training: short trainings, alone or under torchrun, that leave gradients and weights of every process."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from denoising_ebm.config import Phase
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.training.trainer import train
from support import random_pixels, randomise, tiny_config

RUNS = ("denoising", "score", "contrastive", "persistent")


def run(name: str, folder: Path, rank: int) -> None:
    """Train two steps (four of Algorithm 1) and write `NAME-RANK.pt`: first gradients, and the weights at the end."""
    contrastive = name in ("contrastive", "persistent")
    phase = Phase("contrastive" if contrastive else name)  # type: ignore[arg-type]
    config = tiny_config(phase, max_images=32 if contrastive else 16, clip_norm=0.0, flip=True, holdout=0)
    chains = "persistent" if name == "persistent" else "short"
    config = replace(config, contrastive=replace(config.contrastive, chains=chains, buffer_size=4))
    # Weights without zeros, so that every gradient counts.
    initial = DenoisingEBM(config)
    randomise(initial)
    gradients: list[dict[str, torch.Tensor]] = []

    def keep(optimizer: torch.optim.Optimizer, *rest: object) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients.append({str(i): p.grad.clone() for i, p in enumerate(parameters)})

    handle = register_optimizer_step_pre_hook(keep)
    pixels = random_pixels(20)
    result = train(pixels, config, folder / name, initial=initial, device="cpu", precision="fp32", quiet=True)
    handle.remove()
    values = {"gradients": gradients[0], "steps": len(gradients), "weights": result.model.state_dict()}
    torch.save(values, folder / f"{name}-{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for each in RUNS:
        run(each, Path(sys.argv[1]), int(os.environ["RANK"]))
