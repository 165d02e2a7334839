"""The model folder: config.json, model.safetensors and the model card, on disk, in the package or on the Hub.

It knows files, configs and tensors, and no network: `DenoisingEBM.from_pretrained` and `.save_pretrained` stand on it.
"""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from denoising_ebm.config import Config, from_dict, to_dict
from denoising_ebm.migration import MODEL_FORMAT, migrate_model, migrate_tensors
from denoising_ebm.utils.io import read_json, write_atomically, write_text_atomically

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "model.safetensors", "README.md"
#: Written by `Detector.save`, optional.
DETECTOR_FILES = ("detector.json", "detector.safetensors")


def bundled_models() -> list[str]:
    """Return the names of the models that ship in the package."""
    root = resources.files("denoising_ebm") / "assets" / "models"
    if not root.is_dir():
        return []
    return sorted(entry.name for entry in root.iterdir() if (entry / CONFIG_FILE).is_file())


def write_model_folder(
    folder: Path, config: Config, metadata: dict[str, Any], tensors: dict[str, torch.Tensor], parameters: int
) -> None:
    """Write a model folder: weights first, so that a config is never without its weights."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is a file, not a folder")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    card = model_card(config, metadata, parameters)
    # Through memory: safetensors' own writer reports a full disk as no OSError.
    weights = safetensors.torch.save(tensors)
    write_atomically(folder / WEIGHTS_FILE, lambda path: path.write_bytes(weights))
    _write_config(folder, config, metadata)
    write_text_atomically(folder / CARD_FILE, card)


def rewrite_config(folder: Path, config: Config) -> None:
    """Give a model folder another config, for the same weights and metadata."""
    _write_config(folder, config, _read_config(folder / CONFIG_FILE)[1])


def copy_model_folder(source: Path, folder: Path) -> None:
    """Copy a model, with its detector if it has one; weights first, so that a config is never without its weights."""
    for name in (WEIGHTS_FILE, *reversed(DETECTOR_FILES), CONFIG_FILE, CARD_FILE):
        if (source / name).is_file():
            content = (source / name).read_bytes()
            write_atomically(folder / name, lambda path, content=content: path.write_bytes(content))  # type: ignore[misc]


def _write_config(folder: Path, config: Config, metadata: dict[str, Any]) -> None:
    text = json.dumps({"format": MODEL_FORMAT, "config": to_dict(config), "metadata": metadata}, indent=2) + "\n"
    write_text_atomically(folder / CONFIG_FILE, text)


def find_model_folder(name: str, revision: str | None = None) -> Path:
    """Return the local folder of a model: a path, a bundled name, or a Hub id, which is downloaded."""
    folder = Path(name)
    if folder.is_dir():
        # A run folder is what users have at hand after training.
        return folder / "model" if (folder / "model" / CONFIG_FILE).is_file() else folder
    if folder.exists():
        raise FileNotFoundError(f"{name}: is a file; a model is a folder with {CONFIG_FILE} and {WEIGHTS_FILE}")
    if name in bundled_models():
        return Path(str(resources.files("denoising_ebm") / "assets" / "models" / name))
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        known = ", ".join(bundled_models()) or "none"
        raise FileNotFoundError(f"{name}: no such model folder, and no bundled model of that name (bundled: {known})")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        files = [CONFIG_FILE, WEIGHTS_FILE, CARD_FILE, *DETECTOR_FILES]
        return Path(snapshot_download(name, revision=revision, allow_patterns=files))
    except (RepositoryNotFoundError, HFValidationError):
        raise FileNotFoundError(f"{name}: no such folder here and no such model on the Hub") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(f"{name}: no such folder here, and the Hub could not be asked ({reason})") from None


def read_model_folder(folder: Path) -> tuple[Config, dict[str, Any], dict[str, torch.Tensor]]:
    """Return the config, the metadata and the tensors of a model folder.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is damaged.
    """
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder / file}: missing; a model folder holds {CONFIG_FILE} and {WEIGHTS_FILE}")
    config, metadata = _read_config(folder / CONFIG_FILE)
    path = folder / WEIGHTS_FILE
    try:
        tensors = safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from None
    return config, metadata, migrate_tensors(tensors)


def _read_config(path: Path) -> tuple[Config, dict[str, Any]]:
    values = migrate_model(read_json(path))
    if values.get("format") != MODEL_FORMAT:
        raise ValueError(
            f"{path}: expected format {MODEL_FORMAT} of a denoising-ebm model, found {values.get('format')}"
        )
    metadata = values.get("metadata", {})
    if not isinstance(metadata, dict):
        raise ValueError(f"{path}: metadata: expected a mapping, got {type(metadata).__name__}")
    return from_dict(Config, values.get("config", {}), where=f"{path}: config"), metadata


def check_tensors(expected: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Raise a ValueError naming the first of `tensors`, read from `path`, that does not fit what a model expects."""
    missing = [name for name in expected if name not in tensors]
    unknown = [name for name in tensors if name not in expected]
    if missing or unknown:
        what = f"{missing[0]} is missing" if missing else f"{unknown[0]} is unknown"
        raise ValueError(f"{path}: weights do not fit {CONFIG_FILE}: {what} ({len(missing) + len(unknown)} such names)")
    for name, tensor in expected.items():
        if tensor.shape != tensors[name].shape:
            raise ValueError(
                f"{path}: weights do not fit {CONFIG_FILE}: {name} has shape {tuple(tensors[name].shape)}, "
                f"expected {tuple(tensor.shape)}"
            )
        # Reference energies are NaN in a model that was never calibrated.
        if tensor.is_floating_point() and name != "reference" and not bool(tensors[name].isfinite().all()):
            raise ValueError(f"{path}: {name} holds values that are not finite")


def model_card(config: Config, metadata: dict[str, Any], parameters: int) -> str:
    """Return the model card: what the model is, how it was trained, its figures."""
    network, noise, training = config.network, config.noise, config.training
    stages = ", ".join(f"{stage.objective} (fraction {stage.fraction:g})" for stage in config.stages)
    rows = "\n".join(f"| {name} | {value} |" for name, value in metadata.items()) or "| - | - |"
    return f"""---
library_name: denoising-ebm
tags: [energy-based-model, out-of-distribution-detection, image-generation, anomaly-localisation]
---

# Denoising-EBM, {network.image_size} x {network.image_size} x {network.channels}

A Denoising-EBM (Zeng, 2023): a denoising autoencoder whose reconstruction error is the texture energy of an image,
with a semantic decoder on its latent space. It was trained without labels. It generates images, scores how normal an
image is, shows where it is anomalous, and denoises.

```python
from denoising_ebm import DenoisingEBM

model = DenoisingEBM.from_pretrained("this folder")
images = model.sample(64, seed=0).images  # in [-1, 1]
energies = model.energy(images, sigma=0.05)  # low = likely
```

| | |
|---|---|
| parameters | {parameters:,} |
| latent dimension | {network.latent_dim} |
| noise levels | {noise.sigma_min:g} to {noise.sigma_max:g} |
| training stages | {stages} |
| batch, learning rate | {training.batch_size}, {training.learning_rate:g} |

## Training and figures

| | |
|---|---|
{rows}
"""
