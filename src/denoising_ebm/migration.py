"""Old files read as new ones: every change of a file's form since it was first written stands here, and only here.

Forms of a model folder (`format` in `config.json`):

1. Flat `sampling` settings, `recipe` of phases with shares, `facts`, the buffer `sensitivity`.
2. `sampling.semantic` and `sampling.pixel` with a named method, `stages` with fractions, `metadata`, `jacobian_norm`.

Forms of a detector (`format` in `detector.json`):

2. Several members, each a density or discriminants on some families of features; `facts`, `preparation`, `alterations`.
3. One detector: a flat config with `covariates` and `blocks`; `metadata`, `preprocessing`, `corruptions`.

A run folder (`config.yaml`, `state.pt`) holds the same config without a number; the functions leave new values as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

MODEL_FORMAT = 2
DETECTOR_FORMAT = 3

Named = TypeVar("Named")
P = ParamSpec("P")
R = TypeVar("R")


def _of_earlier_form(function: Callable[P, R]) -> Callable[P, R]:
    """Make a ValueError of whatever a part that is missing or of another kind leads to."""

    @wraps(function)
    def migrated(*arguments: P.args, **options: P.kwargs) -> R:
        try:
            return function(*arguments, **options)
        except (LookupError, TypeError, AttributeError, RuntimeError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:80]
            raise ValueError(f"a part is missing, or of another kind than files of its form have ({reason})") from None

    return migrated


_RENAMED = {
    "noise": {"levels": "num_sigmas"},
    "contrastive": {"positives": "positive_samples"},
    "training": {"encoder_learns_decoding": "decoder_loss_trains_encoder"},
}
_SEMANTIC = ("steps", "step_size", "sigma_max", "sigma_min", "prior")
_PIXEL = {
    "texture_steps": "steps",
    "texture_sigma_max": "sigma_max",
    "texture_sigma_min": "sigma_min",
    "texture_levels": "schedule",
    "cold_temperature": "low_temperature",
    "cold_sigma": "low_temperature_sigma",
    "final_denoise": "final_denoise",
}
_DRIFT = {"exact": "energy", "first-term": "denoiser"}


@_of_earlier_form
def migrate_config(values: dict[str, Any]) -> dict[str, Any]:
    """Return the plain values of a config, or of a part of one, in today's form; new values stay as they are."""
    values = {name: dict(value) if isinstance(value, dict) else value for name, value in values.items()}
    for section, names in _RENAMED.items():
        if isinstance(values.get(section), dict):
            values[section] = {names.get(name, name): value for name, value in values[section].items()}
    if isinstance(values.get("sampling"), dict):
        values["sampling"] = _migrate_sampling(values["sampling"])
    if isinstance(stages := values.pop("recipe", values.get("stages")), list | tuple):
        values["stages"] = [
            {"fraction" if name == "share" else name: value for name, value in stage.items()}
            if isinstance(stage, dict)
            else stage
            for stage in stages
        ]
    elif stages is not None:
        values["stages"] = stages
    return values


def _migrate_sampling(old: dict[str, Any]) -> dict[str, Any]:
    new: dict[str, Any] = {name: old.pop(name) for name in ("semantic", "pixel") if name in old}
    semantic = {name: old.pop(f"semantic_{name}") for name in _SEMANTIC if f"semantic_{name}" in old}
    pixel = {name: old.pop(before) for before, name in _PIXEL.items() if before in old}
    if "temperature" in old:
        semantic["temperature"] = pixel["temperature"] = old.pop("temperature")
    if "direction" in old:
        direction = old.pop("direction")
        pixel["drift"] = _DRIFT.get(direction, direction)
    if "renoise" in old:
        new["noise_init"] = old.pop("renoise")
    # One sampler stood behind three switches.
    if {"texture_step_size", "consistent", "texture_order"} & set(old):
        step_size = old.pop("texture_step_size", 0.01)
        consistent, order = old.pop("consistent", False), old.pop("texture_order", 1)
        if step_size == 0:
            pixel |= {"method": "dpmpp-2m-sde" if order == 2 else "ancestral", "step_size": None}
        else:
            pixel |= {"method": "consistent-annealed" if consistent else "annealed-langevin", "step_size": step_size}
    for name, part in (("semantic", semantic), ("pixel", pixel)):
        if part:
            new[name] = {**new.get(name, {}), **part}
    return new | old


def migrate_tensors(tensors: dict[str, Named]) -> dict[str, Named]:
    """Return what a model, or averaged weights, hold by the names of tensors by today's names."""
    return {
        "jacobian_norm".join(name.rsplit("sensitivity", 1)) if name.endswith("sensitivity") else name: tensor
        for name, tensor in tensors.items()
    }


@_of_earlier_form
def migrate_model(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a model folder's `config.json` in today's form; its tensors need `migrate_tensors`."""
    if values.get("format") != 1:
        return values
    config = values.get("config", {})
    return {
        "format": MODEL_FORMAT,
        "config": migrate_config(config) if isinstance(config, dict) else config,
        "metadata": values.get("facts", {}),
    }


@_of_earlier_form
def migrate_state(saved: dict[str, Any]) -> dict[str, Any]:
    """Return a run's `state.pt` in today's form."""
    saved = {**saved, "config": migrate_config(saved["config"])}
    for name in ("model", "average"):
        saved[name] = migrate_tensors(saved[name])
    clock = {"phase": "stage", "phase_step": "stage_step"}
    saved["clock"] = {clock.get(name, name): value for name, value in saved["clock"].items()}
    return saved


_FAMILIES = {"noised-energy": "noisy-energy", "channels": "colour", "pooled": "feature-statistics"}
_DETECTOR_TENSORS = {
    "members.0.expectation.given.mean": "lda.adjustment.regression.pca.mean",
    "members.0.expectation.given.spread": "lda.adjustment.regression.pca.std",
    "members.0.expectation.given.components": "lda.adjustment.regression.pca.components",
    "members.0.expectation.mean": "lda.adjustment.regression.mean",
    "members.0.expectation.log_variance": "lda.adjustment.regression.log_variance",
    "members.0.expectation.centre": "lda.adjustment.regression.mean_log_variance",
    "members.0.mean": "lda.adjustment.scaler.mean",
    "members.0.spread": "lda.adjustment.scaler.std",
    "members.0.centre": "lda.adjustment.residual_scaler.mean",
    "members.0.unit": "lda.adjustment.residual_scaler.std",
    "members.0.directions": "lda.directions",
    "members.0.offset": "lda.offset",
    "seen.fitted": "hashes.fitted",
    "seen.calibrated": "hashes.calibrated",
}


@_of_earlier_form
def migrate_detector(values: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what `detector.json` and `detector.safetensors` hold in today's form.

    Raises:
        ValueError: If it is made of densities or features that are gone.
    """
    if values.get("format") != 2:
        return _over_black(values), tensors
    renamed = {"facts": "metadata", "preparation": "preprocessing", "alterations": "corruptions"}
    values = {renamed.get(name, name): value for name, value in values.items()} | {"format": DETECTOR_FORMAT}
    values = _over_black(values)
    if "config" in values:
        values["config"] = _migrate_detector_config(values["config"])
    tensors = {_DETECTOR_TENSORS.get(name, name): tensor for name, tensor in tensors.items()}
    if "scale" in tensors:
        tensors["score.mean"], tensors["score.std"] = tensors.pop("scale")[:, 0]
    return values, tensors


def _over_black(values: dict[str, Any]) -> dict[str, Any]:
    """Return what `detector.json` holds, with the background of detectors that name none: transparent images were black."""
    preprocessing = values.get("preprocessing", {})
    if not isinstance(preprocessing, dict):
        return values
    return {**values, "preprocessing": {"background": "black", **preprocessing}}


def _migrate_detector_config(old: dict[str, Any]) -> dict[str, Any]:
    (member, *others), features, maps = old["members"], old["features"], old["maps"]
    if others or member["density"] != "discriminants" or member["families"] != features["families"] or features["flip"]:
        raise ValueError("made of several detectors or of densities, of which there are none now")

    def families(names: list[str]) -> list[str]:
        return [_FAMILIES.get(name, name) for name in names]

    return {
        "features": {
            "sigmas": features["sigmas"],
            "families": families(features["families"]),
            "feature_sigmas": features["inner_sigmas"],
            "seed": features["seed"],
        },
        "covariates": families(member["given"]),
        "blocks": [families(block) for block in member["blocks"]],
        "ridge": member["ridge"],
        "shift": member["shift"],
        "num_corrupted": old["altered"],
        "maps": {
            {"draws": "num_noise_samples", "smooth": "blur"}.get(name, name): value for name, value in maps.items()
        },
    }
