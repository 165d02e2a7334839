"""Run by test_training: short trainings, alone or under torchrun, that leave gradients and weights of every process."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from denoising_ebm.config import TrainingStage
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.training.trainer import train
from support import random_pixels, randomise, tiny_config


def interrupted(folder: Path, rank: int) -> None:
    """Save at every log line; the last process gets SIGTERM in step 3; go on to the end. Writes `interrupted-RANK.pt`."""
    config = tiny_config(max_images=80, log_every=1, sample_minutes=1e-9)
    chosen = replace(config, training=replace(config.training, holdout=0))
    options: dict[str, Any] = {"device": "cpu", "precision": "fp32", "quiet": True}
    steps: list[int] = []

    def count(*_: object) -> None:
        steps.append(1)
        if len(steps) == 3 and rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    handle = register_optimizer_step_pre_hook(count)
    first = train(random_pixels(20), chosen, folder / "interrupted", **options)
    before = len(steps)
    second = train(random_pixels(20), chosen, folder / "interrupted", resume=True, **options)
    handle.remove()
    values = {"finished": [first.finished, second.finished], "steps": [before, len(steps) - before]}
    torch.save(values, folder / f"interrupted-{rank}.pt")


RUNS = ("denoising", "score", "energy", "contrastive", "persistent")


def run(name: str, folder: Path, rank: int) -> None:
    """Train two steps (four of Algorithm 1) and write `NAME-RANK.pt`: first gradients, and the weights at the end."""
    contrastive = name in ("contrastive", "persistent")
    stage = TrainingStage("contrastive" if contrastive else name)  # type: ignore[arg-type]
    config = tiny_config(stage, max_images=32 if contrastive else 16, clip_norm=0.0, flip=True, holdout=0)
    chains = "persistent" if name == "persistent" else "short"
    config = replace(config, contrastive=replace(config.contrastive, chains=chains, buffer_size=4))
    # Weights without zeros, so that every gradient counts.
    initial = DenoisingEBM(config)
    randomise(initial)
    gradients: list[dict[str, torch.Tensor]] = []

    def keep(optimizer: torch.optim.Optimizer, *rest: object) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients.append({str(i): p.grad.clone() for i, p in enumerate(parameters) if p.grad is not None})

    handle = register_optimizer_step_pre_hook(keep)
    pixels = random_pixels(20)
    result = train(pixels, config, folder / name, initial=initial, device="cpu", precision="fp32", quiet=True)
    handle.remove()
    values = {"gradients": gradients[:2], "steps": len(gradients), "weights": result.model.state_dict()}
    torch.save(values, folder / f"{name}-{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for each in RUNS:
        run(each, Path(sys.argv[1]), int(os.environ["RANK"]))
    interrupted(Path(sys.argv[1]), int(os.environ["RANK"]))
