"""What is settled before the first step: whether all fits together, the device, the first weights, where images lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from denoising_ebm.config import Config
from denoising_ebm.hub import WEIGHTS_FILE
from denoising_ebm.literals import Precision
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.training.checkpoint import has_state
from denoising_ebm.training.logging import METRICS_FILE
from denoising_ebm.utils.device import choose_device, choose_precision

CONFIG_FILE, MODEL_FOLDER, SAMPLES_FOLDER = "config.yaml", "model", "samples"


def check_run(pixels: Tensor, config: Config, folder: Path, resume: bool) -> None:
    """Refuse images that do not fit the settings, chains beyond the trained levels, and a folder with a run to resume.

    Raises:
        ValueError: If so.
    """
    network = config.network
    expected = (network.channels, network.image_size, network.image_size)
    if pixels.dtype != torch.uint8 or tuple(pixels.shape[1:]) != expected:
        found = tuple(pixels.shape[1:])
        raise ValueError(
            f"training images have shape {found}, but the model takes {expected}: change network.* or the data"
        )
    for stage in ("semantic", "pixel"):
        level = getattr(config.sampling, stage).sigma_max
        if level > config.noise.sigma_max:
            raise ValueError(
                f"sampling.{stage}.sigma_max is {level:g}, above noise.sigma_max {config.noise.sigma_max:g}: chains would "
                "start at a level that the network is not trained at"
            )
        level = getattr(config.sampling, stage).sigma_min
        # Runs of before may have it, and keep their settings.
        if level < config.noise.sigma_min and not resume:
            raise ValueError(
                f"sampling.{stage}.sigma_min is {level:g}, below noise.sigma_min {config.noise.sigma_min:g}: chains would "
                "end at a level that the network is not trained at"
            )
    if len(pixels) < 2:
        raise ValueError(f"training needs at least 2 images, got {len(pixels)}")
    if not resume:
        check_no_run(folder)


def check_no_run(folder: Path) -> None:
    """Refuse a folder with a run. One that died before its first state was written is none: there is nothing to go on from.

    Raises:
        ValueError: If so.
    """
    if has_state(folder):
        raise ValueError(f"{folder}: already holds a run; continue it with --resume or choose another --out")
    if any((folder / name).exists() for name in (METRICS_FILE, f"{MODEL_FOLDER}/{WEIGHTS_FILE}")):
        raise ValueError(f"{folder}: already holds a run, without a state to resume; choose another --out")


def choose_hardware(
    device: str, precision: Precision, saved: dict[str, Any] | None
) -> tuple[torch.device, Literal["fp32", "bf16"]]:
    """Return where to train; what is left to us (`auto`) is, for a run that goes on, as it was before.

    Args:
        device: As for `train`.
        precision: As for `train`.
        saved: The state of a run that goes on.
    """
    before = (saved or {}).get("hardware", {})
    if device == "auto" and (before.get("device") == "cpu" or torch.cuda.is_available()):
        device = before.get("device", device)
    if precision == "auto":
        precision = before.get("precision", precision)
    place = choose_device(device)
    return place, choose_precision(precision, place)


def new_model(config: Config, metadata: dict[str, Any] | None = None) -> DenoisingEBM:
    """Return a model with weights by the seed of `config`; the caller's random numbers stay as they are."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.training.seed)
        return DenoisingEBM(config, metadata)


def place_images(pixels: Tensor, device: torch.device) -> Tensor:
    """Return images on the device, unless they would take more than half of what is free there."""
    if device.type == "cuda" and pixels.numel() > torch.cuda.mem_get_info(device)[0] // 2:
        return pixels
    return pixels.to(device)
