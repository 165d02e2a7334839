"""Where images come from: folders, Parquet files, the bundled sets and the Hub, and what was taken of them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from denoising_ebm.datasets import layouts
from denoising_ebm.datasets.entries import Entry
from denoising_ebm.datasets.hub import PREFIX, open_hub
from denoising_ebm.datasets.layouts import SPLITS, Part, Sorted
from denoising_ebm.datasets.listing import RAW, READ, File, list_folder, suffix_of
from denoising_ebm.datasets.parquet import ParquetRows
from denoising_ebm.utils.io import special_kind
from denoising_ebm.utils.text import counted

BUNDLED = {"fashion-mnist": ("train", "test"), "digits": ("test",)}
"""Names and splits of the real images inside the package (32x32 gray)."""
_DATA = Path(__file__).parents[1] / "assets" / "datasets"


@dataclass(frozen=True, eq=False)
class Source:
    """Undecoded images, and what is to be said of where they come from.

    Attributes:
        root: Put before the names of images in messages.
        entries: The images, in order; read once.
        count: Their number, before any limit; None where it is not known before they are read.
        split: The part that was taken; None where the source has no parts.
        passed_over: How many files beside the images were not taken, by kind: `masks`, `thumbnails`, `backups`, or their
            suffix.
        folders: Those that the images lie in, from where they differ: `folders a, b`; nothing for the source itself.
        notes: What was decided about the source and the user should know, in plain words.
        found: All images and masks of a folder, before a part of them was chosen; None for other sources.
    """

    root: str
    entries: Iterable[Entry]
    count: int | None
    split: str | None = None
    passed_over: Mapping[str, int] = field(default_factory=dict)
    folders: str = ""
    notes: tuple[str, ...] = ()
    found: Sorted | None = None

    def summary(self, taken: int) -> str:
        """Return one line on what was taken and what was passed over.

        Args:
            taken: How many of the images were.
        """
        if self.count is None or self.count == taken:
            text = counted(taken, "image")
        elif taken < self.count:
            text = f"{taken:,} of {counted(self.count, 'image')}"
        else:  # frames of animations, pages of documents
            text = f"{taken:,} images of {counted(self.count, 'file')}"
        where = [f"split {self.split}"] * bool(self.split) + [self.folders] * bool(self.folders)
        text += f" ({'; '.join(where)})" if where else ""
        if self.passed_over:
            kinds = ", ".join(f"{kind} {num:,}" for kind, num in self.passed_over.items())
            num = sum(self.passed_over.values())
            text += f"; {counted(num, 'other file')} passed over ({kinds})"
        return text


def open_source(
    source: str | Path,
    split: str | None = None,
    *,
    default_split: str = "train",
    normal_only: bool = False,
    streaming: bool = False,
    arrays: bool = False,
) -> Source:
    """Find the images of a source; none is decoded.

    Parts are folders named as on the Hugging Face Hub, in any case and beside other words (`Train`, `imgs_test`,
    `val2017`); the outermost decides. Masks, thumbnails, backups and files that are no images are passed over and counted.
    Where folders are called normal and anomalous, only the normal images are the part `train`.

    Args:
        source: A name in `BUNDLED`, a folder or file, or `hf://owner/name` for a data set of the Hub.
        split: The part that the user asks for: one that the source must have, or `all`.
        default_split: The part that is taken if none is asked for and the source has parts.
        normal_only: Take normal images alone of other parts than train as well, but not of `all`.
        streaming: Read from the Hub image by image, for the first few of many.
        arrays: Take `.npy` files of a folder for images.

    Raises:
        FileNotFoundError: If the source or the split does not exist or holds no images.
        ValueError: If the source cannot be read as images.
    """
    wanted = default_split if split is None else split
    if isinstance(source, str) and source in BUNDLED:
        wanted = SPLITS.get(wanted.lower(), wanted)
        if wanted not in BUNDLED[source]:
            raise FileNotFoundError(f"{source}: no split {wanted!r}, only {', '.join(BUNDLED[source])}")
        return _of_rows(ParquetRows(_DATA / source, [_DATA / source / f"{wanted}.parquet"]), wanted)
    if isinstance(source, str) and source.startswith(PREFIX):
        entries, count = open_hub(source, wanted, streaming)
        return Source(source, entries, count, wanted)
    path = Path(source)
    mode = _mode(path) if source != "" else None
    if mode is None:
        raise FileNotFoundError(_unknown(str(source)))
    if stat.S_ISDIR(mode):
        return _open_folder(path, split, default_split, normal_only, arrays)
    if kind := special_kind(mode):
        raise ValueError(f"{source}: is {kind}, not a file")
    file = File((path.name,))
    parts = layouts.parts_of_parquet([file]) if file.suffix == ".parquet" else [Part("")]
    named = layouts.split_only(path.resolve().parent.name) if not parts[0].split else None
    if split not in (None, "all") and SPLITS.get(str(split).lower(), split) not in (
        named,
        parts[0].split,
        parts[0].name,
    ):
        raise FileNotFoundError(f"{source}: no split {split!r}: it is one file; leave the split out to take it")
    if file.suffix == ".parquet":
        return _of_rows(ParquetRows(path.parent, [path]), None)
    return Source(str(path.parent), [_entry(path.parent, file, None)], 1)


def _mode(path: Path) -> int | None:
    """Return the `st_mode` of what is at a path; None for nothing.

    Raises:
        OSError: If it cannot be looked at.
    """
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError for a zero byte
        return None


def _unknown(source: str) -> str:
    text = f"{source}: no such file or folder, nor a bundled set ({', '.join(BUNDLED)})"
    is_like_hub = source.count("/") == 1 and not source.startswith((".", "/", "~")) and not source.endswith("/")
    if is_like_hub and suffix_of(source) not in {*READ, ".parquet"}:
        text += f"; a data set of the Hugging Face Hub is {PREFIX}{source}"
    return text


def _of_rows(rows: ParquetRows, split: str | None, passed_over: Mapping[str, int] | None = None) -> Source:
    return Source(rows.root, rows, rows.count, split, passed_over or {})


# -- folders --------------------------------------------------------------------------------------------------------


def _open_folder(folder: Path, split: str | None, default_split: str, normal_only: bool, arrays: bool) -> Source:
    listing = list_folder(folder, arrays=arrays)
    found = layouts.set_apart(listing.images)
    passed_over = {"masks": len(found.masks), "thumbnails": len(found.thumbnails)}
    for kind, num in sorted(listing.passed_over.items(), key=lambda each: (-each[1], each[0])):
        passed_over[kind] = passed_over.get(kind, 0) + num
    passed_over = {kind: num for kind, num in passed_over.items() if num}
    if listing.parquet and found.images:
        raise ValueError(
            f"{folder}: holds both Parquet files ({listing.parquet[0].name}) and images ({found.images[0].name}); name one"
        )
    if not listing.parquet and not found.images:
        raise FileNotFoundError(_nothing(folder, found.mask_folders, passed_over))
    if listing.parquet:
        chosen = _choose(folder, listing.parquet, layouts.parts_of_parquet(listing.parquet), split, default_split)
        rows = ParquetRows(folder, [folder.joinpath(*file.parts) for file in chosen.files])
        return _of_rows(rows, chosen.split, passed_over)
    chosen = _choose(folder, found.images, layouts.parts_of_images(found.images), split, default_split)
    wanted = default_split if split is None else split
    if wanted != "all" and (normal_only or SPLITS.get(wanted.lower()) == "train"):
        chosen = _normal(chosen)
    entries = [
        _entry(folder, file, layouts.class_of(file, part))
        for file, part in zip(chosen.files, chosen.parts, strict=True)
    ]
    notes = list(chosen.notes)
    # What is called so need not be masks.
    if unsure := [name for name in found.mask_folders if not layouts.says_mask(name)]:
        notes.append(f"{layouts.enumerated(unsure)} taken for masks; to take such a folder, name it")
    folders = layouts.folders_in_words(chosen.files)
    return Source(str(folder), entries, len(entries), chosen.split, passed_over, folders, tuple(notes), found)


def _nothing(folder: Path, mask_folders: list[str], passed_over: Mapping[str, int]) -> str:
    text = f"{folder}: holds no images ({', '.join(sorted(READ))}) and no .parquet files"
    if mask_folders:
        text += f"; {layouts.enumerated(mask_folders)} taken for masks; to take such a folder, name it"
    elif passed_over:
        text += f"; passed over: {', '.join(f'{kind} {num:,}' for kind, num in passed_over.items())}"
    return text


def _entry(folder: Path, file: File, label: str | None) -> Entry:
    path = str(folder.joinpath(*file.parts))
    if file.special:
        return Entry(file.name, ValueError(f"is {file.special}, not a file"), label)
    if file.suffix in RAW:
        # Pillow would read the small preview that such files begin with.
        return Entry(file.name, ValueError(f"a camera's own format ({file.suffix}) is not read; convert it"), label)
    return Entry(file.name, path, label)


@dataclass(frozen=True)
class _Chosen:
    files: list[File]
    parts: list[Part]
    split: str | None
    notes: list[str]


def _choose(folder: Path, files: list[File], parts: list[Part], split: str | None, default_split: str) -> _Chosen:
    """Choose the files of the part that is asked for, or of the default one.

    Raises:
        FileNotFoundError: If there is no such part.
        ValueError: If some files belong to no part.
    """
    pairs = list(zip(files, parts, strict=True))
    wanted = default_split if split is None else split
    names = sorted({part.split for part in parts} - {""})
    anomalous = layouts.anomalous_folders(files) if not names and files[0].suffix != ".parquet" else set()
    if wanted == "all":
        # Beside others a folder `train` is a class.
        return _chosen(
            pairs if "" not in {part.split for part in parts} else [(file, Part("")) for file in files], None
        )
    if not names:
        own = layouts.split_only(folder.resolve().name)
        asked = None if split is None else SPLITS.get(split.lower(), split)
        if asked not in (None, own) and not (anomalous and asked in ("train", "test")):
            has = "train (the normal images), test" if anomalous else "none"
            kind = "Parquet file" if files[0].suffix == ".parquet" else "image"
            would_be = f"the {counted(1, kind)} is" if len(files) == 1 else f"all {counted(len(files), kind)} are"
            raise FileNotFoundError(
                f"{folder}: no split {split!r}; splits found: {has}; without --split {would_be} taken"
            )
        return _chosen(pairs, asked)
    if "" in {part.split for part in parts}:
        # A class of vehicles named `train`, say: taken for a split it would hide all others.
        first = next(part for part in parts if part.split)
        other = next(file for file, part in pairs if not part.split)
        raise ValueError(
            f"{folder}: holds a folder {first.name}/, which names a split, beside images that belong to no split "
            f"({other.name}); take all with split 'all', or name one folder"
        )
    taken = [pair for pair in pairs if split and pair[1].name.lower() == split.lower()]
    if not taken:
        canonical = SPLITS.get(wanted.lower(), wanted)
        taken = [pair for pair in pairs if pair[1].split == canonical]
    if not taken:
        raise FileNotFoundError(f"{folder}: no split {wanted!r}; splits found: {', '.join(names)}")
    chosen = _chosen(taken, taken[0][1].split)
    if files[0].suffix == ".parquet":
        return chosen
    sets = list(dict.fromkeys("/".join(file.parts[: part.depth]) for file, part in taken if part.name))
    if len(sets) > 1:
        chosen.notes.append(
            f"several data sets with parts of their own are taken together ({layouts.enumerated(sets)}); name one "
            "folder to take it alone"
        )
    return chosen


def _chosen(pairs: list[tuple[File, Part]], split: str | None) -> _Chosen:
    return _Chosen([file for file, _ in pairs], [part for _, part in pairs], split, [])


def _normal(chosen: _Chosen) -> _Chosen:
    """Leave out what stands beside a folder of normal images: what learns should see no others."""
    anomalous = layouts.anomalous_folders(chosen.files)
    pairs, left = [], list[tuple[str, ...]]()
    for file, part in zip(chosen.files, chosen.parts, strict=True):
        steps = range(1, len(file.parts))
        place = next((file.parts[:depth] for depth in steps if file.parts[:depth] in anomalous), None)
        if place is None:
            pairs.append((file, part))
        else:
            left.append(place)
    if not left or not pairs:
        return chosen
    folders = list(dict.fromkeys("/".join(place) for place in left))
    taken = f"{counted(len(pairs), 'normal image')} {'is' if len(pairs) == 1 else 'are'} taken"
    note = f"only the {taken}, not {len(left):,} of {layouts.enumerated(folders)}; split 'all' takes all"
    return _Chosen([file for file, _ in pairs], [part for _, part in pairs], chosen.split, [*chosen.notes, note])
