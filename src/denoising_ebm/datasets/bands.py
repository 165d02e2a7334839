"""TIFF files of more bands than gray or colour, which Pillow does not read: each is read as a gray picture by Pillow."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from denoising_ebm.datasets.headers import UnreadableImageError

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _MEANING, _SAMPLES, _PLANES, _PREDICTOR = 256, 257, 258, 259, 262, 277, 284, 317
_STRIPS, _ROWS, _STRIP_BYTES, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES = 273, 278, 279, 322, 323, 324, 325
_EXTRA, _SAMPLE_KIND, _FILL = 338, 339, 266
_SHORT = {_BITS, _COMPRESSION, _MEANING, _SAMPLES, _SAMPLE_KIND, _FILL}
_OPACITY = (1, 2)
_KINDS: Mapping[tuple[int, int], str] = {(8, 1): "L", (16, 1): "I;16", (32, 3): "F"}
"""Modes of Pillow by bits and kind of a sample."""


def read_bands(raw: bytes, max_values: int) -> npt.NDArray[Any] | None:
    """Return the bands of the first page of a TIFF file, uint8, uint16 or float32, shape `(bands, height, width)`.

    Strips and tiles, bands side by side or in planes, and all compressions that Pillow knows.

    Args:
        raw: The file.
        max_values: Most pixels times bands that are read.

    Returns:
        The bands; None for gray, colour, and these with opacity.

    Raises:
        UnreadableImageError: If there are more bands than 16, or they are stored in a way that is not read.
    """
    tags = _tags(raw)
    count, planes = int(tags.get(_SAMPLES, 1)), tags.get(_PLANES, 1) == 2
    colours = {1: 1, 2: 3}.get(int(tags.get(_MEANING, 1)), count)
    extra = tags.get(_EXTRA, ())
    bits = set(tags.get(_BITS, (1,)))
    is_plain = count <= colours + 1 and (count == colours or extra[:1] in ((kind,) for kind in _OPACITY))
    # Of colour Pillow does not read floating-point numbers, nor 16 bits in planes.
    if count < 2 or (is_plain and not (count == colours and (bits == {32} or (planes and bits == {16})))):
        return None
    width, height = int(tags[_WIDTH]), int(tags[_HEIGHT])
    if count > 16:
        raise UnreadableImageError(f"has {count} bands, more than 16")
    if width * height * count > max_values:
        raise UnreadableImageError(
            f"is {width}x{height} of {count} bands, more than is decoded; --max-pixels raises the limit"
        )
    key = (bits.pop() if len(bits) == 1 else 0, int(tags.get(_SAMPLE_KIND, (1,))[0]))
    predictor = int(tags.get(_PREDICTOR, 1))
    if key not in _KINDS or predictor not in (1, 2) or (predictor == 2 and key[0] == 32):
        raise UnreadableImageError(
            "has bands of bits or a compression that are not read; uint8, uint16 and float32 are"
        )
    if planes:
        bands = [_gray(raw, tags, key, width, height, 1, (number, count)) for number in range(count)]
        values = np.stack(bands)[..., None]
    else:
        values = _gray(raw, tags, key, width, height, count, (0, 1)).reshape(1, height, width, count)
    if predictor == 2:  # each sample is stored as its difference to the one before, from the left edge of its tile
        step = int(tags.get(_TILE_WIDTH, width))
        for left in range(0, width, step):
            part = values[:, :, left : left + step]
            values[:, :, left : left + step] = np.cumsum(part, axis=2, dtype=values.dtype)
    return values[..., 0] if planes else np.ascontiguousarray(values[0].transpose(2, 0, 1))


def _tags(raw: bytes) -> Mapping[int, Any]:
    file = io.BytesIO(raw)
    start = file.read(16 if raw[2:4] in (b"+\0", b"\0+") else 8)
    tags = ImageFileDirectory_v2(start)
    file.seek(tags.next)
    tags.load(file)
    return tags


def _gray(
    raw: bytes,
    tags: Mapping[int, Any],
    key: tuple[int, int],
    width: int,
    height: int,
    samples: int,
    plane: tuple[int, int],
) -> npt.NDArray[Any]:
    """Read bands as one gray picture whose rows hold `samples` numbers for each pixel, or one of several planes."""
    number, count = plane
    is_tiled = _TILES in tags
    places, lengths = (
        [int(n) for n in tags[tag]] for tag in ((_TILES, _TILE_BYTES) if is_tiled else (_STRIPS, _STRIP_BYTES))
    )
    part = slice(number * len(places) // count, (number + 1) * len(places) // count)
    new: dict[int, list[int]] = {
        _WIDTH: [width * samples],
        _HEIGHT: [height],
        _BITS: [key[0]],
        _COMPRESSION: [int(tags.get(_COMPRESSION, 1))],
        _MEANING: [1],
        _SAMPLES: [1],
        _SAMPLE_KIND: [key[1]],
        _FILL: [int(tags.get(_FILL, 1))],
        (_TILES if is_tiled else _STRIPS): places[part],
        (_TILE_BYTES if is_tiled else _STRIP_BYTES): lengths[part],
    }
    if is_tiled:
        new |= {_TILE_WIDTH: [int(tags[_TILE_WIDTH]) * samples], _TILE_HEIGHT: [int(tags[_TILE_HEIGHT])]}
    else:
        new[_ROWS] = [min(int(tags.get(_ROWS, height)), height)]
    with Image.open(io.BytesIO(with_directory(raw, new)), formats=["TIFF"]) as opened:
        opened.load()
        return np.array(opened, dtype={8: np.uint8, 16: np.uint16, 32: np.float32}[key[0]])


def with_directory(raw: bytes, tags: Mapping[int, list[int]]) -> bytes:
    """Return a TIFF file with one directory of other tags behind all its bytes."""
    order = "<" if raw[:2] == b"II" else ">"
    start = len(raw) + len(raw) % 2
    place = start + 2 + 12 * len(tags) + 4
    entries, outside = struct.pack(order + "H", len(tags)), b""
    for tag, values in sorted(tags.items()):
        code, kind = (3, "H") if tag in _SHORT else (4, "I")
        data = struct.pack(f"{order}{len(values)}{kind}", *values)
        if len(data) > 4:
            data, outside = struct.pack(order + "I", place + len(outside)), outside + data
        entries += struct.pack(order + "HHI", tag, code, len(values)) + data.ljust(4, b"\0")
    head = raw[:2] + struct.pack(order + "HI", 42, start)
    return b"".join([head, raw[8:], b"\0" * (start - len(raw)), entries, struct.pack(order + "I", 0), outside])
