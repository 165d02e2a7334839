"""Images in the rows of Parquet files, read by pyarrow a few at a time: memory is bounded by what the file really holds."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from denoising_ebm.datasets.entries import Entry
from denoising_ebm.datasets.parquet_pages import groups_of, rows_at_once
from denoising_ebm.utils.io import open_regular_file
from denoising_ebm.utils.text import printable, reason_of

LABELS = ("label", "labels", "fine_label")
"""Columns that may hold classes."""
_MAX_NAMED = 1000
"""Lost rows of a group that are named one by one."""
_MAX_LABEL = 200


class ParquetRows:
    """Images of Parquet files, row by row.

    A damaged file costs the rows that cannot be read: each of them comes as an entry that says why.

    Attributes:
        root: Put before the names of rows.
        count: Number of rows; a file that cannot be opened counts as one.
    """

    def __init__(self, root: Path, files: list[Path]) -> None:
        """Open the files `files`, which lie below `root`, for what their heads say.

        Raises:
            ValueError: If none of them holds images.
        """
        self.root = str(root)
        self._root = root
        self._tables: list[tuple[Path, _Table | ValueError]] = []
        for file in files:
            try:
                with open_regular_file(file) as opened:
                    self._tables.append((file, _Table(opened)))
            except Exception as error:  # pyarrow's have no common base
                self._tables.append(
                    (file, ValueError(f"cannot be read as Parquet with images: {_reason(file, error)}"))
                )
        failed = [(file, table) for file, table in self._tables if isinstance(table, ValueError)]
        if len(failed) == len(self._tables):
            raise ValueError(f"{failed[0][0]}: {failed[0][1]}")
        self.count = sum(1 if isinstance(table, ValueError) else table.num_rows for _, table in self._tables)

    def __iter__(self) -> Iterator[Entry]:
        return (entry for _, entry in self._read(None))

    def at(self, places: Iterable[int]) -> Iterator[tuple[int, Entry]]:
        """Yield some of the entries, each with its place; groups of rows without one are not read."""
        return self._read(set(places))

    def _read(self, places: set[int] | None) -> Iterator[tuple[int, Entry]]:
        start = 0
        for file, table in self._tables:
            name = file.relative_to(self._root).as_posix()
            if isinstance(table, ValueError):
                if places is None or start in places:
                    yield start, Entry(name, table)
                start += 1
                continue
            for row, (value, label) in table.rows(file, places, start):
                yield start + row, Entry(f"{name}#{row}", _beside(file, value), label)
            start += table.num_rows


class _Table:
    """The head of a Parquet file: its columns of images and classes, and its groups of rows."""

    def __init__(self, opened: BinaryIO) -> None:
        from pyarrow import parquet

        file = parquet.ParquetFile(opened, pre_buffer=False)
        schema = file.schema_arrow
        features = _features(schema.metadata)
        self.image = _image_column(schema, features)
        self.label = _label_column(schema, features, self.image)
        names = features.get(self.label or "", {}).get("names")
        self.classes = names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None
        self.groups = groups_of(opened)
        self.num_rows = sum(group.num_rows for group in self.groups)
        size = opened.seek(0, 2)
        if file.metadata.num_rows != self.num_rows or self.num_rows > 8 * size:
            raise ValueError(f"claims {file.metadata.num_rows:,} rows in {size:,} bytes")

    def rows(self, path: Path, places: set[int] | None, start: int) -> Iterator[tuple[int, tuple[Any, str | None]]]:
        """Yield the number of each row of the file with its image and class, of those whose `start + row` is in `places`."""
        from pyarrow import parquet

        begin = 0
        for number, group in enumerate(self.groups):
            wanted = range(begin, begin + group.num_rows)
            begin = wanted.stop
            if places is not None and not any(start + row in places for row in wanted):
                continue
            row, reason = wanted.start, "the file ends before it"
            try:
                with open_regular_file(path) as opened:
                    file = parquet.ParquetFile(opened, pre_buffer=False, buffer_size=2**16)
                    for value in itertools.islice(self._values(file, opened, number), group.num_rows):
                        if places is None or start + row in places:
                            yield row, value
                        row += 1
            except Exception as error:  # pyarrow's have no common base
                reason = _reason(path, error)
            lost = [row for row in range(row, wanted.stop) if places is None or start + row in places]
            for row in lost[:_MAX_NAMED]:
                yield row, (ValueError(f"the row cannot be read: {reason}"), None)
            if more := lost[_MAX_NAMED:]:
                yield more[0], (ValueError(f"this and {len(more) - 1:,} more rows cannot be read: {reason}"), None)

    def _values(self, file: Any, opened: BinaryIO, number: int) -> Iterator[tuple[Any, str | None]]:
        columns = [self.image] if self.label is None else [self.image, self.label]
        at_once = rows_at_once(self.groups[number], opened, columns)
        for batch in file.iter_batches(at_once, row_groups=[number], columns=columns, use_threads=False):
            images = batch.column(self.image)
            labels = None if self.label is None else batch.column(self.label)
            for i in range(batch.num_rows):
                try:
                    # One by one: what is packed in few bytes can be many times larger as a list.
                    image = images[i].as_py()
                except (ValueError, TypeError) as error:
                    image = ValueError(reason_of(error))
                yield image, None if labels is None else class_name(_plain(labels[i]), self.classes)


def class_name(value: Any, classes: list[str] | None) -> str | None:
    """Return the name of a class from its number, or from what a column without names holds; the Hub's -1 is no class."""
    if classes is None or not isinstance(value, int):
        text = None if value is None else str(value)
        return text if text is None or len(text) <= _MAX_LABEL else f"{text[:_MAX_LABEL]}..."
    return classes[value] if 0 <= value < len(classes) else None


def _plain(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except (ValueError, TypeError):  # as of text that is none
        return None


def _beside(file: Path, value: Any) -> Any:
    """Return the image of a row, whose path, if it has one in place of bytes, is taken from the folder of its file.

    A path that leads elsewhere is refused when the image is read: a file of rows must not open other files or addresses.
    """
    if isinstance(value, str):
        value = {"bytes": None, "path": value}
    if not isinstance(value, dict) or value.get("bytes") is not None or value.get("path") is None:
        return value
    path = Path(value["path"])
    if "://" in value["path"] or path.is_absolute() or ".." in path.parts:
        return ValueError(f"the row names {value['path']}, which is not beside its file")
    return str(file.parent / path)


# -- columns --------------------------------------------------------------------------------------------------------


def _features(metadata: dict[bytes, bytes] | None) -> dict[str, dict[str, Any]]:
    """Return what Hugging Face `datasets` says of each column in the metadata of its files, if it does."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}


def _image_column(schema: Any, features: dict[str, dict[str, Any]]) -> str:
    from pyarrow import types

    named = [name for name in schema.names if features.get(name, {}).get("_type") == "Image"]
    named = named or [name for name in schema.names if _is_picture(schema.field(schema.names.index(name)).type)]
    if "image" not in schema.names and len(named) != 1:
        raise ValueError(f"no column 'image' among {', '.join(schema.names) or 'no columns'}")
    column = "image" if "image" in schema.names else named[0]
    if schema.names.count(column) > 1:
        raise ValueError(f"two columns are named {column!r}")
    kind = schema.field(column).type
    if not (_is_picture(kind) or _is_binary(kind) or _is_text(kind) or types.is_null(kind)):
        words = str(kind)
        raise ValueError(f"column {column!r} holds {words[:60]}{'...' if len(words) > 60 else ''}, not encoded images")
    return column


def _label_column(schema: Any, features: dict[str, dict[str, Any]], image: str) -> str | None:
    """Return the column of classes: not of pictures, nor of numbers that are measured."""
    from pyarrow import types

    for name in LABELS:
        if name == image or schema.names.count(name) != 1:
            continue
        kind = schema.field(name).type
        kind = kind.value_type if types.is_dictionary(kind) else kind
        if _is_text(kind) or types.is_integer(kind) or types.is_boolean(kind):
            return name
    return None


def _is_picture(kind: Any) -> bool:
    """Whether a type is the `{bytes, path}` of an image on the Hub."""
    from pyarrow import types

    if not types.is_struct(kind):
        return False
    children = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
    has_path = "path" not in children or _is_text(children["path"]) or types.is_null(children["path"])
    has_bytes = "bytes" in children and (_is_binary(children["bytes"]) or types.is_null(children["bytes"]))
    return has_bytes and has_path and len(children) == kind.num_fields


def _is_binary(kind: Any) -> bool:
    return re.fullmatch(r"(large_)?binary(_view)?|fixed_size_binary\[\d+\]", str(_values_of(kind))) is not None


def _is_text(kind: Any) -> bool:
    return re.fullmatch(r"(large_)?string(_view)?", str(_values_of(kind))) is not None


def _values_of(kind: Any) -> Any:
    from pyarrow import types

    return kind.value_type if types.is_dictionary(kind) else kind


def _reason(file: Path, error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    return printable(reason_of(error).removeprefix(f"{file}: "))
