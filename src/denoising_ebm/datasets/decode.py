"""From encoded images to arrays of uint8: one image at a time, by Pillow."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from denoising_ebm.datasets.sources import Entry, read_bytes
from denoising_ebm.literals import Resize

RESIZE: dict[Resize, Image.Resampling] = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}
"""Antialiasing filters by name."""

# A closed list, since Pillow would start Ghostscript for a file which claims to be PostScript.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF")


class Stored(NamedTuple):
    """How an image was stored, and how much of it the pixels show."""

    format: str  #: PNG, JPEG, ...; empty where unknown.
    width: int  #: In pixels as stored, after the turn that EXIF asks for.
    height: int
    bits: int = 8  #: Per channel.
    frames: int = 1  #: In the file.
    quality: int | None = None  #: Of a JPEG, 1 to 100, estimated from its quantisation tables.
    seen: float = 1.0  #: Share of its area that the pixels show, 0 to 1.
    scale: float = (
        1.0  #: Pixels as stored for one that is given on, along a side: above 1 made smaller, below 1 enlarged.
    )
    notes: tuple[str, ...] = ()  #: Decisions that changed its meaning, in plain words: `frame 1 of 5`.


class Decoded(NamedTuple):
    """An image in its own size and channels."""

    image: Image.Image  #: In mode L or RGB.
    channels: tuple[int, ...]  #: The channel counts that it can stand for without conversion, its own first.
    stored: Stored


def decode(raw: bytes) -> Decoded:
    """Decode, over black where transparent and turned as EXIF says."""
    opened = Image.open(io.BytesIO(raw), formats=_FORMATS)
    format_has_gray = opened.format not in ("WEBP", "GIF") and opened.mode != "P"
    opened.load()
    image: Image.Image = ImageOps.exif_transpose(opened)
    bits = {"1": 1, "I": 16}.get(image.mode, 16 if image.mode.startswith("I;16") else 8)
    stored = Stored(opened.format or "", *image.size, bits=bits, frames=getattr(opened, "n_frames", 1))
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode == "I" and opened.format == "PPM":
        # Whatever the largest value in the file, Pillow brings it to 65535.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no known range; convert to 8 or 16 bits")
    gray = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    if gray:
        return Decoded(image.convert("L"), (1,) if format_has_gray else (1, 3), stored)
    image = image.convert("RGB")
    if not format_has_gray:
        array = np.asarray(image)
        if (array == array[..., :1]).all():
            return Decoded(image.convert("L"), (1, 3), stored)
    return Decoded(image, (3,), stored)


def decode_each(entries: Iterable[Entry]) -> Iterator[tuple[Entry, Decoded | None, str]]:
    """Yield entry, image, and why there is none if so."""
    for entry in entries:
        try:
            yield entry, decode(read_bytes(entry.value)), ""
        except MemoryError:
            raise
        except UnidentifiedImageError:
            yield entry, None, f"cannot identify the format (read are {', '.join(_FORMATS)})"
        except Exception as error:  # Pillow's readers raise almost any type on damaged files
            yield entry, None, str(error).partition("\n")[0] or type(error).__name__


def with_channels(decoded: Decoded, channels: int | None, convert: bool) -> Image.Image:
    """Return the image with `channels` channels, or refuse."""
    image, kinds, _ = decoded
    if channels is None:
        return image
    if channels not in kinds and not convert:
        raise ValueError(f"the image has {kinds[0]} channel(s), the model takes {channels}; --convert brings it there")
    return image.convert("RGB" if channels == 3 else "L")


def to_array(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Return the pixels, uint8, shape `(channels, height, width)`."""
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


class Fitted(NamedTuple):
    """A square image, and how it came from the stored one."""

    image: Image.Image
    seen: float  #: Share of the area that is left.
    scale: float  #: Pixels before for one of now, along a side.


def fit_shape(image: Image.Image, image_size: int | None, resize: Resize | None, center_crop: int | None) -> Fitted:
    """Crop and resize to a square of `image_size`, or refuse."""
    size = f"{image.width}x{image.height}"
    area = image.width * image.height
    if center_crop is not None:
        if min(image.size) < center_crop and image.size == (image_size, image_size):
            return Fitted(image, 1.0, 1.0)  # made already
        if min(image.size) < center_crop:
            raise ValueError(f"is {size}, smaller than the center crop of {center_crop}")
        image = _central_square(image, center_crop)
    if resize is not None and image_size is not None and image.size != (image_size, image_size):
        side = min(image.size)
        square = _central_square(image, side).resize((image_size, image_size), RESIZE[resize])
        return Fitted(square, side**2 / area, side / image_size)
    size = f"{image.width}x{image.height}"
    if image_size is not None and image.size != (image_size, image_size):
        raise ValueError(f"is {size}, expected {image_size}x{image_size}; --resize brings it there")
    if image.width != image.height:
        raise ValueError(f"is {size}, not square; give the image size and --resize to crop and resize it")
    return Fitted(image, image.width**2 / area, 1.0)


def _central_square(image: Image.Image, side: int) -> Image.Image:
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
