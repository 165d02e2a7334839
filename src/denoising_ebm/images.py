"""Images from any source, decoded once to uint8 `(n, channels, height, width)`; nothing unreadable passes silently."""

from __future__ import annotations

import hashlib
import io
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

from denoising_ebm.sources import Entry, open_source, read_bytes

RESIZE = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}
"""Antialiasing filters by name."""

# A closed list, since Pillow would start Ghostscript for a file which claims to be PostScript.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF")


class Unreadable(NamedTuple):
    """An image that was left out: damaged, or with `skip_unfit` of a size or channel count that does not fit."""

    name: str
    reason: str
    place: int = 0  #: Number of images of the set before it.


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Decoded images of one size.

    Attributes:
        pixels: uint8, shape `(n, channels, height, width)`, 0..255.
        names: For each image its path relative to the source, or `file.parquet#row`.
        unreadable: The images that were left out, in order.
        labels: Class of each image, None where the source does not say it: column `label`, `labels` or `fine_label`, or
            the folder of an image file. Nothing learns from them; they serve to measure.
    """

    pixels: Tensor
    names: tuple[str, ...]
    unreadable: tuple[Unreadable, ...] = ()
    labels: tuple[str | None, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", self.labels or (None,) * len(self.names))
        if len(self.labels) != len(self.names):
            raise ValueError(f"labels must be as many as names, got {len(self.labels)} and {len(self.names)}")
        if self.pixels.dtype != torch.uint8 or self.pixels.ndim != 4 or len(self.pixels) != len(self.names):
            got = f"{self.pixels.dtype} {tuple(self.pixels.shape)} and {len(self.names)} names"
            raise ValueError(f"pixels must be uint8 (n, c, h, w) with n names, got {got}")

    def __len__(self) -> int:
        return len(self.names)

    def take(self, indices: Sequence[int] | Tensor) -> ImageSet:
        """Return the images at `indices`, in that order; `unreadable` stays with the whole set."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        places = chosen.tolist()
        names, labels = tuple(self.names[i] for i in places), tuple(self.labels[i] for i in places)
        return ImageSet(self.pixels[chosen], names, labels=labels)


def png_name(name: str) -> str:
    """Return the relative path of a picture made of the image `name` of an `ImageSet`: a `.png` is kept, `#` becomes `-`."""
    plain = name.replace("#", "-").lstrip("/")
    return plain if plain.lower().endswith(".png") else f"{plain}.png"


def check_png_names(names: Sequence[str]) -> None:
    """Refuse images of which one's picture would take the place of another's (`a.jpg` beside `a.jpg.png`).

    Raises:
        ValueError: If there are such.
    """
    found: dict[str, str] = {}
    for name in names:
        other = found.setdefault(png_name(name), name)
        if other != name:
            raise ValueError(f"{other} and {name} would both have their picture in {png_name(name)}; rename one")


def to_float(pixels: Tensor) -> Tensor:
    """Map uint8 0..255 to float32 in [-1, 1]: `x / 127.5 - 1`."""
    return pixels.to(torch.float32) / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """Map [-1, 1] to uint8 0..255, clamped and rounded; the inverse of `to_float`."""
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def content_hash(pixels: Tensor, purpose: str = "") -> str:
    """Return a hash of pixels, their shape and order, and of `purpose`: 32 hexadecimal digits."""
    digest = hashlib.sha256(f"{purpose}\n{pixels.dtype}{tuple(pixels.shape)}\n".encode())
    digest.update(pixels.contiguous().cpu().numpy().data)
    return digest.hexdigest()[:32]


def image_hashes(pixels: Tensor) -> Tensor:
    """Return a 64-bit hash of every image, int64, shape `(n,)`: equal for equal images."""
    rows = pixels.contiguous().cpu().numpy()
    hashes = [int.from_bytes(hashlib.blake2b(row.data, digest_size=8).digest(), "big", signed=True) for row in rows]
    return torch.tensor(hashes, dtype=torch.int64)


def load_images(
    source: str | Path,
    *,
    split: str = "train",
    image_size: int | None = None,
    channels: int | None = None,
    resize: str | None = None,
    center_crop: int | None = None,
    limit: int | None = None,
    convert: bool = False,
    strict: bool = False,
    skip_unfit: bool = False,
    progress: bool = True,
) -> ImageSet:
    """Load square images of one size from any source.

    16-bit gray keeps its high byte (12-bit pixels must be scaled up before), transparent images are laid over black, EXIF
    rotation is applied and animations give their first frame. WebP and palette files cannot be marked as gray: where their
    three channels are equal they count as gray or as RGB, whichever is asked for.

    Args:
        source: A name in `BUNDLED`, a folder of image files (searched recursively, sorted), a folder of Parquet files
            or one such file (column `image`, as on the Hugging Face Hub), one image file, or a Hub id `owner/name`.
        split: Which part, where the source has parts: files `train.parquet`, `train-*.parquet` or a subfolder `train/`;
            `all` for everything in a folder or of the Hub.
        image_size: Expected height and width in pixels; those of the first image if None.
        channels: Expected channels, 1 or 3; if None, 1 where all images are gray and else 3.
        resize: Filter in `RESIZE` that brings the central square of other sizes to `image_size`, with antialiasing.
        center_crop: Side in pixels of the central square that is cut out before anything else (CelebA: 140); images that
            are smaller but have `image_size` already stay as they are.
        limit: Stop after this many images.
        convert: Bring gray images to three channels where `channels` is 3, and colour to gray (ITU-R 601) where it is 1.
        strict: Raise at the first unreadable image; otherwise skip it and list it in `unreadable`.
        skip_unfit: Treat images of another size or channel count like unreadable ones, and return an empty set where none
            is left; needs `image_size` and `channels`.
        progress: Show progress on a terminal.

    Returns:
        The images; pixels are uint8 `(n, channels, size, size)`.

    Raises:
        FileNotFoundError: If the source or the split does not exist or holds no images.
        ValueError: If an argument is out of range or `skip_unfit` lacks what to fit to; if an image has another size
            (without `resize`) or channel count (without `convert`) than expected, or no image can be read (both without
            `skip_unfit`); with `strict` at any unreadable image.
    """
    _check_arguments(image_size, channels, resize, center_crop, limit)
    if skip_unfit and (image_size is None or channels is None):
        raise ValueError("skip_unfit needs an image_size and channels to fit")
    root, entries, count = open_source(source, split, limit is not None)
    if progress and sys.stderr.isatty() and (count is None or min(count, limit or count) > 2000):
        entries = _with_progress(entries, count if limit is None else limit)

    arrays: list[npt.NDArray[np.uint8]] = []
    names: list[str] = []
    labels: list[str | None] = []
    unreadable: list[Unreadable] = []
    for (name, _, label), decoded, reason in _decoded(root, entries):
        image: Image.Image | None = None
        if decoded is not None:
            try:
                image = _shape(_with_channels(decoded, channels, convert), image_size, resize, center_crop)
            except ValueError as error:
                reason = str(error)
                if strict or not skip_unfit:
                    raise ValueError(f"{root}/{name}: {reason}") from None
        elif strict:
            raise ValueError(f"{root}/{name}: unreadable image: {reason}")
        if image is None:
            unreadable.append(Unreadable(name, reason, len(names)))
            continue
        if arrays and image.width != arrays[0].shape[-1]:
            first = arrays[0].shape[-1]
            raise ValueError(
                f"{root}: sizes differ: {names[0]} is {first}x{first}, {name} is {image.width}x{image.height}; "
                "give the image size and --resize to bring all to one size"
            )
        arrays.append(_array(image))
        names.append(name)
        labels.append(label)
        if len(arrays) == limit:
            break

    if not arrays:
        if unreadable and skip_unfit:
            assert image_size is not None and channels is not None
            empty = torch.empty((0, channels, image_size, image_size), dtype=torch.uint8)
            return ImageSet(empty, (), tuple(unreadable))
        if unreadable:
            first = unreadable[0]
            raise ValueError(f"{source}: none of {len(unreadable)} images can be read; {first.name}: {first.reason}")
        raise FileNotFoundError(f"{source}: holds no images")
    most = max(len(array) for array in arrays)
    pixels = np.stack([np.broadcast_to(array, (most, *array.shape[1:])) for array in arrays])
    return ImageSet(torch.from_numpy(pixels), tuple(names), tuple(unreadable), tuple(labels))


def each_image(
    source: str | Path,
    *,
    split: str = "train",
    channels: int | None = None,
    limit: int | None = None,
    convert: bool = False,
) -> Iterator[tuple[str, Tensor]]:
    """Yield name and pixels of the readable images of a source, one by one, each of its own size.

    Args:
        source: As for `load_images`.
        split: Part of the source.
        channels: Channels, 1 or 3, others being left out; each image's own if None.
        limit: Stop after this many images.
        convert: As for `load_images`.

    Yields:
        The name, and uint8 of shape `(channels, height, width)`.

    Raises:
        FileNotFoundError: If the source or the split does not exist.
    """
    root, entries, _ = open_source(source, split, limit is not None)

    def readable() -> Iterator[tuple[str, Tensor]]:
        for entry, decoded, _ in _decoded(root, entries):
            if decoded is None:
                continue
            try:
                image = _with_channels(decoded, channels, convert)
            except ValueError:
                continue
            yield entry.name, torch.from_numpy(_array(image).copy())

    yield from itertools.islice(readable(), limit)


def _check_arguments(
    image_size: int | None, channels: int | None, resize: str | None, center_crop: int | None, limit: int | None
) -> None:
    for field, value in (("image_size", image_size), ("center_crop", center_crop), ("limit", limit)):
        if value is not None and value < 1:
            raise ValueError(f"{field} must be >= 1, got {value}")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    if resize is not None and resize not in RESIZE:
        raise ValueError(f"resize must be one of {', '.join(RESIZE)}, got {resize!r}")
    if resize is not None and image_size is None:
        raise ValueError("resize needs an image_size to resize to")


class _Decoded(NamedTuple):
    image: Image.Image  #: In mode L or RGB.
    channels: tuple[int, ...]  #: The channel counts that it can stand for without conversion, its own first.


def _decoded(root: str, entries: Iterable[Entry]) -> Iterator[tuple[Entry, _Decoded | None, str]]:
    """Yield entry, image, and why there is none if so."""
    for entry in entries:
        try:
            yield entry, _decode(read_bytes(entry.value)), ""
        except MemoryError:
            raise
        except Exception as error:  # Pillow's readers raise almost any type on damaged files
            yield entry, None, str(error).partition("\n")[0] or type(error).__name__


def _with_channels(decoded: _Decoded, channels: int | None, convert: bool) -> Image.Image:
    """Return the image with `channels` channels, or refuse."""
    image, kinds = decoded
    if channels is None:
        return image
    if channels not in kinds and not convert:
        raise ValueError(f"the image has {kinds[0]} channel(s), the model takes {channels}; --convert brings it there")
    return image.convert("RGB" if channels == 3 else "L")


def _array(image: Image.Image) -> npt.NDArray[np.uint8]:
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _decode(raw: bytes) -> _Decoded:
    """Decode, over black where transparent and turned as EXIF says."""
    opened = Image.open(io.BytesIO(raw), formats=_FORMATS)
    format_has_gray = opened.format not in ("WEBP", "GIF") and opened.mode != "P"
    opened.load()
    image: Image.Image = ImageOps.exif_transpose(opened)
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
        return _Decoded(image.convert("L"), (1,) if format_has_gray else (1, 3))
    image = image.convert("RGB")
    if not format_has_gray:
        array = np.asarray(image)
        if (array == array[..., :1]).all():
            return _Decoded(image.convert("L"), (1, 3))
    return _Decoded(image, (3,))


def _shape(image: Image.Image, image_size: int | None, resize: str | None, center_crop: int | None) -> Image.Image:
    """Crop and resize to a square of `image_size`, or refuse."""
    size = f"{image.width}x{image.height}"
    if center_crop is not None:
        if min(image.size) < center_crop and image.size == (image_size, image_size):
            return image  # made already
        if min(image.size) < center_crop:
            raise ValueError(f"is {size}, smaller than the center crop of {center_crop}")
        image = _central_square(image, center_crop)
    if resize is not None and image_size is not None:
        if image.size == (image_size, image_size):
            return image
        return _central_square(image, min(image.size)).resize((image_size, image_size), RESIZE[resize])
    size = f"{image.width}x{image.height}"
    if image_size is not None and image.size != (image_size, image_size):
        raise ValueError(f"is {size}, expected {image_size}x{image_size}; --resize brings it there")
    if image.width != image.height:
        raise ValueError(f"is {size}, not square; give the image size and --resize to crop and resize it")
    return image


def _central_square(image: Image.Image, side: int) -> Image.Image:
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _with_progress(entries: Iterable[Entry], count: int | None) -> Iterator[Entry]:
    from rich.console import Console
    from rich.progress import track

    yield from track(entries, "decoding images", total=count, console=Console(stderr=True), transient=True)
