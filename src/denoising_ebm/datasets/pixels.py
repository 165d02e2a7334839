"""From files to arrays of the depth and the channels that they are stored with."""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from denoising_ebm.datasets.bands import read_bands
from denoising_ebm.datasets.decode import (
    FORMATS,
    Decoding,
    Stored,
    decode_each,
    own_limits,
    quiet_stderr,
    reason_unreadable,
    to_array,
    turn_of,
)
from denoising_ebm.datasets.entries import Entry, read_bytes
from denoising_ebm.datasets.headers import UnreadableImageError, check_png, is_png, is_tiff, tiff_pages
from denoising_ebm.datasets.levels import ValueRange, deep_levels, is_deep

MAX_CHANNELS = 16
"""Of an image."""
_NUMPY = b"\x93NUMPY"
_VALUES_PER_PIXEL = 4
"""Numbers of an array or a file of several bands for each of `max_pixels`."""

Array = npt.NDArray[Any]


class Pixels(NamedTuple):
    """An image as it is stored."""

    values: Array  #: uint8, uint16, int32 or float32, shape `(channels, height, width)`.
    channels: tuple[int, ...]  #: The channel counts that it can stand for without conversion, its own first.
    value_range: ValueRange  #: The levels that stand for black and white.
    stored: Stored


def read_pixels(entry: Entry, how: Decoding) -> Pixels:
    """Read an image of any size: what `decode_each` reads, more than 8 bits as they are, arrays, and several bands.

    Pages of one size in gray are the bands of one image.

    Raises:
        UnreadableImageError: If it cannot be read; it does not name the file.
    """
    try:
        raw = read_bytes(entry.value)
        if raw.startswith(_NUMPY):
            return _array(raw, how)
        with own_limits():
            deep = _tiff_bands(raw, how) if is_tiff(raw) else None
            deep = deep or _deep(raw, how)
    except Exception as error:  # Pillow's readers raise almost any type on damaged files
        raise UnreadableImageError(reason_unreadable(error)) from None
    if deep is not None:
        return deep
    ((_, decoded, reason),) = decode_each([entry._replace(value=raw)], how)
    if decoded is None:
        raise UnreadableImageError(reason)
    return Pixels(to_array(decoded.image), decoded.channels, (0.0, 255.0), decoded.stored)


def read_array(raw: bytes) -> Array:
    """Return the array of the bytes of a `.npy` file.

    Raises:
        UnreadableImageError: If it is damaged or holds Python objects.
    """
    try:
        return np.asarray(np.load(io.BytesIO(raw), allow_pickle=False))
    except Exception:  # of any type on damaged files
        raise UnreadableImageError("is damaged, or an array of no numbers") from None


def _array(raw: bytes, how: Decoding) -> Pixels:
    values = read_array(raw)
    if values.dtype not in (np.uint8, np.uint16, np.float16, np.float32, np.float64):
        raise UnreadableImageError(f"is an array of {values.dtype}; uint8, uint16 and floating-point are read")
    if values.ndim not in (2, 3) or not values.size:
        raise UnreadableImageError(f"is an array of shape {values.shape}, not (height, width) with or without channels")
    if values.size > _VALUES_PER_PIXEL * how.max_pixels:
        raise UnreadableImageError(f"holds {values.size:,} numbers; --max-pixels raises the limit")
    if values.ndim == 2:
        values = values[None]
    else:
        first, _, last = values.shape
        if min(first, last) > MAX_CHANNELS or first == last:
            raise UnreadableImageError(
                f"is an array of shape {values.shape}: neither its first nor its last axis alone has 1 to {MAX_CHANNELS} "
                "channels"
            )
        values = values if first < last else values.transpose(2, 0, 1)
    if values.dtype.kind == "f":
        values = values.astype(np.float32)
    return _finished(values, 8 * values.dtype.itemsize, "NPY", how)


def _tiff_bands(raw: bytes, how: Decoding) -> Pixels | None:
    pages = tiff_pages(raw)
    if len(pages) > 1:
        return _pages(raw, pages, how)
    bands = read_bands(raw, _VALUES_PER_PIXEL * how.max_pixels)
    return None if bands is None else _finished(bands, 8 * bands.dtype.itemsize, "TIFF", how)


def _pages(raw: bytes, pages: list[int], how: Decoding) -> Pixels | None:
    """Read gray pages of one size; None where they are something else."""
    opened = Image.open(io.BytesIO(raw), formats=["TIFF"])
    looks = set()
    for number in pages[: MAX_CHANNELS + 1]:
        opened.seek(number)
        looks.add((opened.mode, opened.size))
    mode, (width, height) = looks.pop()
    if looks or not (mode in ("1", "L", "I", "F") or mode.startswith("I;16")):
        return None
    if len(pages) > MAX_CHANNELS:
        raise UnreadableImageError(
            f"has {len(pages):,} gray pages, more than the {MAX_CHANNELS} that are read as channels"
        )
    if width * height * len(pages) > _VALUES_PER_PIXEL * how.max_pixels:
        raise UnreadableImageError(f"is {len(pages)} pages of {width}x{height}; --max-pixels raises the limit")
    bands, largest, bits = [], 255, 8
    for number in pages:
        page = Image.open(io.BytesIO(raw), formats=["TIFF"])
        page.seek(number)
        if is_deep(page):
            deep = deep_levels(page, raw, how.value_range)
            bands.append(deep.values)
            largest, bits = deep.largest, deep.bits
        else:
            bands.append(np.asarray(page.convert("L")))
    return _finished(np.stack(bands), bits, "TIFF", how, largest)


def _deep(raw: bytes, how: Decoding) -> Pixels | None:
    """Read a file of more than 8 bits; None for all others, readable or not."""
    if is_png(raw):
        raw = check_png(raw)
    try:
        opened = Image.open(io.BytesIO(raw), formats=FORMATS)
        if not is_deep(opened):
            return None
    except Exception:  # of any type: the reader of 8 bits says what it is
        return None
    if 2 * opened.width * opened.height > how.max_pixels:
        size = f"{opened.width}x{opened.height}"
        raise UnreadableImageError(
            f"is {size} of more than 8 bits, more than the {how.max_pixels // 2:,} pixels that are decoded; "
            "--max-pixels raises the limit"
        )
    frames = getattr(opened, "n_frames", 1)
    with quiet_stderr(opened):
        deep = deep_levels(opened, raw, how.value_range)
    notes: tuple[str, ...] = (f"first of {frames} frames",) if frames > 1 else ()
    values = deep.values if deep.values.ndim == 3 else deep.values[..., None]
    if deep.has_opacity:
        values, said = _laid_over(values, deep.largest, how)
        notes += said
    if opened.format != "TIFF":  # those Pillow has turned
        turn, said = turn_of(opened)
        notes += said
        values = _turned(values, turn)
    values = values.transpose(2, 0, 1)
    return _finished(values, deep.bits, opened.format or "", how, deep.largest, notes)


def _laid_over(values: Array, largest: int, how: Decoding) -> tuple[Array, tuple[str, ...]]:
    """Return levels without the opacity behind them, over the background."""
    colours, alpha = values[..., :-1], values[..., -1:]
    if alpha.min() == largest:
        return colours, ()
    if how.background == "ignore":
        return colours, ("transparency ignored",)
    if alpha.max() == 0:
        raise UnreadableImageError("is wholly transparent; --background ignore reads its colours")
    ground = np.array(how.colour(), np.float32)[: colours.shape[2]] * np.float32(largest / 255)
    share = alpha.astype(np.float32) / np.float32(largest)
    flat = np.rint(share * colours + (1 - share) * ground).astype(values.dtype)
    return flat, (f"transparent: laid over {how.background}",)


def _turned(values: Array, turn: Image.Transpose | None) -> Array:
    """Return an array of `(height, width, channels)` turned as Pillow turns a picture."""
    if turn is None:
        return values
    turns = {Image.Transpose.ROTATE_90: 1, Image.Transpose.ROTATE_180: 2, Image.Transpose.ROTATE_270: 3}
    if turn in turns:
        return np.rot90(values, turns[turn])
    if turn == Image.Transpose.FLIP_LEFT_RIGHT:
        return values[:, ::-1]
    if turn == Image.Transpose.FLIP_TOP_BOTTOM:
        return values[::-1]
    across = values.swapaxes(0, 1)
    return across if turn == Image.Transpose.TRANSPOSE else across[::-1, ::-1]


def _finished(
    values: Array, bits: int, kind: str, how: Decoding, largest: int | None = None, notes: tuple[str, ...] = ()
) -> Pixels:
    """Return levels with their range and what is to be said of it."""
    channels, height, width = values.shape
    lowest, highest = values.min(), values.max()
    if not np.isfinite([lowest, highest]).all():  # NaN is the least and the largest where there is one
        raise UnreadableImageError("has pixels that are not finite numbers")
    is_float = values.dtype.kind == "f"
    if largest is None or (is_float and not largest):
        largest = {1: 255, 2: 65535}.get(values.dtype.itemsize, 1) if not is_float else 1
    value_range = (0.0, float(largest))
    if how.value_range is not None and values.dtype != np.uint8:
        value_range = how.value_range
        if lowest < value_range[0] or highest > value_range[1]:
            notes += ("levels outside of {:g} to {:g} cut off".format(*value_range),)
    elif is_float and (lowest < 0 or highest > 1):
        raise UnreadableImageError(
            f"has floating-point levels from {lowest:g} to {highest:g}, not 0 to 1; --range LOW,HIGH says which are black "
            "and white"
        )
    is_open = largest == 65535 and how.value_range is None
    stored = Stored(kind, width, height, bits, notes=notes, highest=int(highest) if is_open else None)
    return Pixels(values, (channels,), value_range, stored)
