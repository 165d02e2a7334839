"""A run that is trained once: for studies of several models, which are interrupted and go on."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from denoising_ebm.config import Config
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.training.state import STATE_FILE
from denoising_ebm.training.trainer import train

FINISHED_FILE = "finished"


def train_once(
    pixels: Tensor,
    config: Config,
    folder: Path,
    *,
    data_name: str = "",
    device: str = "auto",
    quiet: bool = False,
) -> DenoisingEBM:
    """Train a model in `folder`, go on with an interrupted run there, or load a finished one.

    Args:
        pixels: As for `train`.
        config: As for `train`.
        folder: The run folder.
        data_name: As for `train`.
        device: As for `train`.
        quiet: As for `train`.

    Raises:
        KeyboardInterrupt: If the user interrupted training, after it was saved.
    """
    marker = folder / FINISHED_FILE
    if not marker.is_file():
        resume = (folder / STATE_FILE).is_file()
        options = {"data_name": data_name, "device": device, "quiet": quiet}
        if not train(pixels, config, folder, resume=resume, **options).finished:  # type: ignore[arg-type]
            raise KeyboardInterrupt
        marker.touch()
    return DenoisingEBM.from_pretrained(folder, device=device).set_precision("auto")
