"""The two files of a detector, `detector.json` and `detector.safetensors`, written and read as one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from denoising_ebm.hub import DETECTOR_FILES
from denoising_ebm.migration import DETECTOR_FORMAT, migrate_detector
from denoising_ebm.utils.io import read_json, write_atomically, write_text_atomically

CONFIG_FILE, TENSORS_FILE = DETECTOR_FILES
_HINT = "fit it again with `debm fit-detector`"


def write_detector(folder: Path, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write both files, each complete or not at all; a hash tells whether they belong together."""
    content = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
    values = {"format": DETECTOR_FORMAT, **values, "tensors": hashlib.sha256(content).hexdigest()}
    write_atomically(folder / TENSORS_FILE, lambda path: path.write_bytes(content))
    write_text_atomically(folder / CONFIG_FILE, json.dumps(values, indent=2) + "\n")


def read_detector(folder: Path, *, fingerprint: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what both files hold, in today's form.

    Args:
        folder: Where they are.
        fingerprint: Of the weights that the detector must have been fitted with.

    Raises:
        FileNotFoundError: If one is missing.
        ValueError: If one is damaged, they do not belong together, or the detector belongs to other weights.
    """
    path, tensors_path = folder / CONFIG_FILE, folder / TENSORS_FILE
    for file in (path, tensors_path):
        if not file.is_file():
            raise FileNotFoundError(f"{file}: missing; `debm fit-detector` makes it")
    values, content = read_json(path), tensors_path.read_bytes()
    try:
        tensors = safetensors.torch.load(content)
    except SafetensorError as error:
        raise ValueError(f"{tensors_path}: not a readable safetensors file ({error})") from None
    digest = hashlib.sha256(content).hexdigest()
    if values.get("tensors", digest) != digest:  # the oldest files have none
        raise ValueError(f"{path}: belongs to another {TENSORS_FILE} than the one beside it; {_HINT}")
    try:
        values, tensors = migrate_detector(values, tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {_HINT}") from None
    if values.get("format") != DETECTOR_FORMAT:
        raise ValueError(f"{path}: not a detector of format {DETECTOR_FORMAT}; {_HINT}")
    for name in ("model", "precision", "config", "corruptions"):
        if name not in values:
            raise ValueError(f"{path}: {name!r} is missing")
    if values["model"] != fingerprint:
        raise ValueError(
            f"{path}: fitted for other weights ({values['model']}) than those given ({fingerprint}); {_HINT}"
        )
    return values, tensors
