"""A run that is trained once: for studies of several models, which are interrupted and go on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from denoising_ebm.config import Config, to_dict
from denoising_ebm.datasets.images import content_hash
from denoising_ebm.datasets.preprocessing import Preprocessing
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.training.checkpoint import STATE_FILE, has_state, read_state
from denoising_ebm.training.trainer import train
from denoising_ebm.utils.io import LOCK_FILE, DamagedFileError, check_marker, read_json, write_text_atomically
from denoising_ebm.utils.lock import locked
from denoising_ebm.utils.text import print_line

#: Says in a run folder of which images and settings it is, and whether it is finished.
MARKER = "once.json"


def is_finished(folder: Path) -> bool:
    """Say whether `train_once` finished the run in a folder; not where what says so is damaged."""
    try:
        return (folder / MARKER).is_file() and bool(read_json(folder / MARKER).get("finished"))
    except ValueError:
        return False


def train_once(
    pixels: Tensor,
    config: Config,
    folder: Path,
    *,
    data_name: str = "",
    preprocessing: Preprocessing | None = None,
    device: str = "auto",
    quiet: bool = False,
) -> DenoisingEBM:
    """Train a model in `folder`, go on with an interrupted run there, or load a finished one of these images and settings.

    Args:
        pixels: As for `train`.
        config: As for `train`.
        folder: The run folder.
        data_name: As for `train`.
        preprocessing: As for `train`.
        device: As for `train`.
        quiet: As for `train`.

    Raises:
        ValueError: If the folder holds a run of other images or settings, or something else.
        KeyboardInterrupt: If the user interrupted training, after it was saved.
    """
    with locked(folder, "a training"):
        marker, wanted = folder / MARKER, {"images": content_hash(pixels), "settings": to_dict(config)}
        resume = has_state(folder)
        found = _read_marker(folder, config, wanted, resume)
        if not found.get("finished"):
            if not resume:
                # Ended before its first save: nothing to go on with.
                if (folder / STATE_FILE).is_file():
                    print_line(
                        f"debm: {folder / STATE_FILE}: damaged, and there is none before it; training starts anew"
                    )
                _clear(folder)
            write_text_atomically(marker, json.dumps(wanted | {"finished": False}))
            how: dict[str, Any] = {"data_name": data_name, "preprocessing": preprocessing, "device": device}
            result = train(pixels, config, folder, resume=resume, quiet=quiet, **how)
            if result.finished:
                write_text_atomically(marker, json.dumps(wanted | {"finished": True}))
            if result.interrupted:
                raise KeyboardInterrupt
        return DenoisingEBM.from_pretrained(folder, device=device).set_precision("auto")


def _read_marker(folder: Path, config: Config, wanted: Mapping[str, Any], resume: bool) -> dict[str, Any]:
    """Return what the marker says, {} for a run that is new or whose marker is lost.

    A run with a state goes on without its marker: the state holds its settings and a hash of its images too.
    """
    marker = folder / MARKER
    try:
        if marker.is_file() or not resume:
            return check_marker(marker, wanted, what="a model", hint="delete it to train anew", shown=False) or {}
    except DamagedFileError as error:
        if not resume:
            raise
        print_line(f"debm: {error}; written anew from its state")
    read_state(config, folder, wanted["images"])
    return {}


def _clear(folder: Path) -> None:
    """Remove a run that cannot go on; its marker last, since without that the others would be something else."""
    for path in folder.iterdir():
        if path.name in (MARKER, LOCK_FILE):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
