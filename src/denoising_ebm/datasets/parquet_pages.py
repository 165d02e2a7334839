"""What the heads of Parquet files and their pages say, by which rows are read in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

_BATCH_ROWS = 256
_BATCH_BYTES = 2**26
"""Bytes of the values that are decoded at once."""
_MAX_UNPACKED = 2**26
"""Bytes to which pages that more than double may grow when they are unpacked, the largest of each column together."""
_DICTIONARY_PAGE = 2
_DELTA_BYTE_ARRAY = 7


class Column(NamedTuple):
    """A column of a group of rows, by what the file says of it."""

    name: str  #: Of the column at the top, of which it may be a part.
    start: int  #: Where its pages begin.
    size: int  #: Bytes of its pages.
    num_values: int


class RowGroup(NamedTuple):
    """A group of rows."""

    num_rows: int
    columns: list[Column]


def groups_of(opened: BinaryIO) -> list[RowGroup]:
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
                columns.append(Column(name, start, about[7], about[5]))
            groups.append(RowGroup(group[3], columns))
    except (IndexError, KeyError, TypeError, AttributeError):
        raise ValueError("what it says of its rows is damaged") from None
    numbers = [number for group in groups for number in (group.num_rows, *(n for c in group.columns for n in c[1:]))]
    if not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise ValueError("what it says of its rows is damaged")
    return groups


def rows_at_once(group: RowGroup, opened: BinaryIO, columns: list[str]) -> int:
    """Return how many rows of a group can be decoded in bounded memory, by the heads of the pages of their columns.

    What the file says of whole columns need not be so, and a value that stands once in a dictionary may be meant for
    every row.

    Raises:
        ValueError: If a page would be unpacked to far more than the file holds of it.
    """
    largest, unpacked = 1, 0
    for column in group.columns:
        if column.name not in columns:
            continue
        most = 0
        for page in _pages(column, opened):
            # In memory there are several copies of a page, and pages of all columns at once.
            grown = page.unpacked if page.unpacked > 2 * page.packed else 0
            most = max(most, grown)
            if unpacked + grown > _MAX_UNPACKED and grown:
                raise ValueError(
                    f"a page of {page.packed:,} bytes would be unpacked to {page.unpacked:,}; write the file with fewer "
                    "rows in a group"
                )
            if page.may_repeat:
                largest = max(largest, page.unpacked)
            elif page.values > 0:
                largest = max(largest, page.unpacked // page.values)
        unpacked += most
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES // largest))


class _Page(NamedTuple):
    packed: int
    unpacked: int
    values: int
    may_repeat: bool  #: Whether values can be longer together than the page.


def _pages(column: Column, opened: BinaryIO) -> Iterator[_Page]:
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
