"""Photos through an inspector, one after another, into a folder of results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor

from denoising_ebm.datasets.photos import PhotoSet
from denoising_ebm.inspection.inspector import Inspector
from denoising_ebm.inspection.metrics import Record, Row, evaluate_maps
from denoising_ebm.inspection.page import InspectionFolder
from denoising_ebm.inspection.repair import LARGEST, MAX_REGIONS, left_out, repair
from denoising_ebm.inspection.results import InspectedPhoto
from denoising_ebm.utils.text import counted


def inspect_photos(
    inspector: Inspector,
    photos: PhotoSet,
    rate: float,
    *,
    unreadable: Callable[[str, str], object],
    min_area: int = 1,
    repairs: bool = False,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
) -> Iterator[InspectedPhoto]:
    """Judge photos one after another.

    Args:
        inspector: The inspector.
        photos: The photos.
        rate: Share of normal photos in which anything may be marked.
        unreadable: Called with name and reason of a photo that cannot be read, or does not fit; the others go on.
        min_area: Smaller regions are not marked, in pixels.
        repairs: Draw marked regions anew.
        seed: Of repairs.
        progress: Called with 1 after each photo.
    """
    for i, name in enumerate(photos.names):
        try:
            inspected = inspector.inspect(photos[i], rate, min_area=min_area)
        except ValueError as error:
            unreadable(name, str(error).removeprefix(f"{photos.root}/").removeprefix(f"{name}: "))
        else:
            if repairs and inspected.flagged:
                repaired = repair(inspector.model, inspected.x, inspected.mask, seed=seed)
                notes = inspected.notes + _note_of_repair(inspected.mask)
                inspected = replace(inspected, repaired=repaired, notes=notes)
            yield inspected
        if progress is not None:
            progress(1)


def inspect_into(
    folder: InspectionFolder, inspector: Inspector, photos: PhotoSet, rate: float, *, seed: int = 0, **options: Any
) -> list[Row]:
    """Judge photos, and write what is found as it is found.

    Args:
        folder: Where results go.
        inspector: The inspector.
        photos: The photos.
        rate: Share of normal photos in which anything may be marked.
        seed: Of repairs and of the bootstrap.
        options: Further ones of `inspect_photos`.

    Returns:
        Figures by kind of defect, where folders say which photos are normal and which are not; else none.
    """

    def written() -> Iterator[InspectedPhoto]:
        found = inspect_photos(inspector, photos, rate, unreadable=folder.add_unreadable, seed=seed, **options)
        for inspected in found:
            folder.add(inspected)
            yield inspected

    if not set(photos.is_normal) >= {True, False}:
        for _ in written():
            pass
        return []
    rows = evaluate_maps(map(record_of, written()), seed=seed)
    folder.add_metrics(rows)
    return rows


def _note_of_repair(mask: Tensor) -> tuple[str, ...]:
    """Say what of a mask is not repaired."""
    left, marked = int(left_out(mask).sum()), int(mask.sum())
    if left == 0:
        return ()
    which = f"the {MAX_REGIONS} largest regions are, each within {LARGEST} x {LARGEST} pixels"
    return (f"{counted(left, 'pixel')} of {marked:,} marked ones are not drawn anew: {which}",)


def record_of(inspected: InspectedPhoto) -> Record:
    """Return what figures are made of."""
    return Record(
        kind=inspected.kind or "unknown",
        is_normal=bool(inspected.is_normal),
        score=inspected.score,
        anomaly_map=inspected.map,
        mask=inspected.truth,
        marked=inspected.mask,
        name=inspected.name,
    )
