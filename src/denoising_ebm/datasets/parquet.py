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
from denoising_ebm.utils.text import printable

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
        self.groups = _groups(opened)
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
        at_once = _rows_at_once(self.groups[number], opened, columns)
        for batch in file.iter_batches(at_once, row_groups=[number], columns=columns, use_threads=False):
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


class _Column(NamedTuple):
    """A column of a group of rows, by what the file says of it."""

    name: str  #: Of the column at the top, of which it may be a part.
    start: int  #: Where its pages begin.
    size: int  #: Bytes of its pages.
    num_values: int


class _Group(NamedTuple):
    """A group of rows."""

    num_rows: int
    columns: list[_Column]


def _groups(opened: BinaryIO) -> list[_Group]:
    """Return the groups of rows of a file that pyarrow has opened.

    pyarrow's own objects for them end the process at some damaged ones.

    Raises:
        ValueError: If what the file says of them is damaged.
    """
    opened.seek(-8, 2)
    length = int.from_bytes(opened.read(4), "little")
    opened.seek(-8 - length, 2)
    groups = []
    try:
        for group in _Compact(opened.read(length)).struct().get(4, []):
            columns = []
            for chunk in group[1]:
                about = chunk[3]
                start, first = about[9], about.get(11, 0)
                start = first if 0 < first < start else start
                name = about[3][0].decode(errors="surrogateescape")
                columns.append(_Column(name, start, about[7], about[5]))
            groups.append(_Group(group[3], columns))
    except (IndexError, KeyError, TypeError, AttributeError):
        raise ValueError("what it says of its rows is damaged") from None
    numbers = [number for group in groups for number in (group.num_rows, *(n for c in group.columns for n in c[1:]))]
    if not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise ValueError("what it says of its rows is damaged")
    return groups


def _rows_at_once(group: _Group, opened: BinaryIO, columns: list[str]) -> int:
    """Return how many rows of a group can be decoded in bounded memory, by the heads of the pages of their columns.

    What the file says of whole columns need not be so, and a value that stands once in a dictionary may be meant for
    every row.

    Raises:
        ValueError: If a page would be unpacked to far more than the file holds of it.
    """
    largest = 1
    for column in group.columns:
        if column.name not in columns:
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


def _pages(column: _Column, opened: BinaryIO) -> Iterator[_Page]:
    """Yield the heads of the pages of a column of a group.

    Raises:
        ValueError: If they are damaged.
    """
    place, values = column.start, 0
    end = min(opened.seek(0, 2), place + column.size)
    while place < end and values < column.num_values:
        head, size = _page_head(opened, place, end)
        kind, unpacked, packed = (_number(head.get(field)) for field in (1, 2, 3))
        about = head.get(5) or head.get(7) or head.get(8)
        about = about if isinstance(about, dict) else {}
        num, encoding = _number(about.get(1, 0)), _number(about.get(4 if 8 in head else 2, 0))
        place += size + packed
        if place > end:
            raise ValueError("a page is cut off")
        if kind == _DICTIONARY_PAGE:
            yield _Page(packed, unpacked, num, True)
        else:
            values += num
            yield _Page(packed, unpacked, num, encoding == _DELTA_BYTE_ARRAY)


def _number(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError("the head of a page is damaged")
    return value


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
    """Thrift's compact protocol, in which Parquet files say what they hold.

    https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
    """

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self.place = 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Read a structure: the values of its fields by their numbers.

        Raises:
            IndexError: If it is cut off.
            ValueError: If it is damaged.
        """
        if depth > 16:
            raise ValueError("its structure is damaged")
        fields: dict[int, Any] = {}
        number = 0
        while (head := self._byte()) != 0:
            number = number + (head >> 4) if head >> 4 else self._zigzag()
            fields[number] = self._value(head & 15, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (1, 2):
            return kind == 1
        if kind in (4, 5, 6):
            return self._zigzag()
        if kind == 12:
            return self.struct(depth + 1)
        if kind in (3, 7):
            return self._bytes(1 if kind == 3 else 8)
        if kind == 8:
            return self._bytes(self._varint())
        if kind in (9, 10) and depth <= 16:
            head = self._byte()
            of, size = head & 15, head >> 4 if head >> 4 != 15 else self._varint()
            # Truths take a byte in a list, and none as a field.
            return [self._byte() if of in (1, 2) else self._value(of, depth + 1) for _ in range(size)]
        raise ValueError("its structure is damaged")

    def _byte(self) -> int:
        self.place += 1
        return self._raw[self.place - 1]

    def _bytes(self, size: int) -> bytes:
        self.place += size
        if self.place > len(self._raw):
            raise IndexError
        return self._raw[self.place - size : self.place]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("its structure is damaged")

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
    return printable(_first_line(error).removeprefix(f"{file}: "))
