"""A run that is trained once: for studies of several models, which are interrupted and go on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from torch import Tensor

from denoising_ebm.config import Config, to_dict
from denoising_ebm.datasets.images import content_hash
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.training.checkpoint import STATE_FILE
from denoising_ebm.training.trainer import train
from denoising_ebm.utils.io import check_marker, read_json, write_text_atomically

#: Says in a run folder of which images and settings it is, and whether it is finished.
MARKER = "once.json"


def is_finished(folder: Path) -> bool:
    """Say whether `train_once` finished the run in a folder."""
    return (folder / MARKER).is_file() and bool(read_json(folder / MARKER).get("finished"))


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
        ValueError: If the folder holds a run of other images or settings, or something else.
        KeyboardInterrupt: If the user interrupted training, after it was saved.
    """
    marker, wanted = folder / MARKER, {"images": content_hash(pixels), "settings": to_dict(config)}
    found = check_marker(marker, wanted, what="a model", hint="delete it to train anew", shown=False)
    if found is None or not found["finished"]:
        resume = (folder / STATE_FILE).is_file()
        if found is not None and not resume:
            # Ended before its first save: nothing to go on with.
            shutil.rmtree(folder)
        write_text_atomically(marker, json.dumps(wanted | {"finished": False}))
        result = train(pixels, config, folder, data_name=data_name, resume=resume, device=device, quiet=quiet)
        if result.finished:
            write_text_atomically(marker, json.dumps(wanted | {"finished": True}))
        if result.interrupted:
            raise KeyboardInterrupt
    return DenoisingEBM.from_pretrained(folder, device=device).set_precision("auto")
