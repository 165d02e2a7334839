"""From files to arrays of the depth and the channels that they are stored with."""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from denoising_ebm.datasets.decode import (
    FORMATS,
    Decoding,
    Stored,
    decode_each,
    own_limits,
    reason_unreadable,
    to_array,
)
from denoising_ebm.datasets.entries import Entry, read_bytes
from denoising_ebm.datasets.headers import UnreadableImageError
from denoising_ebm.datasets.levels import is_deep

Array = npt.NDArray[Any]


class Pixels(NamedTuple):
    """An image as it is stored."""

    values: Array  #: uint8, uint16 or float32, shape `(channels, height, width)`.
    channels: tuple[int, ...]  #: The channel counts that it can stand for without conversion, its own first.
    largest: float  #: The level that stands for white if no range is given.
    stored: Stored


def read_pixels(entry: Entry, how: Decoding) -> Pixels:
    """Read an image of any size, of 8 or 16 bits.

    Raises:
        UnreadableImageError: If it cannot be read; it does not name the file.
    """
    try:
        raw = read_bytes(entry.value)
        with own_limits():
            deep = _deep(raw, how)
    except Exception as error:  # Pillow's readers raise almost any type on damaged files
        raise UnreadableImageError(reason_unreadable(error)) from None
    if deep is not None:
        return deep
    (found,) = decode_each([entry._replace(value=raw)], how)
    _, decoded, reason = found
    if decoded is None:
        raise UnreadableImageError(reason)
    return Pixels(to_array(decoded.image), decoded.channels, 255.0, decoded.stored)


def _deep(raw: bytes, how: Decoding) -> Pixels | None:
    try:
        opened = Image.open(io.BytesIO(raw), formats=FORMATS)
    except Exception:
        return None
    if not is_deep(opened):
        return None
    opened.load()
    values = np.asarray(opened).astype(np.uint16)
    stored = Stored(opened.format or "", opened.width, opened.height, 16, highest=int(values.max()))
    return Pixels(values[None], (1,), 65535.0, stored)
