"""From data to the page: which studies, at which scale, on which images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from denoising_ebm.config import Config
from denoising_ebm.experiments.cache import Log, ResultCache, identity, settings_hash
from denoising_ebm.experiments.experiment import Experiment
from denoising_ebm.experiments.figures import figure4, figure5, speed
from denoising_ebm.experiments.page import Page
from denoising_ebm.experiments.settings import SIZES, Scale, base_config
from denoising_ebm.experiments.tables import classes, table1, table2, table3, table4
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.utils.device import choose_device, describe
from denoising_ebm.viz.report import Section

STUDIES: dict[str, Callable[[Experiment], Section]] = {
    "table1": table1,
    "table2": table2,
    "table3": table3,
    "table4": table4,
    "classes": classes,
    "figure4": figure4,
    "figure5": figure5,
    "speed": speed,
}


_NO_SECOND = Section("Table 2: samples of the second set", "No second set was given: add --second DATA.")


@dataclass(frozen=True)
class Images:
    """Images of one data set, uint8 `(n, c, h, w)`; `labels` are the classes of training and of test images."""

    name: str
    train: Tensor
    test: Tensor
    odd: Mapping[str, Tensor] = field(default_factory=dict)
    labels: tuple[Sequence[str | None], Sequence[str | None]] = ((), ())


def reproduce(
    targets: Sequence[str],
    scale: Scale,
    folder: Path,
    images: Images,
    *,
    second: Images | None = None,
    minutes: float = 0.0,
    seed: int = 0,
    device: str = "auto",
    trained: DenoisingEBM | None = None,
    trained_name: str = "",
    inception: bool | str = False,
    command: str = "",
    log: Log = lambda message: None,
) -> tuple[Path, list[str]]:
    """Run studies and write `index.html`, `results.md` and its pictures; rows that are finished are not run again.

    The page shows the studies that were finished in this folder before, too.

    Args:
        targets: Names in `STUDIES`, at least one.
        scale: `tiny`, `small` or `full`.
        folder: For everything.
        images: The main data set.
        second: The data set of table 2.
        minutes: Of each training; 0 for the scale's own.
        seed: Of everything.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        trained: Takes the place of the model trained by denoising.
        trained_name: Its name.
        inception: As for `evaluation.quality.FidelityEvaluator`.
        command: Shown on the page.
        log: Told of every row.

    Returns:
        The page, and the targets that could not be made: the page says why, and the others were.

    Raises:
        ValueError: If the folder holds a reproduction with other settings, or the model takes other images.
    """
    first = _base(images, scale, minutes, seed)
    # A shell completes the name of a folder with a slash, and means the same folder.
    data, model = images.name.rstrip("/"), trained_name.rstrip("/")
    settings = {"scale": scale, "data": data, "seed": seed, "minutes": minutes, "model": model}
    # Rows of other counts or other settings of training, as of another version, must not stand beside these.
    result_cache = ResultCache(folder, settings | {"configuration": _fingerprint(scale, first)}, log)
    options: dict[str, Any] = {"inception": inception, "device": device}
    # One for all studies of a set: they share its samples, its judge and its models.
    experiment = _experiment(result_cache, scale, first, images, trained, options)
    second_experiment = None
    if second is not None:
        base = _base(second, scale, minutes, seed)
        others = settings | {"data": second.name.rstrip("/"), "configuration": _fingerprint(scale, base)}
        place = ResultCache(folder / "second", others, lambda row: log(f"second set: {row}"))
        second_experiment = _experiment(place, scale, base, second, None, options)
        place.begin()
    # So that a training that is interrupted before the first row is found again.
    result_cache.begin()
    sources = {name: second_experiment if name == "table2" else experiment for name in STUDIES}
    page = Page(
        folder,
        list(STUDIES),
        metadata(settings, images, second, command, choose_device(device)),
        {name: settings_hash(source.depends) for name, source in sources.items() if source is not None},
    )
    failed: list[str] = []
    for target in targets:
        source = sources[target]
        # After each study the page is written: those of hours before must not wait for the last.
        try:
            if source is not None:
                page.add(target, STUDIES[target](source))
            elif target not in page:
                page.add(target, _NO_SECOND, keep=False)
        except (ValueError, FileNotFoundError) as error:
            log(f"{target}: left out: {error}")
            failed.append(target)
            page.add(target, Section(target.capitalize(), f"Left out: {error}"), keep=False)
    return page.path, failed


def _experiment(
    result_cache: ResultCache,
    scale: Scale,
    base: Config,
    images: Images,
    trained: DenoisingEBM | None,
    options: Mapping[str, Any],
) -> Experiment:
    shape = tuple(images.train.shape[1:])
    if trained is not None and trained.image_shape != shape:
        raise ValueError(f"the model takes images of shape {trained.image_shape}, {images.name} has {shape}")
    return Experiment(
        result_cache,
        SIZES[scale],
        base,
        images.train,
        images.test,
        data_name=images.name,
        odd=images.odd,
        labels=images.labels,
        trained=trained,
        **options,
    )


def _base(images: Images, scale: Scale, minutes: float, seed: int) -> Config:
    channels, size = images.train.shape[1:3]
    try:
        return base_config(scale, size, channels, minutes, seed)
    except ValueError as error:
        raise ValueError(f"{images.name}: images of {size}x{size}: {error}") from None


def _fingerprint(scale: Scale, base: Config) -> str:
    return settings_hash([asdict(SIZES[scale]), identity(base)])


def metadata(
    settings: Mapping[str, object], images: Images, second: Images | None, command: str, device: torch.device
) -> dict[str, list[str]]:
    """Return what stands on top of the page."""
    from denoising_ebm import __version__

    sets = [source for source in (images, second) if source is not None]
    lines = {
        "command": [command],
        "version": [f"denoising-ebm {__version__}"],
        "hardware": [describe(device)],
        "scale": [str(settings["scale"])],
        "seed": [str(settings["seed"])],
        "images": [f"{s.name}: {len(s.train):,} to train on, {len(s.test):,} test images" for s in sets],
        "model": [str(settings["model"])],
    }
    return {name: values for name, values in lines.items() if any(values)}
