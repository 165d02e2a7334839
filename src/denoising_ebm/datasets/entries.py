"""Images that are not decoded yet, of files, rows and the Hub alike; a draw of them that holds little memory."""

from __future__ import annotations

import itertools
import random
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast, runtime_checkable

from denoising_ebm.utils.io import read_regular_file

if TYPE_CHECKING:
    import torch

_MAX_FILE = 2**31
"""Bytes of the largest file that is read."""
_MAX_HELD = 2**27
"""Bytes of drawn images that are held in memory; the others wait in a temporary file."""
_MAX_ORDER = 2**23


class Entry(NamedTuple):
    """An image that is not decoded yet."""

    name: str  #: Within its source.
    #: Its path, its bytes, the `{bytes, path}` of the Hub, what returns its bytes, or the exception that says why it is not
    #: read.
    value: Any
    label: str | None = None  #: Its class, where the source says it.


@runtime_checkable
class Rows(Protocol):
    """Entries of which some can be read alone."""

    def at(self, places: Iterable[int]) -> Iterable[tuple[int, Entry]]:
        """Yield those entries, each with its place, in the order of the source."""
        ...


def read_bytes(value: Any) -> bytes:
    """Return the encoded image from the `value` of an entry.

    Raises:
        OSError: If it cannot be read.
        ValueError: If there is none, or no regular file in its place.
    """
    if isinstance(value, Exception):
        raise value
    if isinstance(value, dict):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if value is None:
        raise ValueError("the row is empty")
    if isinstance(value, bytes):
        return value
    if callable(value):
        return cast(Callable[[], bytes], value)()
    if "://" not in value:
        try:
            return read_regular_file(value, _MAX_FILE)
        except ValueError as error:
            # The name stands in the row already.
            raise ValueError(str(error).removeprefix(f"{value}: ")) from None
    import fsspec  # type: ignore[import-untyped]  # streamed image folders of the Hub

    with fsspec.open(value, "rb") as file:
        return bytes(file.read())


def draw(
    entries: Iterable[Entry], count: int | None, sample: int, limit: int | None, generator: torch.Generator | None
) -> tuple[Sequence[Entry], int]:
    """Draw entries at random, in the order of the draw.

    Args:
        entries: In the order of the source. They are gone through once; no more than is drawn of them is held.
        count: Their number; None where it is not known.
        sample: Number to draw. A fiftieth and ten more are returned, to take the place of unreadable ones.
        limit: Draw from the first of this number.
        generator: What to draw by; torch's global one if None.

    Returns:
        The entries, and how many are wanted of them.
    """
    import torch

    most = sample + sample // 50 + 10
    if count is None:
        seed = int(torch.randint(2**62, (1,), generator=generator))
        return _draw_unknown(itertools.islice(entries, limit), most, sample, random.Random(seed))
    count = count if limit is None else min(count, limit)
    if count > _MAX_ORDER:
        seed = int(torch.randint(2**62, (1,), generator=generator))
        order = random.Random(seed).sample(range(count), min(most, count))
    else:
        order = torch.randperm(count, generator=generator)[:most].tolist()
    if isinstance(entries, Sequence):
        return [entries[i] for i in order], min(sample, count)
    places = set(order)
    if isinstance(entries, Rows):
        found = entries.at(places)
    else:
        found = ((i, entry) for i, entry in enumerate(itertools.islice(entries, count)) if i in places)
    shelf = _Shelf()
    drawn = {i: shelf.hold(entry) for i, entry in found}
    # A damaged file can end before its time.
    return [drawn[i] for i in order if i in drawn], min(sample, count)


def _draw_unknown(
    entries: Iterable[Entry], most: int, sample: int, draws: random.Random
) -> tuple[Sequence[Entry], int]:
    """Draw from entries of unknown number: each takes the place of one of those held with the probability of a draw."""
    shelf, held, count = _Shelf(), list[Entry](), 0
    for entry in entries:
        count += 1
        if len(held) < most:
            held.append(shelf.hold(entry))
        elif (place := draws.randrange(count)) < most:
            held[place] = shelf.hold(entry)
    draws.shuffle(held)
    return held, min(sample, count)


class _Shelf:
    """Holds encoded images in memory, as many as fit, and others in a temporary file without a name."""

    def __init__(self) -> None:
        self._held = 0
        self._file: Any = None

    def hold(self, entry: Entry) -> Entry:
        """Return an entry whose bytes need not be in memory."""
        value = entry.value.get("bytes") if isinstance(entry.value, dict) else entry.value
        if not isinstance(value, bytes):
            return entry
        self._held += len(value)
        if self._held <= _MAX_HELD:
            return entry
        if self._file is None:
            self._file = tempfile.TemporaryFile()
        start = self._file.seek(0, 2)
        self._file.write(value)
        return entry._replace(value=partial(self._read, start, len(value)))

    def _read(self, start: int, size: int) -> bytes:
        self._file.seek(start)
        return bytes(self._file.read(size))

    def __del__(self) -> None:
        # With the last entry that stands in it.
        if self._file is not None:
            self._file.close()
