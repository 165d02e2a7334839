"""Where images come from: names and encoded images out of folders, Parquet files, the bundled sets and the Hub."""

from __future__ import annotations

import glob
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BUNDLED = {"fashion-mnist": ("train", "test"), "digits": ("test",)}
"""Names and splits of the real images inside the package (32x32 gray)."""

Entry = tuple[str, Any]
"""The name of an image within its source, and its path, its bytes, or the `{bytes, path}` of the Hub."""

_DATA = Path(__file__).parent / "data"
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff"}
_SPLITS = {"train", "test", "validation", "valid", "val", "dev", "extra"}


def open_source(source: str | Path, split: str, streaming: bool) -> tuple[str, Iterable[Entry], int | None]:
    """Return the name to put before the names of images, the undecoded images, and their number where known."""
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
        return str(path.parent), [(path.name, str(path))], 1
    looks_like_id = isinstance(source, str) and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source)
    if looks_like_id and path.suffix.lower() not in {*_SUFFIXES, ".parquet"}:
        return _open_hub(str(source), split, streaming)
    raise FileNotFoundError(
        f"{source}: no such file or folder, nor a bundled set ({', '.join(BUNDLED)}), nor a Hub id owner/name"
    )


def _open_folder(folder: Path, split: str) -> tuple[str, Iterable[Entry], int | None]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = [path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    parquet = [path for path in files if path.suffix.lower() == ".parquet"]
    images = [path for path in files if path.suffix.lower() in _SUFFIXES]
    if parquet and images:
        raise ValueError(
            f"{folder}: holds both Parquet files ({parquet[0].name}) and images ({images[0].name}); name one"
        )
    if not parquet and not images:
        raise FileNotFoundError(f"{folder}: holds no images ({', '.join(sorted(_SUFFIXES))}) and no .parquet files")
    splits: dict[str, list[Path]] = {}
    for path in parquet or images:
        splits.setdefault(_split_of(path.relative_to(folder)), []).append(path)
    # Without a known name of a split the folder has no splits: one Parquet file of any name, or folders of classes.
    if split not in splits and not _SPLITS & splits.keys() and (images or len(parquet) == 1):
        splits[split] = parquet or images
    if split not in splits:
        found = ", ".join(sorted(splits.keys() - {""})) or "none"
        raise FileNotFoundError(f"{folder}: no split {split!r}; splits found: {found}")
    if parquet:
        return _open_parquet(folder, splits[split])
    entries = [(path.relative_to(folder).as_posix(), str(path)) for path in splits[split]]
    return str(folder), entries, len(entries)


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
                for row, value in enumerate(_values(rows)):
                    yield f"{name}#{row}", value
            except Exception as error:  # pyarrow, fsspec and datasets have no common base
                reason = str(error).partition("\n")[0]
                raise ValueError(f"{file}: cannot be read as Parquet with images: {reason}") from error

    return str(root), entries(), None


def _open_hub(name: str, split: str, streaming: bool) -> tuple[str, Iterable[Entry], int | None]:
    from datasets import load_dataset

    try:
        rows = load_dataset(name, split=split, streaming=streaming)
        values = _values(rows)
    except (OSError, ValueError) as error:
        kind = FileNotFoundError if isinstance(error, OSError) else ValueError
        reason = str(error).partition("\n")[0]
        raise kind(f"{name}: no such file or folder, and not loaded from the Hugging Face Hub: {reason}") from error
    return name, ((f"{split}#{row}", value) for row, value in enumerate(values)), None if streaming else len(rows)


def _values(rows: Any) -> Iterator[Any]:
    """Iterate over the undecoded images of a data set of `datasets`, read in Arrow batches."""
    from datasets import Image as ImageFeature

    features = rows.features or {}
    named = [column for column, feature in features.items() if isinstance(feature, ImageFeature)]
    if "image" not in features and len(named) != 1:
        raise ValueError(f"no column 'image' among {', '.join(features) or 'no columns'}")
    column = "image" if "image" in features else named[0]
    rows = rows.select_columns([column]).cast_column(column, ImageFeature(decode=False)).with_format("arrow")
    return (value for batch in rows.iter(batch_size=256) for value in batch[column].to_pylist())


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
    """Return the encoded image from a path, bytes, or the `{bytes, path}` of the Hub."""
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
