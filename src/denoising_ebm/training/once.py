"""A run that is trained once: for studies of several models, which are interrupted and go on."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from denoising_ebm.config import Config, from_dict, to_dict
from denoising_ebm.datasets.images import content_hash
from denoising_ebm.migration import migrate_config
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.training.checkpoint import STATE_FILE
from denoising_ebm.training.trainer import train
from denoising_ebm.utils.io import read_json, write_text_atomically

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
    """Train a model in `folder`, go on with an interrupted run there, or load a finished one of these images and settings.

    Args:
        pixels: As for `train`.
        config: As for `train`.
        folder: The run folder.
        data_name: As for `train`.
        device: As for `train`.
        quiet: As for `train`.

    Raises:
        ValueError: If the run there is one of other images or settings.
        KeyboardInterrupt: If the user interrupted training, after it was saved.
    """
    marker = folder / FINISHED_FILE
    identity = {"images": content_hash(pixels), "config": to_dict(config)}
    if marker.is_file():
        found = read_json(marker, "delete its folder to train anew")
        # Through a Config, so that fields younger than the file have their defaults.
        if found.get("images") != identity["images"] or from_dict(Config, migrate_config(found["config"])) != config:
            raise ValueError(f"{folder}: holds a model of other images or settings; delete it to train anew")
    else:
        resume = (folder / STATE_FILE).is_file()
        options = {"data_name": data_name, "device": device, "quiet": quiet}
        result = train(pixels, config, folder, resume=resume, **options)  # type: ignore[arg-type]
        if result.finished:
            write_text_atomically(marker, json.dumps(identity))
        if result.interrupted:
            raise KeyboardInterrupt
    return DenoisingEBM.from_pretrained(folder, device=device).set_precision("auto")
