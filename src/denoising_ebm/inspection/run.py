"""Photos through an inspector, one after another, into a folder of results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from denoising_ebm.datasets.photos import PhotoSet
from denoising_ebm.inspection.inspector import Inspector
from denoising_ebm.inspection.metrics import Record, Row, evaluate_maps
from denoising_ebm.inspection.page import InspectionFolder
from denoising_ebm.inspection.repair import repair
from denoising_ebm.inspection.results import InspectedPhoto


def inspect_into(
    folder: InspectionFolder,
    inspector: Inspector,
    photos: PhotoSet,
    rate: float,
    *,
    min_area: int = 1,
    repairs: bool = True,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
) -> list[Row]:
    """Judge photos, and write what is found as it is found.

    A photo that cannot be read, or does not fit the model, gets a row that says why, and the others go on.

    Args:
        folder: Where results go.
        inspector: The inspector.
        photos: The photos.
        rate: Share of normal photos in which anything may be marked.
        min_area: Smaller regions are not marked, in pixels.
        repairs: Draw marked regions anew.
        seed: Of repairs and of the bootstrap.
        progress: Called with 1 after each photo.

    Returns:
        Figures by kind of defect, where folders say which photos are normal and which are not; else none.
    """

    def found() -> Iterator[InspectedPhoto]:
        for i, name in enumerate(photos.names):
            try:
                inspected = inspector.inspect(photos[i], rate, min_area=min_area)
            except ValueError as error:
                reason = str(error).removeprefix(f"{photos.root}/").removeprefix(f"{name}: ")
                folder.add_unreadable(name, reason)
            else:
                if repairs and inspected.flagged:
                    repaired = repair(inspector.model, inspected.x, inspected.mask, seed=seed)
                    inspected = replace(inspected, repaired=repaired)
                folder.add(inspected)
                yield inspected
            if progress is not None:
                progress(1)

    if not set(photos.is_normal) >= {True, False}:
        for _ in found():
            pass
        return []
    rows = evaluate_maps(map(_record, found()), seed=seed)
    folder.add_metrics(rows)
    return rows


def _record(inspected: InspectedPhoto) -> Record:
    return Record(
        kind=inspected.kind or "unknown",
        is_normal=bool(inspected.is_normal),
        score=inspected.score,
        anomaly_map=inspected.map,
        mask=inspected.truth,
        marked=inspected.mask,
        name=inspected.name,
    )
