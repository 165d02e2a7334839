"""Masks from pictures: which pixels of an image are missing, however the picture says so.

A mask marks pixels: by white on black, by the brighter of two values (0 and 1 of a label file), by a colour on black, or by
what is drawn on transparent ground, in 1, 8 or 16 bits, gray, colour or palette. Marked pixels are the missing ones unless
the user says otherwise. A picture that could mean several things is refused.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from denoising_ebm.datasets.decode import FORMATS, Stored
from denoising_ebm.datasets.preprocessing import Preprocessing
from denoising_ebm.datasets.shape import fit_shape
from denoising_ebm.literals import MaskMarks
from denoising_ebm.utils.io import read_regular_file
from denoising_ebm.utils.text import reason_of

#: Bytes of the largest file and pixels of the largest picture that are read as a mask.
_MOST_BYTES, _MOST_PIXELS = 2**27, 2**25

#: Levels of 255 between the two values of a mask of more than two, at least: what is closer is noise or labels.
_LEAST_RANGE = 16.0
#: Pixels that are nearer to the middle between both values than to either are soft edges, up to this share.
_MOST_SOFT = 0.2
#: Colours further than this from the line between the darkest and the brightest are further colours. A drawing has few;
#: where there are more than so many, JPEG has smeared the edges, and this share of pixels may lie beside the line.
_OFF_LINE, _FEW, _MOST_OFF_LINE = 64.0, 16, 0.1
#: Share of a missing pixel in one that resizing makes, from which on it is missing too.
_TOUCHED = 0.01


@dataclass(frozen=True, eq=False)
class Mask:
    """A picture read as a mask.

    Attributes:
        path: Its file.
        marked: bool, shape `(height, width)`.
        soft: Share of pixels that lie between both values, taken for the nearer one.
    """

    path: Path
    marked: npt.NDArray[np.bool_]
    soft: float = 0.0


def read_mask(path: Path) -> Mask:
    """Read which pixels a picture marks.

    Raises:
        OSError: If there is no such file.
        ValueError: If it cannot be read, or it is not clear what it marks. The message is a line that names the file.
    """
    raw = read_regular_file(path, _MOST_BYTES)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(io.BytesIO(raw), formats=FORMATS)
        if opened.width * opened.height > _MOST_PIXELS:
            raise ValueError(f"is {opened.width}x{opened.height}, too large for a mask")
        frames = getattr(opened, "n_frames", 1)
        opened.load()
        picture = ImageOps.exif_transpose(opened)
    except MemoryError:
        raise
    except UnidentifiedImageError:
        raise ValueError(f"{path}: cannot identify the format (read are {', '.join(FORMATS)})") from None
    except Exception as error:  # Pillow's readers raise almost any type on damaged files
        raise ValueError(f"{path}: unreadable mask: {reason_of(error)}") from None
    if frames > 1:
        raise ValueError(f"{path}: holds {frames} frames; a mask has one")
    try:
        marked, soft = _marked(picture)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return Mask(path, marked, soft)


_WANTED = "a mask has two: white marks the missing pixels, black the known ones"


def _marked(picture: Image.Image) -> tuple[npt.NDArray[np.bool_], float]:
    """Return which pixels are marked, and the share of those that are near to neither value."""
    plain = picture.mode in ("1", "L") and not picture.has_transparency_data
    if plain or picture.mode.startswith(("I", "F")):
        levels = np.asarray(picture)
        if not np.isfinite(levels).all():
            raise ValueError("holds values that are not finite")
        values, places, counts = np.unique(levels, return_inverse=True, return_counts=True)
        values = values.astype(np.float64)
        most = float(np.abs(values).max())
        if most > 255 or (picture.mode == "F" and 0 < most <= 1):
            values = values / most * 255
        return _spread(_nearer(values[:, None], counts), places, counts, levels.shape)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        pixels = np.asarray(picture)
        alpha = pixels[..., 3]
        if alpha.min() < alpha.max():
            visible = pixels[alpha > 0]
            if int((visible[:, :3].max(0).astype(int) - visible[:, :3].min(0)).max()) > 8:
                raise ValueError(
                    "is transparent and drawn in several colours, so that it is not clear which pixels it marks; make it "
                    "black and white, without transparency"
                )
            values, places, counts = np.unique(alpha, return_inverse=True, return_counts=True)
            return _spread(values / 255, places, counts, alpha.shape)
    pixels = np.asarray(picture.convert("RGB")).astype(np.int32)
    codes = pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]
    values, places, counts = np.unique(codes, return_inverse=True, return_counts=True)
    colours = np.stack([values >> 16, values >> 8 & 255, values & 255], axis=1).astype(np.float64)
    return _spread(_nearer(colours, counts), places, counts, codes.shape)


def _nearer(colours: npt.NDArray[np.float64], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return where colours of 0 to 255, shape `(n, channels)`, lie between the darkest, 0, and the brightest, 1.

    Raises:
        ValueError: If they are more than two, or too near to each other.
    """
    if len(colours) == 1:
        return np.full(1, float(colours.any()))
    brightness = colours @ ([0.299, 0.587, 0.114] if colours.shape[1] == 3 else [1.0])
    dark, bright = colours[brightness.argmin()], colours[brightness.argmax()]
    if len(colours) == 2 and brightness[0] == brightness[1]:
        dark, bright = colours
    length = float(np.linalg.norm(bright - dark))
    along: npt.NDArray[np.float64] = (colours - dark) @ (bright - dark) / max(length, 1e-300) ** 2
    if len(colours) > 2:
        off = np.linalg.norm(colours - dark - along[:, None] * (bright - dark), axis=1) > _OFF_LINE
        most = 0.0 if len(colours) <= _FEW else _MOST_OFF_LINE
        if not length or float(counts[off].sum() / counts.sum()) > most:
            raise ValueError(f"holds more than two colours; {_WANTED}")
        low, high = float(brightness.min()), float(brightness.max())
        if length < _LEAST_RANGE:
            raise ValueError(f"holds {len(colours)} values between {low:g} and {high:g} of 255; {_WANTED}")
        if high - low >= _LEAST_RANGE:
            along = (brightness - low) / (high - low)  # JPEG smears colour, not brightness
    return along


def _spread(
    along: npt.NDArray[np.float64], places: npt.NDArray[np.intp], counts: npt.NDArray[np.int64], shape: tuple[int, ...]
) -> tuple[npt.NDArray[np.bool_], float]:
    """Return which pixels have values nearer to 1 than to 0, and the share of those that are near to neither."""
    soft = float(counts[(along > 0.25) & (along < 0.75)].sum() / counts.sum())
    if soft > _MOST_SOFT:
        raise ValueError(f"{soft:.0%} of its pixels are neither black nor white; {_WANTED}")
    marked: npt.NDArray[np.bool_] = (along >= 0.5)[places].reshape(shape)
    return marked, soft


def missing_pixels(
    mask: Mask, preparation: Preprocessing, stored: Stored | None = None, *, marks: MaskMarks | None = None
) -> Tensor:
    """Return which pixels of an image are missing, after it was cropped and resized: the mask goes the same way.

    A pixel that a missing one has a share in is missing too.

    Args:
        mask: Of the image as stored; with `resize` also another of its shape; or of the size that images are given to the
            model.
        preparation: What makes images of files.
        stored: Of the image; of the size that the model takes if None.
        marks: What marked pixels are. None for missing, and no more than half of all.

    Returns:
        bool, shape `(size, size)`.

    Raises:
        ValueError: If the mask's size does not fit, or all, none or, unasked, more than half of the pixels are missing.
    """
    size = preparation.image_size
    marked = mask.marked if marks != "known" else ~mask.marked
    height, width = marked.shape
    whole = (size, size) if stored is None else (stored.width, stored.height)
    if (width, height) == (size, size) and (whole != (size, size) or preparation.center_crop is None):
        missing = marked  # made for the images as the model takes them
    else:
        picture = Image.fromarray(marked.astype(np.float32))
        if (width, height) != whole:
            images = f"{whole[0]}x{whole[1]}" + ("" if whole == (size, size) else f" and made {size}x{size}")
            differ = f"{mask.path}: the mask is {width}x{height}, the images are {images}"
            if width * whole[1] != height * whole[0]:
                raise ValueError(differ)
            if preparation.resize is None:
                raise ValueError(f"{differ}; --resize brings it there")
            picture = _touched(picture.resize(whole, Image.Resampling.BOX))
        # Borders that --aspect pad adds are known.
        border, how = (0, 0, 0), (preparation.resize, preparation.center_crop, preparation.aspect)
        fitted = fit_shape(picture, size, *how, border)
        missing = np.asarray(_touched(fitted.image)) > 0
    share = float(missing.mean())
    if share in (0.0, 1.0):
        part = "" if mask.marked.mean() in (0.0, 1.0) else " of the part that is seen"
        raise ValueError(
            f"{mask.path}: the mask must mark some pixels as missing and leave some known; {100 * share:.0f} % of the "
            f"pixels{part} would be filled in"
        )
    if share > 0.5 and marks is None:
        raise ValueError(
            f"{mask.path}: {100 * share:.0f} % of the pixels would be filled in; give --mask-marks known if white (or what "
            "is drawn) marks the known ones, or --mask-marks missing if this is meant"
        )
    return torch.from_numpy(missing.copy())


def _touched(picture: Image.Image) -> Image.Image:
    return Image.fromarray((np.abs(np.asarray(picture)) > _TOUCHED).astype(np.float32))
