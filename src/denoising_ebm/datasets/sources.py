"""Where images come from: names and encoded images out of folders, Parquet files, the bundled sets and the Hub."""

from __future__ import annotations

import glob
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

BUNDLED = {"fashion-mnist": ("train", "test"), "digits": ("test",)}
"""Names and splits of the real images inside the package (32x32 gray)."""


class Entry(NamedTuple):
    """An image that is not decoded yet."""

    name: str  #: Within its source.
    value: Any  #: Its path, its bytes, the `{bytes, path}` of the Hub, or the exception that says why it is not read.
    label: str | None = None  #: Its class, where the source says it.


@dataclass(frozen=True, eq=False)
class Source:
    """Undecoded images, and what is to be said of where they come from.

    Attributes:
        root: Put before the names of images in messages.
        entries: The images, in order; read once.
        count: Their number, before any limit; None where it is not known before they are read.
        split: The part that was taken; None where the source has no parts.
        description: Which images of what, in one phrase: `300 images of DATA (split train; folders a, b)`.
        passed_over: How many files beside the images were not taken, by kind: `masks`, `thumbnails`, `backups`, or their
            suffix.
        notes: What was decided about the source and the user should know, in plain words.
    """

    root: str
    entries: Iterable[Entry]
    count: int | None
    split: str | None = None
    description: str = ""
    passed_over: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def summary(self, taken: int) -> str:
        """Return one line on what was taken and what was passed over.

        Args:
            taken: How many of the images were.
        """
        of = "" if self.count in (None, taken) else f" of {self.count:,}"
        part = f" (split {self.split})" if self.split else ""
        text = f"{taken:,}{of} images{part}"
        if self.passed_over:
            kinds = ", ".join(f"{kind} {num:,}" for kind, num in self.passed_over.items())
            text += f"; {sum(self.passed_over.values()):,} other files passed over ({kinds})"
        return text


_DATA = Path(__file__).parents[1] / "assets" / "datasets"
_READ = {f".{name}" for name in "png jpg jpeg jpe jfif webp bmp gif ppm pgm pbm pnm tif tiff".split()}
# Images that are not read here: named among the unreadable ones instead of passed over in silence.
_NOT_READ = {f".{name}" for name in "heic heif avif jp2 jxl tga dng".split()}
_SUFFIXES = _READ | _NOT_READ
_SPLITS = {"train", "test", "validation", "valid", "val", "dev", "extra"}
_LABELS = ("label", "labels", "fine_label")


def open_source(
    source: str | Path, split: str | None = None, *, default_split: str = "train", streaming: bool = False
) -> Source:
    """Find the images of a source; none is decoded.

    Args:
        source: A name in `BUNDLED`, a folder or file, or a Hub id.
        split: The part that the user asks for: one that the source must have, or `all`.
        default_split: The part that is taken if none is asked for and the source has parts.
        streaming: Read from the Hub image by image, for the first few of many.

    Raises:
        FileNotFoundError: If the source or the split does not exist or holds no images.
        ValueError: If the source cannot be read as images.
    """
    root, entries, count = _open(source, default_split if split is None else split, streaming)
    taken = default_split if split is None else split
    return Source(root, entries, count, taken, f"{count or 'unknown'} images of {source}")


def _open(source: str | Path, split: str, streaming: bool) -> tuple[str, Iterable[Entry], int | None]:
    if isinstance(source, str) and source in BUNDLED:
        if split not in BUNDLED[source]:
            raise FileNotFoundError(f"{source}: no split {split!r}, only {', '.join(BUNDLED[source])}")
        return _open_parquet(_DATA / source, [_DATA / source / f"{split}.parquet"])
    path = Path(source)
    if path.is_dir() and source != "":
        return _open_folder(path, split)
    if path.is_file() and path.suffix.lower() == ".parquet":
        return _open_parquet(path.parent, [path])
    if path.is_file():
        return str(path.parent), [Entry(path.name, str(path))], 1
    looks_like_id = isinstance(source, str) and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source)
    if looks_like_id and path.suffix.lower() not in {*_SUFFIXES, ".parquet"}:
        return _open_hub(str(source), split, streaming)
    raise FileNotFoundError(
        f"{source}: no such file or folder, nor a bundled set ({', '.join(BUNDLED)}), nor a Hub id owner/name"
    )


def _open_folder(folder: Path, split: str) -> tuple[str, Iterable[Entry], int | None]:
    files = sorted(_walk(folder))
    parquet = [path for path in files if path.suffix.lower() == ".parquet"]
    images = [path for path in files if path.suffix.lower() in _SUFFIXES]
    if parquet and images:
        raise ValueError(
            f"{folder}: holds both Parquet files ({parquet[0].name}) and images ({images[0].name}); name one"
        )
    if not parquet and not images:
        raise FileNotFoundError(f"{folder}: holds no images ({', '.join(sorted(_READ))}) and no .parquet files")
    splits: dict[str, list[Path]] = {}
    for path in parquet or images:
        splits.setdefault(_split_of(path.relative_to(folder)), []).append(path)
    named = _SPLITS & splits.keys()
    if split == "all":
        splits["all"] = parquet or images
    elif named and "" in splits:
        # A class of vehicles named `train`, say: taken for a split it would hide all others.
        raise ValueError(
            f"{folder}: holds a folder {sorted(named)[0]}/, which names a split, beside images that belong to no split "
            f"({splits[''][0].relative_to(folder)}); take all with split 'all', or name one folder"
        )
    # Without a known name of a split the folder has no splits: one Parquet file of any name, or folders of classes.
    if split not in splits and not named and (images or len(parquet) == 1):
        splits[split] = parquet or images
    if split not in splits:
        found = ", ".join(sorted(splits.keys() - {""})) or "none"
        raise FileNotFoundError(f"{folder}: no split {split!r}; splits found: {found}")
    if parquet:
        return _open_parquet(folder, splits[split])
    relative = [path.relative_to(folder) for path in splits[split]]
    no_classes = {"", *_SPLITS} if not named or "" not in splits else {""}
    entries = [Entry(path.as_posix(), str(folder / path), _class_of(path, no_classes)) for path in relative]
    return str(folder), entries, len(entries)


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder but for hidden ones, through links to folders; links to nothing count as files.

    Raises:
        OSError: If a folder cannot be read.
    """

    def fail(error: OSError) -> None:
        raise error

    been: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True, onerror=fail):
        # A link to a folder above would be followed for ever.
        folders[:] = [name for name in folders if not name.startswith(".")]
        if os.path.realpath(place) in been:
            folders.clear()
            continue
        been.add(os.path.realpath(place))
        yield from (Path(place, name) for name in names if not name.startswith("."))


def _class_of(path: Path, no_classes: set[str]) -> str | None:
    """Name the class of an image file from its path in the source: its folder, unless that is the source or a split."""
    return None if path.parent.name in no_classes else path.parent.name


def _split_of(path: Path) -> str:
    """Name the split of a file from its path in the source: `train/...`, or for Parquet `train-00000-of-00002`."""
    folders = [part for part in path.parts[:-1] if part in _SPLITS]
    if folders:
        return folders[0]
    return path.stem.partition("-")[0] if path.suffix.lower() == ".parquet" else ""


def _open_parquet(root: Path, files: list[Path]) -> tuple[str, Iterable[Entry], int | None]:
    from datasets import load_dataset

    def entries() -> Iterator[Entry]:
        for file in files:
            name = file.relative_to(root).as_posix()
            try:
                # Streamed: `datasets` would otherwise copy every file into its cache; here it only keeps a lock there.
                with tempfile.TemporaryDirectory() as cache, _quiet():
                    pattern = glob.escape(str(file))
                    rows = load_dataset("parquet", data_files=pattern, split="train", streaming=True, cache_dir=cache)
                for row, (value, label) in enumerate(_values(rows)):
                    yield Entry(f"{name}#{row}", _beside(file, value), label)
            except Exception as error:  # pyarrow, fsspec and datasets have no common base
                reason = str(error).partition("\n")[0]
                raise ValueError(f"{file}: cannot be read as Parquet with images: {reason}") from error

    return str(root), entries(), _num_rows(files)


def _num_rows(files: list[Path]) -> int | None:
    """Return the rows of all files; None where one cannot be read, which reading it explains."""
    from pyarrow import parquet

    try:
        return sum(int(parquet.read_metadata(file).num_rows) for file in files)
    except Exception:  # of any type, as when its rows are read
        return None


def _beside(file: Path, value: Any) -> Any:
    """Return the image of a row, whose path, if it has one in place of bytes, is taken from the folder of its file.

    A path that leads elsewhere is refused when the image is read: a file of rows must not open other files or addresses.
    """
    if not isinstance(value, dict) or value["bytes"] is not None or value["path"] is None:
        return value
    path = Path(value["path"])
    if "://" in value["path"] or path.is_absolute() or ".." in path.parts:
        return ValueError(f"the row names {value['path']}, which is not beside its file")
    return str(file.parent / path)


def _open_hub(name: str, split: str, streaming: bool) -> tuple[str, Iterable[Entry], int | None]:
    from datasets import load_dataset

    try:
        rows = load_dataset(name, split=split, streaming=streaming)
        values = _values(rows)
    except (OSError, ValueError) as error:
        kind = FileNotFoundError if isinstance(error, OSError) else ValueError
        reason = str(error).partition("\n")[0]
        raise kind(f"{name}: no such file or folder, and not loaded from the Hugging Face Hub: {reason}") from error
    entries = (Entry(f"{split}#{row}", value, label) for row, (value, label) in enumerate(values))
    return name, entries, None if streaming else len(rows)


def _values(rows: Any) -> Iterator[tuple[Any, str | None]]:
    """Iterate over the undecoded images and the labels of a data set of `datasets`, read in Arrow batches."""
    from datasets import Image as ImageFeature

    features = rows.features or {}
    named = [column for column, feature in features.items() if isinstance(feature, ImageFeature)]
    if "image" not in features and len(named) != 1:
        raise ValueError(f"no column 'image' among {', '.join(features) or 'no columns'}")
    column = "image" if "image" in features else named[0]
    label = next((name for name in _LABELS if name != column and _names_classes(features.get(name))), None)
    classes = getattr(features[label], "names", None) if label else None
    rows = rows.select_columns([column, label] if label else [column])
    rows = rows.cast_column(column, ImageFeature(decode=False)).with_format("arrow")

    def pairs() -> Iterator[tuple[Any, str | None]]:
        for batch in rows.iter(batch_size=256):
            images = batch[column].to_pylist()
            labels = batch[label].to_pylist() if label else [None] * len(images)
            yield from ((image, _class_name(value, classes)) for image, value in zip(images, labels, strict=True))

    return pairs()


def _names_classes(feature: Any) -> bool:
    """Whether a column can hold classes: not a picture, nor a number that is measured."""
    from datasets import ClassLabel, Value

    is_value = isinstance(feature, Value) and bool(re.match(r"u?int|string|large_string|bool", feature.dtype))
    return is_value or isinstance(feature, ClassLabel)


def _class_name(value: Any, classes: list[str] | None) -> str | None:
    """Return the name of a class from its number, or from what a column without names holds; the Hub's -1 is no class."""
    if classes is None or not isinstance(value, int):
        return None if value is None else str(value)
    return classes[value] if 0 <= value < len(classes) else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Switch off the progress bars of `datasets`, and on again if they were on."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    were_disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_disabled:
            enable_progress_bars()


def read_bytes(value: Any) -> bytes:
    """Return the encoded image from the `value` of an entry."""
    if isinstance(value, Exception):
        raise value
    if isinstance(value, dict):
        value = value["path"] if value["bytes"] is None else value["bytes"]
    if value is None:
        raise ValueError("the row is empty")
    if isinstance(value, bytes):
        return value
    if "://" not in value:
        return Path(value).read_bytes()
    import fsspec  # type: ignore[import-untyped]  # streamed image folders of the Hub

    with fsspec.open(value, "rb") as file:
        return bytes(file.read())
