"""What tests of training share: a quiet run on the CPU, its state, and equality to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from denoising_ebm.config import Config
from denoising_ebm.training import trainer
from denoising_ebm.training.trainer import TrainingResult


def train(pixels: Tensor, config: Config, folder: Path, **options: Any) -> TrainingResult:
    return trainer.train(pixels, config, folder, device="cpu", quiet=True, **{"precision": "fp32", **options})


def read_state(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / "state.pt", weights_only=True)
    return state


def assert_equal(first: Any, second: Any, path: str = "") -> None:
    """Compare nested states to the bit."""
    if isinstance(first, Tensor):
        torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True, msg=lambda text: f"{path}: {text}")
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), path
        for key in first:
            assert_equal(first[key], second[key], f"{path}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), path
        for i, (a, b) in enumerate(zip(first, second, strict=True)):
            assert_equal(a, b, f"{path}.{i}")
    else:
        assert first == second, path
