"""`debm inspect`."""

from __future__ import annotations

import builtins
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from denoising_ebm.cli.common import check_apart, check_at_least, check_output_folder, check_positive, note
from denoising_ebm.cli.options import HARDWARE, HardwareOptions
from denoising_ebm.utils.text import counted

if TYPE_CHECKING:
    from denoising_ebm.datasets.photos import PhotoSet
    from denoising_ebm.inspection.inspector import Inspector, InspectorConfig, Progress
    from denoising_ebm.inspection.metrics import Row

#: Where `--train` puts the model, in the folder of the results.
RUN_FOLDER = "run"


def inspect(
    photos: str,
    *,
    out: Path,
    model: str | None = None,
    train: bool = False,
    normal: str | None = None,
    minutes: float = 10.0,
    rate: float = 0.05,
    min_area: int = 1,
    no_repair: bool = False,
    maps: Literal["npy", "tiff", "none"] = "npy",
    aligned: Literal["auto", "yes", "no"] = "auto",
    no_turns: bool = False,
    groups: str = "none",
    range: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    hardware: HardwareOptions = HARDWARE,
) -> None:
    """Find what is odd in photos of any size: flags, masks with a promise, repaired regions, and a page.

    With --train a model is made first from normal photos: those of PHOTOS that its folders call so (train/good of MVTec
    AD's layout, good/ beside others), or all of --normal. A quarter of them is kept out of training. No labels, no
    defects and no pretrained weights are needed: the model learns normal photos, then a small network learns on made
    defects to read what the model finds odd. The result can be used again with --model OUT/run.

    The promise: of normal photos like those that were kept, at most the share --rate is marked anywhere, on average. It
    covers all regions of a photo. N kept photos allow rates down to 1 / (N + 1).

    Writes into the folder --out: index.html (a page with every photo, the flagged ones with regions, repair and
    difference), photos.csv and regions.csv, and folders masks/, maps/, overlays/, repaired/ and difference/. Where
    folders say which photos are defective, their kinds are measured as well: image AUROC and, with masks, pixel AUROC,
    AUPRO, AUPIMO, and F1 at the promised rate (metrics.csv).

    Examples:
        debm inspect paper --train --minutes 3 --rate 0.1 --out runs/paper
        debm inspect bottle/ --train --out runs/bottle
        debm inspect new-photos/ --model runs/bottle/run --rate 0.02 --out monday
        debm inspect new-photos/ --train --normal good-photos/ --minutes 20 --out runs/mine

    Args:
        photos: Folder of photos: MVTec AD's or VisA's layout, good/ and defective/, or any files; PNG, JPEG, TIFF, NPY. Or
            paper, the bundled set.
        out: Folder to write to.
        model: Run or model folder with an inspector, from an earlier --train.
        train: Make a model from normal photos first.
        normal: Folder of normal photos to train on. By default those of PHOTOS.
        minutes: To train for, model and head together.
        rate: Share of normal photos in which anything may be marked.
        min_area: Leave out regions of fewer pixels.
        no_repair: Do not draw flagged regions anew, which takes a second or two for each.
        maps: Format of the anomaly maps, or none.
        aligned: Whether photos show the same thing at the same place, which is judged by what is normal there. By default
            that is found out.
        no_turns: Photos have a top: do not turn or mirror them in training.
        groups: Normal photos that belong together (crops of a sheet, shots of a part) and are no independent evidence:
            none, each stands for itself; folder; prefix (names that differ in the number at their end); a regular
            expression with one group in parentheses; auto finds near copies. What is promised counts groups.
        range: Levels that become black and white in files of more than 8 bits: HIGH or LOW,HIGH.
        split: Part of PHOTOS to inspect. By default test, or all that is not trained on.
        limit: Inspect the first N photos only.
        seed: Of the split, the training and the repairs.
        hardware: Where to compute.
    """
    check_positive(minutes=minutes)
    check_at_least(1, min_area=min_area, **({} if limit is None else {"limit": limit}))
    check_at_least(0, seed=seed)
    if not 0 < rate < 1:
        raise ValueError(f"--rate must be in (0, 1), got {rate:g}")
    if (model is None) == (not train):
        raise ValueError("give --model FOLDER, or --train to make one")
    if normal is not None and not train:
        raise ValueError("--normal needs --train")
    check_output_folder(out)
    check_apart("--out", out, photos)
    from denoising_ebm.datasets.levels import parse_range
    from denoising_ebm.datasets.photos import open_photos
    from denoising_ebm.inspection.head import HeadConfig
    from denoising_ebm.inspection.inspector import Inspector, InspectorConfig, split_photos
    from denoising_ebm.inspection.training import check_enough
    from denoising_ebm.utils.lock import locked

    value_range = None if range is None else parse_range(range)
    with locked(out, "debm inspect"):
        if train:
            found = open_photos(normal or photos, default_split="train", normal_only=True, value_range=value_range)
            # All are read once before any work, and what cannot be is left out.
            learned = found.check()
            _note_all(normal or photos, found.remarks())
            check_enough(len(learned))
            split_photos(learned, groups, seed=seed).check_rate(rate)
            told = {"auto": None, "yes": True, "no": False}[aligned]
            head = HeadConfig(turns=not no_turns, max_crops=10**9)
            config = InspectorConfig(head, aligned=told, value_range=value_range)
            inspector = _train(learned, out / RUN_FOLDER, normal or photos, config, minutes, groups, seed, hardware)
            source = out / RUN_FOLDER
        else:
            assert model is not None
            inspector = Inspector.from_pretrained(model, device=hardware.device)
            source = Path(model)
            if value_range not in (None, inspector.config.value_range):
                note(f"--range {range}: the model was trained on photos with {inspector.config.value_range or 'none'}")
            value_range = value_range or inspector.config.value_range
        inspector.check_rate(rate)
        channels = inspector.model.config.network.channels
        chosen = open_photos(photos, split=split, default_split="test", channels=channels, value_range=value_range)
        if train and normal is None and split is None:
            chosen = chosen.without(learned)
        if limit is not None:
            chosen = chosen.take(builtins.range(min(limit, len(chosen))))
        if len(chosen) == 0:
            raise ValueError(
                f"{photos}: no photos are left to inspect, all {len(learned):,} are normal ones to learn from; inspect "
                f"others with --model {source}"
            )
        _inspect(inspector, chosen, out, str(source), photos, rate, min_area, not no_repair, maps, seed)


def _train(
    photos: PhotoSet,
    folder: Path,
    name: str,
    config: InspectorConfig,
    minutes: float,
    groups: str,
    seed: int,
    hardware: HardwareOptions,
) -> Inspector:
    from denoising_ebm.inspection.training import train_inspector

    note(f"{name}: {counted(len(photos), 'normal photo')} to learn from")
    with _progress() as progress:
        inspector = train_inspector(
            photos,
            folder,
            config=config,
            groups=groups,
            minutes=minutes,
            seed=seed,
            data_name=name,
            device=hardware.device,
            precision=hardware.precision,
            progress=progress,
        )
    found = "aligned" if inspector.config.aligned else "not aligned"
    note(f"{folder}: model and inspector; photos are {found}; {inspector.promise()}")
    return inspector


def _inspect(
    inspector: Inspector,
    photos: PhotoSet,
    out: Path,
    model: str,
    source: str,
    rate: float,
    min_area: int,
    repair: bool,
    maps: Literal["npy", "tiff", "none"],
    seed: int,
) -> None:
    from denoising_ebm.inspection.page import About, InspectionFolder
    from denoising_ebm.inspection.run import inspect_into
    from denoising_ebm.utils.progress import progress_bar

    about = About(
        model=model,
        source=source,
        rate=rate,
        num_calibration=inspector.num_calibration,
        unit=inspector.calibration_unit,
        threshold=inspector.threshold(rate),
        command=shlex.join(["debm", *sys.argv[1:]]),
    )
    with InspectionFolder(out, about, maps=maps) as folder, progress_bar("inspecting", len(photos)) as progress:
        rows = inspect_into(
            folder, inspector, photos, rate, min_area=min_area, repairs=repair, seed=seed, progress=progress
        )
    if rows:
        _print_rows(rows)
    _note_all(source, photos.remarks())
    left_out = f", {folder.num_unreadable:,} not judged (photos.csv says why)" if folder.num_unreadable else ""
    note(
        f"{out}: {folder.num_flagged:,} of {counted(folder.count, 'photo')} flagged at rate {rate:g}{left_out}; "
        f"page: {out / 'index.html'}"
    )
    if not folder.count:
        raise ValueError(f"{source}: none of {counted(folder.num_unreadable, 'photo')} could be judged")


def has_inspector(model: str) -> bool:
    """Whether the folder of a model holds an inspector of photographs."""
    from denoising_ebm.hub import INSPECTOR_FILES, find_model_folder

    return (find_model_folder(model) / INSPECTOR_FILES[0]).is_file()


def measure_photos(
    model: str, source: str, out: Path | None, rate: float, seed: int, resamples: int, hardware: HardwareOptions
) -> None:
    """Print the figures of a model's inspector on photos whose kinds folders say, and write results if `out` is given.

    Raises:
        ValueError: If folders do not say which photos are normal and which are not.
    """
    from denoising_ebm.datasets.photos import open_photos
    from denoising_ebm.inspection.inspector import Inspector
    from denoising_ebm.inspection.metrics import evaluate_maps
    from denoising_ebm.inspection.run import inspect_photos, record_of
    from denoising_ebm.utils.progress import progress_bar

    inspector = Inspector.from_pretrained(model, device=hardware.device)
    inspector.check_rate(rate)
    channels, value_range = inspector.model.config.network.channels, inspector.config.value_range
    photos = open_photos(source, default_split="test", channels=channels, value_range=value_range)
    if not set(photos.is_normal) >= {True, False}:
        raise ValueError(
            f"{source}: folders do not say which photos are normal and which are not (good/ beside others)"
        )
    if out is not None:
        _inspect(inspector, photos, out, model, source, rate, 1, False, "npy", seed)
        return
    lost: list[str] = []
    with progress_bar("measuring", len(photos)) as progress:
        found = inspect_photos(
            inspector, photos, rate, unreadable=lambda name, why: lost.append(name), progress=progress
        )
        rows = evaluate_maps(map(record_of, found), seed=seed, resamples=resamples)
    _print_rows(rows)
    if lost:
        note(f"{source}: {counted(len(lost), 'photo')} could not be judged, first {lost[0]}")
    _note_all(source, photos.remarks())


def _print_rows(rows: list[Row]) -> None:
    from denoising_ebm.inspection.page import metrics_table
    from denoising_ebm.viz.report import print_table

    print_table(metrics_table(rows))


def _note_all(source: str, remarks: list[str]) -> None:
    for remark in remarks:
        note(f"{source}: {remark}")


@contextmanager
def _progress() -> Iterator[Progress]:
    """Show what is being done: a bar for each part of the work on a terminal, a line now and then elsewhere."""
    from denoising_ebm.utils.progress import progress_bar

    with ExitStack() as bars:
        part, done = "", 0
        advance: Callable[[int], object] = lambda count: None  # noqa: E731

        def report(what: str, share: float) -> None:
            nonlocal part, done, advance
            if what.partition(",")[0] != part:
                bars.close()
                part, done = what.partition(",")[0], 0
                advance = bars.enter_context(progress_bar(part, 1000))
            reached = round(1000 * share)
            if reached > done:
                advance(reached - done)
                done = reached

        yield report
