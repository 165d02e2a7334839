"""The two files of a detector, `detector.json` and `detector.safetensors`, written, read and checked as one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import safetensors.torch
from torch import Tensor

from denoising_ebm.hub import DETECTOR_FILES
from denoising_ebm.literals import Precision
from denoising_ebm.migration import DETECTOR_FORMAT, migrate_detector
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.ood.corruptions import corruptions
from denoising_ebm.ood.detector_config import DetectorConfig
from denoising_ebm.ood.features import feature_counts
from denoising_ebm.schema import Specs, TensorSpec, check_tensors, checked_metadata, load_tensors, plain_metadata
from denoising_ebm.utils.hashes import check_file_hash, check_own_hash, sealed
from denoising_ebm.utils.io import read_json, write_together
from denoising_ebm.utils.parsing import MAX_JSON, shown, shown_name
from denoising_ebm.utils.text import counted

CONFIG_FILE, TENSORS_FILE = DETECTOR_FILES
_HINT = "fit it again with `debm fit-detector`"
#: Bytes of `detector.safetensors` at most; that of the bundled model has 0.8 MB.
MAX_TENSORS = 2**30


def write_detector(folder: Path, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write both files, each complete or not at all; hashes tell whether they are as written and belong together."""
    content = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
    digest = hashlib.sha256(content).hexdigest()
    values = {"format": DETECTOR_FORMAT, **values, "metadata": plain_metadata(values.get("metadata", {}))}
    # By this entry versions of before know the file.
    values = sealed(values | {"tensors": digest}, CONFIG_FILE, {TENSORS_FILE: digest})
    text = json.dumps(values, indent=2) + "\n"
    write_together({folder / TENSORS_FILE: content, folder / CONFIG_FILE: text.encode()})


def read_detector(folder: Path, *, fingerprint: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what both files hold, in today's form; tensors are to be checked by `check_detector_tensors`.

    Args:
        folder: Where they are.
        fingerprint: Of the weights that the detector must have been fitted with.

    Raises:
        FileNotFoundError: If one is missing.
        ValueError: If one is damaged, they do not belong together, or the detector belongs to other weights.
    """
    path, tensors_path = folder / CONFIG_FILE, folder / TENSORS_FILE
    for file in (path, tensors_path):
        if not os.path.lexists(file):
            raise FileNotFoundError(f"{file}: missing; `debm fit-detector` makes it")
    values = read_json(path, max_bytes=MAX_JSON)
    tensors, digest = load_tensors(tensors_path, MAX_TENSORS)
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
            f"{path}: fitted for other weights ({shown_name(values['model'])}) than those given ({fingerprint}); {_HINT}"
        )
    if values["precision"] not in (known := get_args(Precision)):
        raise ValueError(f"{path}: precision: expected one of {', '.join(known)}, got {shown(values['precision'])}")
    return values | {"metadata": checked_metadata(values.get("metadata", {}), f"{path}: metadata")}, tensors


def check_detector_hashes(folder: Path) -> None:
    """Refuse files that are not as they were written; to be called last, since what else is wrong says more.

    Raises:
        ValueError: If one is not.
    """
    path = folder / CONFIG_FILE
    values = read_json(path, max_bytes=MAX_JSON)
    check_own_hash(values, path)
    check_file_hash(values, path, folder / TENSORS_FILE, _HINT)


def check_corruptions(names: Any, channels: int, path: Path) -> tuple[str, ...]:
    """Return the corruptions that a detector was shown.

    Raises:
        ValueError: If they are no list of names of corruptions of images with so many channels, each once.
    """
    known = corruptions(channels)
    if not isinstance(names, list) or not names:
        raise ValueError(f"{path}: corruptions: expected a list of names, got {shown(names)}")
    unknown = [name for name in names if not isinstance(name, str) or name not in known]
    if unknown:
        raise ValueError(
            f"{path}: corruptions: {shown(unknown[0])} is none of images with {counted(channels, 'channel')}"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"{path}: corruptions: a name is given twice")
    return tuple(names)


def check_detector_tensors(
    tensors: Mapping[str, Tensor], config: DetectorConfig, model: DenoisingEBM, kinds: int, path: Path
) -> None:
    """Refuse tensors that are not those of a detector of this config for this model.

    Args:
        tensors: By name.
        config: Of the detector.
        model: The model.
        kinds: Corruptions that it was shown.
        path: Of their file.

    Raises:
        ValueError: Naming the first that is missing, unknown, of another shape or type, or not finite.
    """
    specs = _specs(tensors, config, model, kinds)
    check_tensors(specs, tensors, path, misfit=f"does not fit {CONFIG_FILE}")


def _specs(tensors: Mapping[str, Tensor], config: DetectorConfig, model: DenoisingEBM, kinds: int) -> Specs:
    counts = feature_counts(config.features, model.config.network)
    columns = sum(counts[family] for family in config.features.families)
    covariates = sum(counts[family] for family in config.covariates)

    # What only the fitting decided is taken from one of the tensors, and holds for the others.
    def size(name: str, axis: int) -> int:
        shape = tensors[name].shape if name in tensors else ()
        return shape[axis] if axis < len(shape) else 0

    kept = min(size("lda.adjustment.regression.pca.components", 1), covariates)
    terms = 1 + kept + kept * (kept + 1) // 2
    adjustment, regression = "lda.adjustment", "lda.adjustment.regression"
    specs = {
        f"{adjustment}.scaler.mean": TensorSpec((columns,)),
        f"{adjustment}.scaler.std": TensorSpec((columns,), positive=True),
        f"{regression}.pca.mean": TensorSpec((covariates,)),
        f"{regression}.pca.std": TensorSpec((covariates,), positive=True),
        f"{regression}.pca.components": TensorSpec((covariates, kept)),
        f"{regression}.mean": TensorSpec((terms, columns)),
        f"{regression}.log_variance": TensorSpec((terms, columns)),
        # Its exponential is taken.
        f"{regression}.mean_log_variance": TensorSpec((columns,), most=100.0),
        f"{adjustment}.residual_scaler.mean": TensorSpec((columns,)),
        f"{adjustment}.residual_scaler.std": TensorSpec((columns,), positive=True),
        "lda.directions": TensorSpec((columns, kinds)),
        "lda.offset": TensorSpec((kinds,)),
        "score.mean": TensorSpec(()),
        "score.std": TensorSpec((), positive=True),
        "calibration": TensorSpec((None,)),
    }
    levels, side = _map_levels(config, model), model.config.network.image_size
    optional = {
        "maps.spread": TensorSpec((), positive=True),
        "hashes.fitted": TensorSpec((None,), whole=True),
        "hashes.calibrated": TensorSpec((None,), whole=True),
        **_optional_scores("calibration", size("calibration", 0)),
        "copies": TensorSpec((None,)),
        **_optional_scores("copies", size("copies", 0)),
    }
    # A detector that was fitted to features alone has no maps.
    if any(name.startswith("maps.") for name in tensors):
        specs["maps.mean"] = TensorSpec((levels, side, side))
        specs["maps.std"] = TensorSpec((levels, side, side), positive=True)
    return specs | {name: spec for name, spec in optional.items() if name in tensors}


def _optional_scores(name: str, count: int) -> dict[str, TensorSpec]:
    """Return what may stand beside the scores of so many images: their groups and how they were stored."""
    return {f"{name}.{part}": TensorSpec((count,), whole=True) for part in ("groups", "kinds")}


def _map_levels(config: DetectorConfig, model: DenoisingEBM) -> int:
    sigmas = (*config.maps.sigmas, *config.maps.clean_sigmas)
    # A model trained by `score` has each level once.
    return len(sigmas) if model.config.energy.denoiser == "output" else len(dict.fromkeys(sigmas))
