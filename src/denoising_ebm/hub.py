"""The model folder: config.json, model.safetensors and the model card, on disk, in the package or on the Hub.

It knows files, configs and tensors, and no network: `DenoisingEBM.from_pretrained` and `.save_pretrained` stand on it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from denoising_ebm.config import Config, from_dict, to_dict
from denoising_ebm.datasets.preprocessing import Preprocessing
from denoising_ebm.migration import MODEL_FORMAT, migrate_model, migrate_tensors
from denoising_ebm.schema import Specs, TensorSpec, check_tensors, checked_metadata, plain_metadata, read_tensors
from denoising_ebm.utils.hashes import check_file_hash, check_own_hash, file_hash, hashes_of, replaced_name, sealed
from denoising_ebm.utils.io import read_json, write_together
from denoising_ebm.utils.markup import markdown_text
from denoising_ebm.utils.parsing import MAX_JSON, shown
from denoising_ebm.utils.text import reason_of

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "model.safetensors", "README.md"
#: Written by `Detector.save`, optional.
DETECTOR_FILES = ("detector.json", "detector.safetensors")
INSPECTOR_FILES = ("inspector.json", "inspector.safetensors")
#: Tensors that are NaN in a model that was not calibrated: energies of reference images, log Z of the density network.
UNMEASURED = ("reference", "density.log_z")


_HUB_TIMEOUT = 5.0  # seconds


def bundled_models() -> list[str]:
    """Return the names of the models that ship in the package."""
    root = resources.files("denoising_ebm") / "assets" / "models"
    if not root.is_dir():
        return []
    return sorted(entry.name for entry in root.iterdir() if (entry / CONFIG_FILE).is_file())


@dataclass(frozen=True)
class StoredModel:
    """What a model folder holds."""

    config: Config
    metadata: dict[str, Any]
    preprocessing: Preprocessing | None  #: How its images were prepared; None where the folder does not say it.
    tensors: dict[str, torch.Tensor]


def write_model_folder(
    folder: Path,
    config: Config,
    metadata: dict[str, Any],
    preprocessing: Preprocessing | None,
    tensors: dict[str, torch.Tensor],
    parameters: int,
) -> None:
    """Write a model folder, with hashes by which damage and mixtures are noticed.

    All files are complete before the first takes its place, and the model can be read at every moment: a new `config.json`
    comes before the weights, and knows those that they replace as well until they are there.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is a file, not a folder")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # Nobody could load what is not finite, and the weights that it would replace may be good.
    specs = {name: TensorSpec.of(tensor, missing=name in UNMEASURED) for name, tensor in tensors.items()}
    check_tensors(specs, tensors, folder / WEIGHTS_FILE, misfit="")
    # Through memory: safetensors' own writer reports a full disk as no OSError.
    weights = safetensors.torch.save(tensors)
    hashes = {WEIGHTS_FILE: hashlib.sha256(weights).hexdigest()}
    content = _config_content(config, metadata, preprocessing, hashes)
    files = {
        folder / WEIGHTS_FILE: weights,
        folder / CONFIG_FILE: content,
        folder / CARD_FILE: model_card(config, metadata, preprocessing, parameters).encode(),
    }
    if before := _sound_weights(folder):
        known = hashes | {replaced_name(WEIGHTS_FILE): before}
        first = {folder / CONFIG_FILE: _config_content(config, metadata, preprocessing, known)}
        write_together(first | {path: each for path, each in files.items() if path.name != CONFIG_FILE})
        files = {folder / CONFIG_FILE: content}
    write_together(files)


def _sound_weights(folder: Path) -> str:
    """Return the hash of a folder's weights if its config knows it, else nothing."""
    try:
        known = hashes_of(_read_values(folder / CONFIG_FILE), folder / CONFIG_FILE)
        found = file_hash(folder / WEIGHTS_FILE)
    except (OSError, ValueError):
        return ""
    return found if found in (known.get(WEIGHTS_FILE), known.get(replaced_name(WEIGHTS_FILE))) else ""


def rewrite_config(folder: Path, config: Config) -> None:
    """Give a model folder another config, for the same weights, metadata and preprocessing."""
    path = folder / CONFIG_FILE
    values = _read_values(path)
    _, metadata, preprocessing = _checked(values, path)
    check_own_hash(values, path)
    # Hashes of before stay: those of weights that were damaged since would make them good.
    hashes = {name: digest for name, digest in hashes_of(values, path).items() if name != CONFIG_FILE}
    hashes = hashes or {WEIGHTS_FILE: file_hash(folder / WEIGHTS_FILE)}
    write_together({path: _config_content(config, metadata, preprocessing, hashes)})


def copy_model_folder(source: Path, folder: Path) -> None:
    """Copy a model, with its detector if it has one; weights first, so that a config is never without its weights."""
    names = (WEIGHTS_FILE, *reversed(DETECTOR_FILES), CONFIG_FILE, CARD_FILE)
    write_together({folder / name: (source / name).read_bytes() for name in names if (source / name).is_file()})


def _config_content(
    config: Config, metadata: dict[str, Any], preprocessing: Preprocessing | None, hashes: dict[str, str]
) -> bytes:
    values = {
        "format": MODEL_FORMAT,
        "config": to_dict(config),
        "metadata": plain_metadata(metadata),
        "preprocessing": None if preprocessing is None else to_dict(preprocessing),
    }
    return (json.dumps(sealed(values, CONFIG_FILE, hashes), indent=2) + "\n").encode()


def find_model_folder(name: str, revision: str | None = None) -> Path:
    """Return the local folder of a model: a path, a bundled name, or a model of the Hub, which is downloaded.

    Args:
        name: The path or the name; for the Hub `owner/name`, or `hf://owner/name` where a local folder is called `owner`.
        revision: Branch, tag or commit on the Hub.

    Raises:
        FileNotFoundError: If there is no such folder or model, or the Hub gives no answer; it is asked once.
    """
    folder = Path(name)
    if folder.is_dir():
        # A run folder is what users have at hand after training.
        return folder / "model" if (folder / "model" / CONFIG_FILE).is_file() else folder
    if folder.exists():
        raise FileNotFoundError(f"{name}: is a file; a model is a folder with {CONFIG_FILE} and {WEIGHTS_FILE}")
    if name in bundled_models():
        return Path(str(resources.files("denoising_ebm") / "assets" / "models" / name))
    repository = name.removeprefix("hf://")
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repository):
        known = ", ".join(bundled_models()) or "none"
        raise FileNotFoundError(f"{name}: no such model folder, and no bundled model of that name (bundled: {known})")
    owner = name.partition("/")[0]
    if repository == name and Path(owner).exists():
        # A mistyped path is no business of the Hub's.
        raise FileNotFoundError(f"{name}: no such model folder in {owner}; a model of the Hub is hf://{name}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        files = [CONFIG_FILE, WEIGHTS_FILE, CARD_FILE, *DETECTOR_FILES]
        # By default the versions of many libraries on this machine are told as well.
        headers = {"user-agent": "denoising-ebm"}
        return Path(
            snapshot_download(
                repository, revision=revision, allow_patterns=files, etag_timeout=_HUB_TIMEOUT, headers=headers
            )
        )
    except (RepositoryNotFoundError, HFValidationError):
        raise FileNotFoundError(f"{name}: no such folder here and no such model on the Hub") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"{name}: no such folder here, and the Hub could not be asked ({reason_of(error)})"
        ) from None


def read_config_of(name: str) -> Config:
    """Return the settings of a model: a folder, a bundled name or an id of the Hub, as for `find_model_folder`.

    Raises:
        FileNotFoundError: If there is no such model.
        ValueError: If its `config.json` is damaged.
    """
    path = find_model_folder(name) / CONFIG_FILE
    return _checked(_read_values(path), path)[0]


def read_model_folder(folder: Path, specs: Callable[[Config], Specs]) -> StoredModel:
    """Return what a model folder holds, all of it checked.

    Args:
        folder: The folder.
        specs: Of the tensors of a model with this config.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is damaged, or does not fit the other.
    """
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder / file}: missing; a model folder holds {CONFIG_FILE} and {WEIGHTS_FILE}")
    path, weights = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    before = file_hash(path)
    values = _read_values(path)
    config, metadata, preprocessing = _checked(values, path)
    try:
        tensors = read_tensors(
            weights, specs(config), misfit=f"weights do not fit {CONFIG_FILE}", rename=migrate_tensors
        )
        # Hashes last: what else is wrong says more.
        check_own_hash(values, path)
        check_file_hash(values, path, weights, _MIXTURE)
    except ValueError:
        if file_hash(path) == before:
            raise
        # A training saved its model between the two readings.
        return read_model_folder(folder, specs)
    return StoredModel(config, metadata, preprocessing, tensors)


_MIXTURE = (
    "copy the folder again; where a save was cut off, save again: of a run `debm train --resume` writes its model anew"
)


def _read_values(path: Path) -> dict[str, Any]:
    values = read_json(path, max_bytes=MAX_JSON)
    if values.get("format") not in range(1, MODEL_FORMAT + 1):
        raise ValueError(
            f"{path}: expected format {MODEL_FORMAT} of a denoising-ebm model, found {shown(values.get('format'))}"
        )
    return values


def _checked(values: dict[str, Any], path: Path) -> tuple[Config, dict[str, Any], Preprocessing | None]:
    """Return config, metadata and preprocessing of the values of a `config.json`.

    Raises:
        ValueError: If one is not valid.
    """
    try:
        migrated = migrate_model(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    config = from_dict(Config, migrated.get("config", {}), where=f"{path}: config")
    metadata = checked_metadata(migrated.get("metadata", {}), f"{path}: metadata")
    preprocessing = read_preprocessing(migrated.get("preprocessing"), config, f"{path}: preprocessing")
    return config, metadata, preprocessing


def read_preprocessing(values: Any, config: Config, where: str) -> Preprocessing | None:
    """Return how a file says that images are prepared; None where it does not.

    Args:
        values: What the file says; None for nothing.
        config: Of the model that the images are for.
        where: File and field, for messages.

    Raises:
        ValueError: If that is not valid, or for images of another size or other channels.
    """
    if values is None:
        return None
    network = config.network
    own = {"image_size": network.image_size, "channels": network.channels}
    preprocessing = from_dict(Preprocessing, own | values if isinstance(values, dict) else values, where=where)
    for name, value in own.items():
        if (found := getattr(preprocessing, name)) != value:
            raise ValueError(f"{where}: {name} is {found}, the model's images have {value}")
    return preprocessing


def model_card(config: Config, metadata: dict[str, Any], preprocessing: Preprocessing | None, parameters: int) -> str:
    """Return the model card: what the model is, how it was trained, its figures.

    Metadata may hold names of folders, which are shown as they are: nothing in them is markup.
    """
    network, noise, training = config.network, config.noise, config.training
    stages = ", ".join(f"{stage.objective} (fraction {stage.fraction:g})" for stage in config.stages)
    rows = "\n".join(f"| {markdown_text(name)} | {markdown_text(value)} |" for name, value in metadata.items())
    images = "not said" if preprocessing is None else preprocessing.described()
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
| images prepared | {images} |
| noise levels | {noise.sigma_min:g} to {noise.sigma_max:g} |
| training stages | {stages} |
| batch, learning rate | {training.batch_size}, {training.learning_rate:g} |

## Training and figures

| | |
|---|---|
{rows or "| - | - |"}
"""
