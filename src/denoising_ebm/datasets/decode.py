"""From encoded images to arrays of uint8: one image at a time, by Pillow."""

from __future__ import annotations

import io
import logging
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor, ImageFile, UnidentifiedImageError

from denoising_ebm.datasets.entries import Entry, read_bytes
from denoising_ebm.datasets.headers import (
    UnreadableImageError,
    check_png,
    is_lossless_webp,
    is_png,
    is_tiff,
    tiff_pages,
    what_it_is,
    with_opacity,
)
from denoising_ebm.datasets.jpeg import jpeg_quality
from denoising_ebm.datasets.levels import ValueRange, check_range, is_deep, to_8_bits
from denoising_ebm.literals import Frames
from denoising_ebm.utils.parsing import shown
from denoising_ebm.utils.text import counted, reason_of

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
"""What is read: a closed list, since Pillow would start Ghostscript for a file which claims to be PostScript."""
_MODES = {"1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "LA", "La", "PA", "RGBA", "RGBa", "RGBX"}
_STRIP_PIXELS = 2**22
_TIFF_LOG = logging.getLogger("PIL.TiffImagePlugin")  # says of damaged files on the terminal what their row says
_MAX_EXIF_BYTES = 2**17
_LARGE = 2**24

MAX_PIXELS = 2**26
"""Pixels of the largest image that is read unless more are allowed: 64 megapixels, some 0.6 GB while it is decoded."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_SIDEWAYS = {_TURNS[orientation] for orientation in (5, 6, 7, 8)}


@dataclass(frozen=True)
class Decoding:
    """How files become pixels of 8 bits.

    Attributes:
        value_range: Levels that become black and white in files of more than 8 bits.
        background: Colour that partly transparent images are laid over, by name or `#rrggbb`; `ignore` to read their
            colours as if they were opaque.
        frames: Of animations and files of several pages.
        max_pixels: Pixels of the largest image that is decoded; half as many of more than 8 bits and of several frames
            that are all read, and a quarter of WebP, which take more memory.
        needed: Side in pixels of what is made of an image: a large JPEG is decoded at a half, a quarter or an eighth of
            its size so long as its sides are still four times as long. None to decode all as it is.
    """

    value_range: ValueRange | None = None
    background: str = "white"
    frames: Frames = "first"
    max_pixels: int = MAX_PIXELS
    needed: int | None = None

    def __post_init__(self) -> None:
        check_range(self.value_range)
        if self.frames not in ("first", "all"):
            raise ValueError(f"frames must be first or all, got {self.frames!r}")
        if self.max_pixels < 1:
            raise ValueError(f"max_pixels must be >= 1, got {self.max_pixels}")
        self.colour()

    def colour(self) -> tuple[int, int, int]:
        """Return red, green and blue of the background."""
        if self.background == "ignore":
            return 255, 255, 255
        try:
            red, green, blue = ImageColor.getrgb(self.background)[:3]
        except (ValueError, AttributeError):
            raise ValueError(
                f"background must be white, black, ignore or #rrggbb, got {shown(self.background)}"
            ) from None
        return red, green, blue


class Stored(NamedTuple):
    """How an image was stored, and how much of it the pixels show."""

    format: str  #: Of the pixels: PNG, JPEG (in a TIFF file, too), WEBP, lossless WEBP, ...; empty where unknown.
    width: int  #: In pixels as stored, after the turn that EXIF asks for.
    height: int
    bits: int = 8  #: Per channel.
    frames: int = 1  #: In the file.
    quality: int | None = None  #: Of a JPEG, 1 to 100, estimated from its quantisation tables.
    seen: float = 1.0  #: Share of its area that the pixels show, 0 to 1.
    #: Pixels as stored for one that is given on, along a side: above 1 made smaller, below 1 enlarged.
    scale: float = 1.0
    notes: tuple[str, ...] = ()  #: Decisions that changed its meaning, in plain words: `first of 5 frames`.
    highest: int | None = None  #: Largest level of a 16-bit file; None where it is known what is white.


class Decoded(NamedTuple):
    """An image in its own size and channels."""

    image: Image.Image  #: In mode L or RGB.
    channels: tuple[int, ...]  #: The channel counts that it can stand for without conversion, its own first.
    stored: Stored


class Frame(NamedTuple):
    """The value of an entry that is one frame of another entry's file."""

    value: Any
    number: int


def decode_each(entries: Iterable[Entry], how: Decoding | None = None) -> Iterator[tuple[Entry, Decoded | None, str]]:
    """Yield entry, image, and why there is none if so; with `frames="all"` each frame under `NAME#number`, from 0."""
    how = how or Decoding()
    for entry in entries:
        value, only = (entry.value.value, entry.value.number) if isinstance(entry.value, Frame) else (entry.value, None)
        try:
            raw = read_bytes(value)
        except Exception as error:  # of the file system, or of a row that says why it is not read
            yield entry, None, reason_of(error)
            continue
        names_frames = how.frames == "all" and only is None
        try:
            with own_limits():
                file = _File(raw, how)
                several = names_frames and len(file.frames) > 1
                decoded = None if several else file.frame(file.frames[only or 0])
        except Exception as error:  # Pillow's readers raise almost any type on damaged files
            yield entry, None, reason_unreadable(error)
            continue
        if decoded is not None:
            yield entry, decoded, ""
            del decoded
        else:
            yield from _each_frame(entry, file)
        del file  # two large images would not fit into memory together


def _each_frame(entry: Entry, file: _File) -> Iterator[tuple[Entry, Decoded | None, str]]:
    for place, number in enumerate(file.frames):
        named = entry._replace(name=f"{entry.name}#{place}")
        try:
            with own_limits():
                decoded = file.frame(number)
        except Exception as error:  # of any type, as above
            if file.has_pages:
                yield named, None, reason_unreadable(error)
                continue
            # Frames of an animation build on those before, and a damaged file can claim any number of them.
            yield (
                named,
                None,
                f"{reason_unreadable(error)}; this and the frames after it, of {len(file.frames):,}, are not read",
            )
            break
        yield named, decoded, ""
        del decoded


def frame_entries(entry: Entry) -> list[Entry]:
    """Return an entry for each frame of an entry's file; itself where there is one, or none can be read."""
    try:
        with own_limits():
            count = len(_File(read_bytes(entry.value), Decoding(max_pixels=2**62)).frames)
    except Exception:  # of any type, as when it is decoded
        return [entry]
    if count == 1:
        return [entry]
    return [entry._replace(name=f"{entry.name}#{i}", value=Frame(entry.value, i)) for i in range(count)]


class _File:
    """An opened file of one or several frames."""

    def __init__(self, raw: bytes, how: Decoding) -> None:
        if is_png(raw):
            raw = check_png(raw)
        raw = with_opacity(raw)
        pages = tiff_pages(raw) if is_tiff(raw) else None
        self._raw = raw
        self._how = how
        try:
            self._opened: ImageFile.ImageFile = Image.open(io.BytesIO(raw), formats=FORMATS)
        except UnidentifiedImageError:
            raise UnreadableImageError(
                what_it_is(raw) or f"cannot identify the format (read are {', '.join(FORMATS)})"
            ) from None
        self._check_size()
        self.has_pages = pages is not None  #: Each frame is a picture of its own.
        #: Numbers of the frames in the file.
        self.frames: range | list[int] = pages or range(max(1, getattr(self._opened, "n_frames", 1)))

    def _check_size(self, reduced: bool = False) -> None:
        opened, limit = self._opened, self._how.max_pixels
        progressive = bool(opened.info.get("progressive"))
        if not reduced and opened.format == "JPEG" and not progressive and self._how.needed is not None:
            return  # looked at again once it is known at which size it is decoded
        if opened.format == "WEBP":
            limit //= 4
        elif is_deep(opened):
            limit //= 2
        if self._how.frames == "all" and getattr(opened, "is_animated", False):
            limit //= 2
        if opened.width * opened.height > limit:
            size = f"{opened.width}x{opened.height}"
            raise UnreadableImageError(
                f"is {size}, more than the {limit:,} pixels that are decoded; --max-pixels raises the limit"
            )

    def _loaded(self) -> ImageFile.ImageFile:
        """Decode the frame that is open."""
        opened = self._opened
        is_jpeg = opened.format == "JPEG" and not opened.info.get("progressive")
        size = opened.size
        try:
            opened.load()
        except OSError:
            if not is_jpeg or size[0] * size[1] > _LARGE:
                raise
            # All may be there but the mark at the end. Then no pixel depends on what would come.
            ended, longer = (
                Image.open(io.BytesIO(self._raw + rest + b"\xff\xd9"), formats=["JPEG"]) for rest in (b"", b"\xa5" * 64)
            )
            for image in (ended, longer):
                image.draft(None, size)
            if ended.tobytes() != longer.tobytes():
                raise
            return ended
        return opened

    def frame(self, number: int) -> Decoded:
        """Decode one frame."""
        opened, how, frames = self._opened, self._how, len(self.frames)
        # Frames can be larger than the first: seeking to one refuses that at twice of this.
        Image.MAX_IMAGE_PIXELS = max(1, how.max_pixels // 2)
        if number or opened.tell():
            opened.seek(number)
            self._check_size()
        width, height = opened.size
        if opened.format == "JPEG" and how.needed is not None:
            if width * height >= _LARGE:
                opened.draft(None, (4 * how.needed, 4 * how.needed))
            self._check_size(reduced=True)
        kind = _format(opened, self._raw)
        bits, highest = 1 if opened.mode == "1" else 8, None
        quality = jpeg_quality(_quantization(opened)) if kind == "JPEG" else None
        notes: tuple[str, ...] = (f"first of {frames} frames",) if frames > 1 and how.frames == "first" else ()
        # WebP and palettes cannot be marked as gray.
        marks_gray = opened.format not in ("WEBP", "GIF") and opened.mode != "P"
        image: Image.Image = opened
        if is_deep(opened):
            with quiet_stderr(opened):
                image, bits, highest, said = to_8_bits(opened, self._raw, how.value_range)
            highest = highest if how.value_range is None else None
            notes += said
        else:
            with quiet_stderr(opened):
                opened = self._loaded()
            image = opened
            if frames > 1 and how.frames == "all":
                image = opened.copy()  # the next frame may be laid over this one
        if image.mode not in _MODES:
            raise UnreadableImageError(f"has pixels of mode {image.mode}, which are not read")
        is_gray = image.mode in ("1", "L", "LA", "La")
        image, said = _flatten(image, opened, how)
        if opened.format == "TIFF":
            width, height = image.size  # Pillow has turned it
        turn, said_of_turn = turn_of(opened)
        if turn is not None:
            image = image.transpose(turn)
            if turn in _SIDEWAYS:
                width, height = height, width
        notes += said + said_of_turn
        stored = Stored(kind, width, height, bits, frames, quality, notes=notes, highest=highest)
        if is_gray and image.mode == "L":
            return Decoded(image, (1,) if marks_gray else (1, 3), stored)
        if not marks_gray and _channels_are_equal(image):
            return Decoded(image.convert("L"), (1, 3), stored)
        return Decoded(image, (3,), stored)


def _flatten(image: Image.Image, opened: Image.Image, how: Decoding) -> tuple[Image.Image, tuple[str, ...]]:
    """Return an image in mode L or RGB, without transparency, and what was decided."""
    plain = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    bands = getattr(opened, "tag_v2", {}).get(277, 0) if opened.format == "TIFF" else 0
    own = {"L": 1, "RGB": 3, "RGBX": 3}.get(image.mode, bands)
    more = (f"first {own} of {bands} bands",) if bands > own else ()
    if not image.has_transparency_data:
        return _converted(image, plain), more
    if image.mode not in ("LA", "RGBA"):
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    alpha = image.getchannel("A")
    lowest, highest = map(int, np.array(alpha.getextrema()))
    if lowest == 255:
        return _converted(image, plain), more
    if highest == 0 and opened.format == "BMP":
        # Of 32 bits per pixel, 8 are often left unused.
        return _converted(image, plain), ("empty opacity ignored",)
    if how.background == "ignore":
        return _converted(image, plain), ("transparency ignored",)
    if highest == 0:
        raise UnreadableImageError("is wholly transparent; --background ignore reads its colours")
    if opened.format == "TIFF" and _is_a_band(alpha):
        return _converted(image, plain), (f"first 3 of {max(bands, 4)} bands",)
    del alpha
    red, green, blue = how.colour()
    if plain == "L" and not red == green == blue:
        plain = "RGB"
    rgba = _converted(image, "RGBA")
    step = max(1, _STRIP_PIXELS // rgba.width)
    for top in range(0, rgba.height, step):
        # In place, strip by strip: three copies of a whole image would take more memory than all else.
        strip = rgba.crop((0, top, rgba.width, min(top + step, rgba.height)))
        ground = Image.new("RGBA", strip.size, (red, green, blue, 255))
        rgba.paste(Image.alpha_composite(ground, strip), (0, top))
    flat = _converted(rgba, plain)
    if lowest < highest and _is_blank(flat):
        raise UnreadableImageError(
            f"shows nothing when it is laid over {how.background}; give another --background, or ignore to read its colours"
        )
    return flat, (f"transparent: laid over {how.background}",)


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """Return an image in a mode, itself where it is in it: `convert` would copy it."""
    return image if image.mode == mode and "transparency" not in image.info else image.convert(mode)


def _is_blank(image: Image.Image) -> bool:
    """Whether all pixels of an image in mode L or RGB are equal."""
    extremes = np.array(image.getextrema()).reshape(-1, 2)
    return bool((extremes[:, 0] == extremes[:, 1]).all())


def _is_a_band(alpha: Image.Image) -> bool:
    """Whether a fourth band called opacity is a picture itself, such as near infrared: few of its pixels are 0 or 255."""
    histogram = alpha.histogram()
    return 2 * (histogram[0] + histogram[255]) < sum(histogram)


def _channels_are_equal(image: Image.Image) -> bool:
    step = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, step):
        whole = step >= image.height
        strip = np.asarray(image if whole else image.crop((0, top, image.width, min(top + step, image.height))))
        if not (strip == strip[..., :1]).all():
            return False
    return True


def turn_of(opened: Image.Image) -> tuple[Image.Transpose | None, tuple[str, ...]]:
    """Return how EXIF says that an image is to be turned, and what to say of it."""
    if len(opened.info.get("exif", b"")) > _MAX_EXIF_BYTES:
        return None, ("EXIF data of unusual size not read",)
    try:
        return _TURNS.get(int(opened.getexif().get(0x0112, 1))), ()
    except Exception:  # of any type, from data that need not be there
        return None, ()


def _format(opened: Image.Image, raw: bytes) -> str:
    """Return the format of what holds the pixels: that of a file may hold them without or with loss."""
    if opened.format == "TIFF":
        compression = str(opened.info.get("compression", ""))
        return {"jpeg": "JPEG", "tiff_jpeg": "JPEG", "webp": "WEBP"}.get(compression, "TIFF")
    if opened.format == "WEBP" and is_lossless_webp(raw):
        return "lossless WEBP"
    return "JPEG" if opened.format == "MPO" else opened.format or ""


def _quantization(opened: Image.Image) -> dict[int, list[int]]:
    """Return the tables of a JPEG file or of the JPEG pictures in a TIFF file; none where they are not known."""
    if opened.format != "TIFF":
        return getattr(opened, "quantization", {})
    try:
        tables = bytes(getattr(opened, "tag_v2", {})[347])
        # A picture of 8 x 8 pixels, without the pixels.
        rest = bytes.fromhex("ffc0000b080008000801011100ffda0008010100003f00")
        return getattr(Image.open(io.BytesIO(tables[:-2] + rest), formats=["JPEG"]), "quantization", {})
    except Exception:  # of any type, from data that need not be there
        return {}


@contextmanager
def own_limits() -> Iterator[None]:
    """Leave it to `max_pixels` which images are too large, and keep Pillow's warnings of damaged metadata to ourselves."""
    before, logged = Image.MAX_IMAGE_PIXELS, _TIFF_LOG.disabled
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.MAX_IMAGE_PIXELS, _TIFF_LOG.disabled = None, True
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS, _TIFF_LOG.disabled = before, logged


@contextmanager
def quiet_stderr(opened: Image.Image) -> Iterator[None]:
    """Keep what libtiff writes of damaged files from the terminal: it goes around Python."""
    tiles = getattr(opened, "tile", ())
    if not tiles or tiles[0][0] != "libtiff":
        yield
        return
    try:
        kept = os.dup(2)
    except OSError:  # there is no standard error
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def reason_unreadable(error: Exception) -> str:
    """Say in plain words why an image cannot be read: the same words in every run."""
    text = reason_of(error)
    if isinstance(error, UnreadableImageError):
        return text
    if isinstance(error, MemoryError):
        return "needs more memory than there is"
    if isinstance(error, Image.DecompressionBombError):
        return "has more pixels than are decoded; --max-pixels raises the limit"
    if isinstance(error, EOFError) or re.search("truncated|not enough image data|reached eof", text.lower()):
        return "is cut off: its pixels end early"
    if text.lower().startswith("unsupported"):
        return f"is not read: {text}"
    # What else Pillow and Python say of broken bytes means nothing to who does not know their insides.
    return "is damaged: its pixels cannot be decoded"


def with_channels(decoded: Decoded, channels: int | None, convert: bool) -> Image.Image:
    """Return the image with `channels` channels, or refuse."""
    image, kinds, _ = decoded
    if channels is None:
        return image
    if channels not in kinds and not convert:
        raise ValueError(
            f"the image has {counted(kinds[0], 'channel')}, the model takes {channels}; --convert brings it there"
        )
    return _converted(image, "RGB" if channels == 3 else "L")


def to_array(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Return the pixels, uint8, shape `(channels, height, width)`."""
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
