"""Images in the rows of Parquet files, read by pyarrow a few at a time: memory is bounded by what the file really holds."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from denoising_ebm.datasets.entries import Entry
from denoising_ebm.utils.io import open_regular_file

LABELS = ("label", "labels", "fine_label")
"""Columns that may hold classes."""
_BATCH_ROWS = 256
_BATCH_BYTES = 2**26
"""Bytes of the values that are decoded at once."""
_MAX_PAGE = 3 * 2**26
"""Bytes to which a page of a column may grow when it is unpacked; larger ones may no more than double."""
_MAX_NAMED = 1000
"""Lost rows of a group that are named one by one."""
_MAX_LABEL = 200
_DICTIONARY_PAGE = 2
_DELTA_BYTE_ARRAY = 7


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
        metadata = file.metadata
        self.groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self.num_rows = sum(self.groups)
        size = opened.seek(0, 2)
        if min(self.groups, default=0) < 0 or metadata.num_rows != self.num_rows or self.num_rows > 8 * size:
            raise ValueError(f"claims {metadata.num_rows:,} rows in {size:,} bytes")

    def rows(self, path: Path, places: set[int] | None, start: int) -> Iterator[tuple[int, tuple[Any, str | None]]]:
        """Yield the number of each row of the file with its image and class, of those whose `start + row` is in `places`."""
        from pyarrow import parquet

        begin = 0
        for group, size in enumerate(self.groups):
            wanted = range(begin, begin + size)
            begin += size
            if places is not None and not any(start + row in places for row in wanted):
                continue
            row, reason = wanted.start, "the file ends before it"
            try:
                with open_regular_file(path) as opened:
                    file = parquet.ParquetFile(opened, pre_buffer=False, buffer_size=2**16)
                    for value in itertools.islice(self._values(file, opened, group), size):
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

    def _values(self, file: Any, opened: BinaryIO, group: int) -> Iterator[tuple[Any, str | None]]:
        columns = [self.image] if self.label is None else [self.image, self.label]
        at_once = _rows_at_once(file.metadata.row_group(group), opened, columns)
        for batch in file.iter_batches(at_once, row_groups=[group], columns=columns, use_threads=False):
            images = batch.column(self.image)
            labels = None if self.label is None else batch.column(self.label)
            for i in range(batch.num_rows):
                try:
                    # One by one: what is packed in few bytes can be many times larger as a list.
                    image = images[i].as_py()
                except (ValueError, TypeError) as error:
                    image = ValueError(_first_line(error))
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


# -- memory ---------------------------------------------------------------------------------------------------------


def _rows_at_once(group: Any, opened: BinaryIO, columns: list[str]) -> int:
    """Return how many rows of a group can be decoded in bounded memory, by the heads of the pages of their columns.

    What the file says of whole columns need not be so, and a value that stands once in a dictionary may be meant for
    every row.

    Raises:
        ValueError: If a page would be unpacked to far more than the file holds of it.
    """
    largest = 1
    for i in range(group.num_columns):
        column = group.column(i)
        if column.path_in_schema.partition(".")[0] not in columns and column.path_in_schema not in columns:
            continue
        for page in _pages(column, opened):
            if page.unpacked > max(_MAX_PAGE, 2 * page.packed):
                raise ValueError(
                    f"a page of {page.packed:,} bytes would be unpacked to {page.unpacked:,}; write the file with fewer "
                    "rows in a group"
                )
            if page.may_repeat:
                largest = max(largest, page.unpacked)
            elif page.values > 0:
                largest = max(largest, page.unpacked // page.values)
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES // largest))


class _Page(NamedTuple):
    packed: int
    unpacked: int
    values: int
    may_repeat: bool  #: Whether values can be longer together than the page.


def _pages(column: Any, opened: BinaryIO) -> Iterator[_Page]:
    """Yield the heads of the pages of a column of a group.

    Raises:
        ValueError: If they are damaged.
    """
    place, end = column.data_page_offset, opened.seek(0, 2)
    if column.has_dictionary_page and column.dictionary_page_offset and column.dictionary_page_offset < place:
        place = column.dictionary_page_offset
    end = min(end, place + column.total_compressed_size)
    values = 0
    while place < end and values < column.num_values:
        head, size = _page_head(opened, place, end)
        packed, unpacked, kind = head.get(3), head.get(2), head.get(1)
        page = head.get(5) or head.get(7) or head.get(8) or {}
        if not isinstance(packed, int) or not isinstance(unpacked, int) or min(packed, unpacked) < 0:
            raise ValueError("the head of a page is damaged")
        place += size + packed
        if place > end:
            raise ValueError("a page is cut off")
        num, encoding = page.get(1, 0), page.get(4 if 8 in head else 2, 0)
        if kind == _DICTIONARY_PAGE:
            yield _Page(packed, unpacked, num, True)
        else:
            values += max(0, num)
            yield _Page(packed, unpacked, num, encoding == _DELTA_BYTE_ARRAY)


def _page_head(opened: BinaryIO, place: int, end: int) -> tuple[dict[int, Any], int]:
    """Return the fields of the head of a page, by number, and its length in bytes."""
    for size in (2**10, 2**16, 2**24):
        opened.seek(place)
        reader = _Compact(opened.read(min(size, end - place)))
        try:
            return reader.struct(), reader.place
        except IndexError:
            if size >= end - place:
                break
    raise ValueError("the head of a page is damaged")


class _Compact:
    """The parts of Thrift's compact protocol that heads of pages are written in.

    https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
    """

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self.place = 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Read a structure: numbers and structures by the numbers of their fields; anything else is passed over."""
        if depth > 8:
            raise ValueError("the head of a page is damaged")
        fields: dict[int, Any] = {}
        number = 0
        while (head := self._byte()) != 0:
            number = number + (head >> 4) if head >> 4 else self._zigzag()
            value = self._value(head & 15, depth)
            if value is not None:
                fields[number] = value
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (1, 2):
            return None
        if kind in (4, 5, 6):
            return self._zigzag()
        if kind == 12:
            return self.struct(depth + 1)
        if kind in (3, 7):
            self._skip(1 if kind == 3 else 8)
        elif kind == 8:
            self._skip(self._varint())
        elif kind in (9, 10):
            head = self._byte()
            for _ in range(head >> 4 if head >> 4 != 15 else self._varint()):
                # Truths take a byte in a list, and none as a field.
                self._skip(1) if head & 15 in (1, 2) else self._value(head & 15, depth + 1)
        else:
            raise ValueError("the head of a page is damaged")
        return None

    def _byte(self) -> int:
        self.place += 1
        return self._raw[self.place - 1]

    def _skip(self, size: int) -> None:
        self.place += size
        if self.place > len(self._raw):
            raise IndexError

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("the head of a page is damaged")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _reason(file: Path, error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    return _first_line(error).removeprefix(f"{file}: ")
