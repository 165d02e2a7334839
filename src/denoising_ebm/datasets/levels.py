"""Pixels of more than 8 bits: brought to 8, or as they are."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from denoising_ebm.datasets.headers import UnreadableImageError

#: Levels that become black and white: integers `(0, 4095)`, or of floating-point pixels `(0.0, 1.0)`.
ValueRange = tuple[float, float]

_Array = npt.NDArray[Any]
_BLOCK_PIXELS = 2**20


class Levels(NamedTuple):
    """An image of 8 bits, and what it was before."""

    image: Image.Image  #: In mode L, LA, RGB or RGBA.
    bits: int  #: Per channel, as stored.
    highest: int | None  #: Largest level of a 16-bit file that may hold fewer bits; None where the file says its range.
    notes: tuple[str, ...] = ()


class Deep(NamedTuple):
    """Levels as a file holds them."""

    values: _Array  #: uint8, uint16, int32 or float32, shape `(height, width)` or `(height, width, channels)`.
    has_opacity: bool  #: Whether the last of two or four channels is opacity.
    bits: int  #: Per channel, as stored.
    largest: int  #: The level that stands for white; 0 where the file does not say.
    highest: int | None  #: As in `Levels`.


def parse_range(text: str) -> ValueRange:
    """Return the range that `HIGH` or `LOW,HIGH` stands for.

    Raises:
        ValueError: If it is something else.
    """
    try:
        values = [float(part) for part in text.split(",")]
        low, high = values if len(values) == 2 else (0.0, *values)
    except ValueError:
        raise ValueError(f"--range must be HIGH or LOW,HIGH, such as 4095 or 0,1; got {text!r}") from None
    check_range((low, high))
    return low, high


def check_range(value_range: ValueRange | None) -> None:
    """Refuse a range without an extent.

    Raises:
        ValueError: If it is not two finite numbers, the lower one first.
    """
    if value_range is None:
        return
    if len(value_range) != 2 or not -(2**53) <= value_range[0] < value_range[1] <= 2**53:
        raise ValueError(f"value_range must be two finite numbers LOW < HIGH, got {value_range}")


def is_deep(opened: Image.Image) -> bool:
    """Whether an opened file has more than 8 bits per channel, or levels that are not 0 to 255."""
    if opened.format not in ("PNG", "TIFF", "PPM"):
        return False
    if opened.mode in ("I", "F") or opened.mode.startswith("I;16"):
        return True
    if opened.format == "TIFF" and (_tiff_bits(opened) > 8 or _is_signed_byte(opened)):
        return True
    return bool(_tiles(opened)) and (";16" in _rawmode(opened) or _ppm_largest(opened) != 255)


def to_8_bits(opened: ImageFile.ImageFile, raw: bytes, value_range: ValueRange | None) -> Levels:
    """Bring a file of more than 8 bits to 8.

    Without a range the high byte of 16 bits is kept, or the share of the largest level that the file itself names
    (`maxval` of a PGM). With one, integer levels `v` become `256 (v - LOW) // (HIGH - LOW + 1)` and floating-point ones
    `255 (v - LOW) / (HIGH - LOW)`, rounded; what lies outside is black or white.

    Args:
        opened: The file, at the frame to read, not loaded yet.
        raw: Its bytes.
        value_range: The range.

    Raises:
        UnreadableImageError: If the file has no range that is known, and none is given.
    """
    if _is_left_to_pillow(opened):
        bits = 16 if opened.format != "PPM" else _ppm_largest(opened).bit_length()
        opened.load()
        return Levels(opened, bits, None)
    values, bits, scale, highest = _read(opened, raw, value_range, keep=False)
    return Levels(Image.fromarray(values), bits, highest, scale.notes)  # of mode L, LA, RGB or RGBA by its channels


def deep_levels(opened: ImageFile.ImageFile, raw: bytes, value_range: ValueRange | None) -> Deep:
    """Read a file of more than 8 bits as it is; in the few arrangements that Pillow brings to 8 bits, those.

    Args:
        opened: The file, at the frame to read, not loaded yet.
        raw: Its bytes.
        value_range: A range; it changes no level, but files of integers without a known range need one.

    Raises:
        UnreadableImageError: If the file has no range that is known, and none is given, or numbers that are not finite.
    """
    if _is_left_to_pillow(opened):
        opened.load()
        plain = opened if opened.mode == "L" else opened.convert("RGB")
        return Deep(np.asarray(plain), False, 8, 255, None)
    values, bits, scale, highest = _read(opened, raw, value_range, keep=True)
    return Deep(values, values.ndim == 3 and values.shape[2] in (2, 4), bits, scale.largest, highest)


def _is_left_to_pillow(opened: ImageFile.ImageFile) -> bool:
    """Whether Pillow's 8 bits are all that can be had: of text files in colour, of CMYK."""
    if _is_binary_ppm(opened) or _is_one_channel(opened):
        return False
    return opened.format == "PPM" or not (_in_planes(opened) or _rawmode(opened).startswith(("RGB", "LA")))


def _is_binary_ppm(opened: ImageFile.ImageFile) -> bool:
    return opened.format == "PPM" and opened.mode in ("L", "I", "RGB") and _codec(opened) != "ppm_plain"


def _is_one_channel(opened: ImageFile.ImageFile) -> bool:
    return opened.mode in ("I", "F") or opened.mode.startswith("I;16") or _is_signed_byte(opened)


def _in_planes(opened: ImageFile.ImageFile) -> bool:
    return bool(getattr(opened, "tag_v2", {}).get(284) == 2)


_Read = tuple[_Array, int, "_Scale", int | None]
"""Levels with the channels last, bits, what they went through, and the largest one of a 16-bit file."""


def _read(opened: ImageFile.ImageFile, raw: bytes, value_range: ValueRange | None, *, keep: bool) -> _Read:
    if _is_binary_ppm(opened):
        return _ppm(opened, raw, value_range, keep)
    if _is_one_channel(opened):
        return _one_channel(opened, value_range, keep)
    return _more_channels(opened, raw, value_range, keep)


def _one_channel(opened: ImageFile.ImageFile, value_range: ValueRange | None, keep: bool) -> _Read:
    declared = _ppm_largest(opened) if opened.format == "PPM" and opened.mode != "F" else 0
    bits = _tiff_bits(opened) or (32 if opened.mode in ("I", "F") and opened.format != "PNG" else 16)
    inverted = getattr(opened, "tag_v2", {}).get(262) == 0
    signed_byte = _is_signed_byte(opened)
    clear = opened.info.get("transparency") if opened.format == "PNG" else None
    opened.load()
    mode = opened.mode
    is_open = (mode in ("I", "F") and not declared and opened.format != "PNG") or signed_byte
    if is_open and value_range is None and not (keep and mode == "F"):
        kind = "floating-point" if mode == "F" else f"{'signed ' * signed_byte}{bits}-bit integer"
        raise UnreadableImageError(f"has {kind} pixels, whose range the file does not say; --range LOW,HIGH says it")
    largest = declared or (65535 if mode == "I" else 2 ** min(bits, 16) - 1)
    kind_kept = np.float32 if mode == "F" else np.int32 if is_open else np.uint16
    result = np.empty((opened.height, opened.width), kind_kept if keep else np.uint8)
    alpha = np.empty_like(result) if isinstance(clear, int) else None
    scale = _Scale(value_range, largest, keep)
    for rows, block in _blocks(opened):
        if signed_byte:
            block = block.view(np.int8)
        if declared:  # Pillow brings them to 65535; this brings them back
            block = (block.astype(np.int64) * largest + 32767) // 65535
        if inverted and mode != "F":
            block = largest - block.astype(np.int64)
        if alpha is not None:
            alpha[rows] = np.where(block == clear, 0, scale.white)
        result[rows] = scale(block)
    if alpha is not None:
        result = np.stack([result, alpha], -1)
    highest = scale.highest if largest == 65535 and mode != "F" else None
    if is_open:
        scale.largest = 0
    return result, largest.bit_length() if declared else bits, scale, highest


def _ppm(opened: ImageFile.ImageFile, raw: bytes, value_range: ValueRange | None, keep: bool) -> _Read:
    """Read a binary PGM or PPM, which Pillow would do pixel by pixel in Python, and in 8 bits where it has colour."""
    largest, channels = _ppm_largest(opened), 3 if opened.mode == "RGB" else 1
    shape = (opened.height, opened.width, channels)
    kind = ">u2" if largest > 255 else "u1"
    if len(raw) - _tiles(opened)[0][2] < np.dtype(kind).itemsize * np.prod(shape, dtype=np.int64):
        raise UnreadableImageError("is cut off: its pixels end early")
    values = np.frombuffer(raw, kind, int(np.prod(shape)), _tiles(opened)[0][2]).reshape(shape)
    result = np.empty(shape, np.uint16 if keep and largest > 255 else np.uint8)
    # Of fewer than 8 bits each level stands for itself: rounded, as all programs do.
    table = np.array([min(255, round(level / largest * 255)) for level in range(256)], np.uint8)
    scale = _Scale(value_range, largest, keep)
    for rows in _rows(opened.height, opened.width):
        result[rows] = scale(values[rows]) if largest > 255 else table[values[rows]]
    if largest < 256:
        scale.largest = 255
    highest = scale.highest if largest == 65535 else None
    return result if channels == 3 else result[..., 0], largest.bit_length(), scale, highest


def _more_channels(opened: ImageFile.ImageFile, raw: bytes, value_range: ValueRange | None, keep: bool) -> _Read:
    """Read 16 bits of several channels: Pillow gives one byte of each, so the file is read once for each byte."""
    if _in_planes(opened):
        raise UnreadableImageError("has 16-bit channels in planes of their own, which are not read")
    clear = opened.info.get("transparency") if opened.format == "PNG" else None
    frame, lower = opened.tell(), None
    pair = _rawmode(opened).startswith("LA;16")
    if pair:
        # Gray and opacity of 16 bits take the bytes of RGBA.
        _set_rawmode(opened, lambda _: "RGBA")
        opened.load()
    else:
        lower = Image.open(io.BytesIO(raw), formats=[str(opened.format)])
        lower.seek(frame)
        _set_rawmode(lower, _other_byte)
        lower.load()
        opened.load()
    channels = 2 if pair else len(opened.getbands())
    if not pair:
        channels = 4 if opened.mode == "RGBA" else 3
    has_clear = isinstance(clear, tuple)
    result = np.empty((opened.height, opened.width, channels + has_clear), np.uint16 if keep else np.uint8)
    colours = channels - (channels in (2, 4))
    scale = _Scale(value_range, 65535, keep)
    for rows, block in _blocks(opened):
        if lower is None:
            values = block[..., ::2].astype(np.uint16) << 8 | block[..., 1::2]
        else:
            low = np.asarray(lower.crop((0, rows.start, lower.width, rows.stop)))
            values = block.astype(np.uint16) << 8 | low
        result[rows, :, :colours] = scale(values[..., :colours])
        if has_clear:
            result[rows, :, 3] = np.where((values[..., :3] == np.array(clear)).all(-1), 0, scale.white)
        elif colours < channels:
            result[rows, :, colours] = _Scale(value_range, 65535, keep)(values[..., colours])
    return result, 16, scale, scale.highest


class _Scale:
    """Levels to 8 bits, block by block; or looked at and kept."""

    def __init__(self, value_range: ValueRange | None, largest: int, keep: bool) -> None:
        self._range = value_range
        self._keep = keep
        self.largest = largest  #: The level that stands for white without a range.
        self.white = largest if keep else 255  #: Of opacity.
        self._clipped = False
        self.highest = 0  #: Largest integer level so far.

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done to levels that lie outside of the range."""
        if not self._clipped or self._range is None:
            return ()
        low, high = self._range
        return (f"levels outside of {low:g} to {high:g} cut off",)

    def __call__(self, values: _Array) -> _Array:
        """Return the levels of a block in 8 bits, or as they are."""
        is_float = values.dtype.kind == "f"
        if is_float and not np.isfinite(values).all():
            raise UnreadableImageError("has pixels that are not finite numbers")
        if not is_float and values.size:
            self.highest = max(self.highest, int(values.max()))
        if self._keep:
            return values
        if self._range is None:
            if self.largest == 65535:
                return (values >> 8).astype(np.uint8)
            return (values.astype(np.int64).clip(0, self.largest) * 256 // (self.largest + 1)).astype(np.uint8)
        low, high = self._range
        self._clipped |= bool(values.size) and bool((values < low).any() or (values > high).any())
        values = values.clip(low, high)
        if is_float or not (float(low).is_integer() and float(high).is_integer()):
            scaled = np.rint((values.astype(np.float64) - low) * (255 / (high - low)))
        else:
            scaled = (values.astype(np.int64) - int(low)) * 256 // (int(high) - int(low) + 1)
        return scaled.astype(np.uint8)


def _rows(height: int, width: int) -> list[slice]:
    """Return slices of rows of about a million pixels: copies of a whole image would take many times its memory."""
    step = max(1, _BLOCK_PIXELS // max(width, 1))
    return [slice(top, min(top + step, height)) for top in range(0, height, step)]


def _blocks(image: Image.Image) -> Iterator[tuple[slice, _Array]]:
    """Yield the rows of an image block by block, as arrays."""
    for rows in _rows(image.height, image.width):
        whole = rows.stop - rows.start == image.height
        yield rows, np.asarray(image if whole else image.crop((0, rows.start, image.width, rows.stop)))


def _tiles(opened: Image.Image) -> list[Any]:
    return list(getattr(opened, "tile", ()))


def _codec(opened: Image.Image) -> str:
    return str(_tiles(opened)[0][0])


def _rawmode(opened: Image.Image) -> str:
    """Name the arrangement of the bytes of a file, as Pillow calls it."""
    arguments = _tiles(opened)[0][3]
    return str(arguments if isinstance(arguments, str) or not arguments else arguments[0])


def _set_rawmode(opened: Any, change: Callable[[str], str]) -> None:
    if _rawmode(opened).startswith("LA;16"):
        opened._mode = "RGBA"
    tiles = []
    for codec, extents, offset, arguments in opened.tile:
        is_name = isinstance(arguments, str)
        changed = change(arguments) if is_name else (change(arguments[0]), *arguments[1:])
        tile = (codec, extents, offset, changed)
        # A plain tuple before Pillow 11.
        tiles.append(tile if type(opened.tile[0]) is tuple else type(opened.tile[0])(*tile))
    opened.tile = tiles


def _other_byte(rawmode: str) -> str:
    """Name the arrangement whose high byte is this one's low byte."""
    little = np.dtype(np.uint16).newbyteorder("<").isnative
    return rawmode[:-1] + {"L": "B", "B": "L", "N": "B" if little else "L"}[rawmode[-1]]


def _ppm_largest(opened: Image.Image) -> int:
    """Return the largest level that a PGM or PPM file names, 255 for all other files of 8 bits."""
    if opened.format != "PPM" or not _tiles(opened):
        return 255
    arguments = _tiles(opened)[0][3]
    if isinstance(arguments, tuple) and len(arguments) == 2:
        return int(arguments[1])
    return 65535 if _rawmode(opened).startswith("I;16") else 255


def _is_signed_byte(opened: Image.Image) -> bool:
    """Whether the levels of a TIFF file are -128 to 127, which Pillow reads as 0 to 255."""
    return opened.format == "TIFF" and _tiff_bits(opened) == 8 and getattr(opened, "tag_v2", {}).get(339) == (2,)


def _tiff_bits(opened: Image.Image) -> int:
    bits = getattr(opened, "tag_v2", {}).get(258)
    return int(max(bits)) if isinstance(bits, tuple) and bits else 0
