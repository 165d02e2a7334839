"""From a set of normal photos to an inspector: the model on crops, the head on made defects, the promise on the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from denoising_ebm.config import Config
from denoising_ebm.datasets.photos import PhotoSet
from denoising_ebm.inspection.bank import PhotoBank
from denoising_ebm.inspection.defects import Defect
from denoising_ebm.inspection.inspector import MIN_PHOTOS, Inspector, InspectorConfig, Progress, split_photos
from denoising_ebm.inspection.regions import promise
from denoising_ebm.literals import Precision
from denoising_ebm.presets import preset
from denoising_ebm.training.checkpoint import has_state
from denoising_ebm.training.setup import MODEL_FOLDER
from denoising_ebm.training.trainer import train

#: Share of the time that goes to the model; the rest goes to the head.
MODEL_SHARE = 0.35
#: Crops that the model learns from, and bytes of them at most.
NUM_CROPS, MAX_CROP_BYTES = 20_000, 2**28


def photo_config(channels: int, *, minutes: float, seed: int, base: Config | None = None) -> Config:
    """Return the settings of a model of photos with so many channels, trained for some minutes.

    Args:
        channels: Of the photos.
        minutes: To train for.
        seed: Of weights and draws.
        base: Settings to start from; the preset `photo` if None.
    """
    base = base or preset("photo")
    return replace(
        base,
        network=replace(base.network, channels=channels),
        training=replace(base.training, max_minutes=minutes, max_images=10**9, seed=seed),
    )


def check_enough(count: int) -> None:
    """Refuse a number of normal photos that is too small to learn from and to promise anything.

    Raises:
        ValueError: If it is.
    """
    if count < 2 * MIN_PHOTOS:
        raise ValueError(
            f"an inspector needs at least {2 * MIN_PHOTOS} normal photos, half of them for the promise "
            f"({promise(MIN_PHOTOS)}), got {count}"
        )


def train_inspector(
    photos: PhotoSet,
    folder: str | Path,
    *,
    config: InspectorConfig | None = None,
    model_config: Config | None = None,
    defects: Mapping[str, Defect] | None = None,
    groups: str = "none",
    minutes: float = 10.0,
    seed: int = 0,
    data_name: str = "",
    device: str = "auto",
    precision: Precision = "auto",
    quiet: bool = False,
    progress: Progress | None = None,
) -> Inspector:
    """Train a model and its inspector on normal photos, and write both into `folder/model`.

    A quarter of the photos (of few photos up to half) has no part in training: from these the promise is made. A training
    of the model that was interrupted goes on where it was.

    Args:
        photos: Normal photos.
        folder: The run folder.
        config: What the inspector computes.
        model_config: Settings of the model, as from `photo_config`; else the preset `photo` for its share of `minutes`.
        defects: Kinds of made defects; `defects.DEFECTS` if None.
        groups: What is one group of photos, as for `split_photos`.
        minutes: To train for, model and head together.
        seed: Of the split and of all draws.
        data_name: Where the photos come from, for the model card.
        device: As for `training.trainer.train`.
        precision: As for `training.trainer.train`.
        quiet: No progress of the model's training.
        progress: As for `Inspector.fit`.

    Returns:
        The inspector.

    Raises:
        ValueError: If there are too few photos, `minutes` is not above 0, or the folder holds another run.
        KeyboardInterrupt: If the training of the model was interrupted; it is saved.
    """
    if not minutes > 0:
        raise ValueError(f"minutes must be > 0, got {minutes:g}")
    check_enough(len(photos))
    config = config or InspectorConfig()
    split = split_photos(photos, groups, seed=seed)
    model_config = model_config or photo_config(photos.channels, minutes=MODEL_SHARE * minutes, seed=seed)
    network, run = model_config.network, Path(folder)
    rng = np.random.default_rng([seed, 0])
    bank = PhotoBank.of(photos.take(split.fitted), rng, least_side=max(config.head.crop, network.image_size))
    count = min(NUM_CROPS, MAX_CROP_BYTES // (network.channels * network.image_size**2))
    result = train(
        bank.crops(count, network.image_size, rng, turns=config.head.turns),
        model_config,
        run,
        data_name=data_name,
        resume=has_state(run),
        device=device,
        precision=precision,
        quiet=quiet,
    )
    if result.interrupted or not result.finished:
        raise KeyboardInterrupt
    head = config.head
    if not head.max_minutes:
        config = replace(config, head=replace(head, max_minutes=(1 - MODEL_SHARE) * minutes))
    inspector = Inspector.fit(
        result.model.set_precision(precision),
        photos.take(split.fitted),
        calibration=photos.take(split.kept),
        groups=split.groups,
        config=config,
        bank=bank,
        defects=defects,
        seed=seed,
        progress=progress,
    )
    inspector.metadata["groups"] = split.by
    inspector.save(run / MODEL_FOLDER)
    return inspector
