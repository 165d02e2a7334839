"""What a run is at one moment: save it, resume it, roll it back."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from denoising_ebm.config import Config, from_dict, to_dict
from denoising_ebm.migration import migrate_state
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.training.objectives import Objective
from denoising_ebm.utils.io import write_atomically

STATE_FILE = "state.pt"
#: Fields a resumed run may change: they do not alter what a step does, but for the learning rate, which follows the budget,
#: and contrastive chains, whose noise is drawn for each micro-batch.
FREE_FIELDS = ("max_images", "max_minutes", "log_every", "sample_minutes", "micro_batch_size", "compile")


@dataclass
class Clock:
    """Where a run stands."""

    step: int = 0  #: Optimizer steps done.
    images_seen: int = 0  #: Training images seen, over all processes.
    seconds: float = 0.0  #: Seconds spent training, over all sessions of the run.
    stage: int = 0  #: Index of the current training stage.
    stage_step: int = 0  #: Steps done in this training stage.
    rollbacks: int = 0  #: Divergences in this training stage.
    rate_scale: float = 1.0  #: Factor on the learning rate, halved at every divergence.
    diverged: int = 0  #: Training stages that ended by divergence.


@dataclass
class RunState:
    """Everything that changes while a run trains."""

    model: DenoisingEBM
    average: AveragedModel
    optimizer: Optimizer
    objective: Objective
    clock: Clock = field(default_factory=Clock)
    #: `images seen` and `minutes` of the model the run started from; empty if it started from scratch.
    past: dict[str, Any] = field(default_factory=dict)

    def capture(self) -> dict[str, Any]:
        """Return all of it as tensors and numbers, sharing memory with the run."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "objective": self.objective.state_dict(),
            "clock": vars(self.clock),
            "past": self.past,
        }

    def snapshot(self) -> dict[str, Any]:
        """Return a copy to roll back to."""
        return copy.deepcopy(self.capture())

    def restore(self, saved: dict[str, Any], *, clock: bool) -> None:
        """Return to a captured state; with `clock` to its place in the run too."""
        saved = copy.deepcopy(saved)
        self.model.load_state_dict(saved["model"])
        self.average.load_state_dict(saved["average"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.objective.load_state_dict(saved["objective"])
        if clock:
            self.clock = Clock(**saved["clock"])
            self.past = saved.get("past", {})


def save_state(state: RunState, config: Config, folder: Path, images: str, hardware: Mapping[str, str]) -> None:
    """Write `state.pt`, atomically; a crash or a full disk leaves the old one.

    Args:
        state: Of the run.
        config: Of the run.
        folder: Of the run.
        images: A hash of the training images.
        hardware: `device` (its type) and `precision`, on which random numbers and rounding depend.
    """
    values = {**state.capture(), "config": to_dict(config), "images": images, "hardware": hardware}
    # Through memory: torch's own writer reports a full disk as a RuntimeError without a file.
    buffer = io.BytesIO()
    torch.save(values, buffer)
    write_atomically(folder / STATE_FILE, lambda path: path.write_bytes(buffer.getbuffer()))


def read_state(config: Config, folder: Path, images: str) -> dict[str, Any]:
    """Read `state.pt` and check that it belongs to `config` and to the training images whose hash is `images`.

    Raises:
        FileNotFoundError: If the folder holds no state.
        ValueError: If the file is damaged or the run has other settings or images.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path}: nothing to resume")
    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path}: not a readable state ({reason})") from None
    if not isinstance(saved, dict) or "config" not in saved:
        raise ValueError(f"{path}: not a readable state ('config' is missing)")
    saved = migrate_state(saved)
    # Through a Config, so that fields younger than the file have their defaults.
    _compare(to_dict(from_dict(Config, saved["config"])), to_dict(config), "", path)
    # Batches and the images that are held out are drawn by number: of other images they would be others.
    if saved.get("images", images) != images:
        raise ValueError(f"{path}: the run was on other images; resume with the same data and options for images")
    return saved


def _compare(old: dict[str, Any], new: dict[str, Any], prefix: str, path: Path) -> None:
    for name, value in new.items():
        if isinstance(value, dict):
            _compare(old.get(name, {}), value, f"{prefix}{name}.", path)
        elif old.get(name) != value and not (prefix == "training." and name in FREE_FIELDS):
            raise ValueError(
                f"{path}: the run has {prefix}{name} = {old.get(name)}, not {value}; resume keeps settings"
            )
