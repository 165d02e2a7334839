"""Images from any source, decoded once to uint8 `(n, channels, height, width)`; nothing unreadable passes silently."""

from __future__ import annotations

import glob
import io
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

BUNDLED = {"fashion-mnist": ("train", "test"), "digits": ("test",)}
"""Names and splits of the real images inside the package (32x32 gray)."""

RESIZE = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}
"""Antialiasing filters by name."""

_DATA = Path(__file__).parent / "data"
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff"}
# A closed list, since Pillow would start Ghostscript for a file which claims to be PostScript.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
_SPLITS = {"train", "test", "validation", "valid", "val", "dev", "extra"}

_Entry = tuple[str, Any]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Decoded images of one size.

    Attributes:
        pixels: uint8, shape `(n, channels, height, width)`, 0..255.
        names: For each image its path relative to the source, or `file.parquet#row`.
        unreadable: `(name, reason)` of the images that were left out.
    """

    pixels: Tensor
    names: tuple[str, ...]
    unreadable: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.pixels.dtype != torch.uint8 or self.pixels.ndim != 4 or len(self.pixels) != len(self.names):
            got = f"{self.pixels.dtype} {tuple(self.pixels.shape)} and {len(self.names)} names"
            raise ValueError(f"pixels must be uint8 (n, c, h, w) with n names, got {got}")

    def __len__(self) -> int:
        return len(self.names)

    def take(self, indices: Sequence[int] | Tensor) -> ImageSet:
        """Return the images at `indices`, in that order; `unreadable` stays with the whole set."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return ImageSet(self.pixels[chosen], tuple(self.names[i] for i in chosen.tolist()))


def to_float(pixels: Tensor) -> Tensor:
    """Map uint8 0..255 to float32 in [-1, 1]: `x / 127.5 - 1`."""
    return pixels.to(torch.float32) / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """Map [-1, 1] to uint8 0..255, clamped and rounded; the inverse of `to_float`."""
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def load_images(
    source: str | Path,
    *,
    split: str = "train",
    image_size: int | None = None,
    channels: int | None = None,
    resize: str | None = None,
    center_crop: int | None = None,
    limit: int | None = None,
    strict: bool = False,
    progress: bool = True,
) -> ImageSet:
    """Load square images of one size from any source.

    16-bit gray keeps its high byte, transparent images are laid over black, EXIF rotation is applied and animations
    give their first frame. WebP and palette files cannot be marked as gray: where their three channels are equal they
    count as gray or as RGB, whichever is asked for.

    Args:
        source: A name in `BUNDLED`, a folder of image files (searched recursively, sorted), a folder of Parquet files
            or one such file (column `image`, as on the Hugging Face Hub), one image file, or a Hub id `owner/name`.
        split: Which part, where the source has parts: files `train.parquet`, `train-*.parquet` or a subfolder `train/`.
        image_size: Expected height and width in pixels; those of the first image if None.
        channels: Expected channels, 1 or 3; if None, 1 where all images are gray and else 3.
        resize: Filter in `RESIZE` that brings the central square of other sizes to `image_size`, with antialiasing.
        center_crop: Side in pixels of the central square that is cut out before anything else (CelebA: 140).
        limit: Stop after this many images.
        strict: Raise at the first unreadable image; otherwise skip it and list it in `unreadable`.
        progress: Show progress on a terminal.

    Returns:
        The images; pixels are uint8 `(n, channels, size, size)`.

    Raises:
        FileNotFoundError: If the source or the split does not exist or holds no images.
        ValueError: If an argument is out of range, an image has another size or channel count than expected (without
            `resize`), or no image can be read; with `strict` at any unreadable image.
    """
    _check_arguments(image_size, channels, resize, center_crop, limit)
    root, entries, count = _open_source(source, split, limit is not None)
    if progress and sys.stderr.isatty() and (count is None or min(count, limit or count) > 2000):
        entries = _with_progress(entries, count if limit is None else limit)

    arrays: list[npt.NDArray[np.uint8]] = []
    names: list[str] = []
    unreadable: list[tuple[str, str]] = []
    for name, value in entries:
        try:
            image, kinds = _decode(_read(value))
        except MemoryError:
            raise
        except Exception as error:  # Pillow's readers raise almost any type on damaged files
            reason = str(error).partition("\n")[0] or type(error).__name__
            if strict:
                raise ValueError(f"{root}/{name}: unreadable image: {reason}") from error
            unreadable.append((name, reason))
            continue
        if channels is not None and channels not in kinds:
            raise ValueError(f"{root}/{name}: the image has {kinds[0]} channel(s), the model takes {channels}")
        try:
            image = _shape(image, image_size, resize, center_crop)
        except ValueError as error:
            raise ValueError(f"{root}/{name}: {error}") from None
        if arrays and image.width != arrays[0].shape[-1]:
            first = arrays[0].shape[-1]
            raise ValueError(
                f"{root}: sizes differ: {names[0]} is {first}x{first}, {name} is {image.width}x{image.height}; "
                "give the image size and --resize to bring all to one size"
            )
        if channels == 3:
            image = image.convert("RGB")
        array = np.asarray(image)
        arrays.append(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))
        names.append(name)
        if len(arrays) == limit:
            break

    if not arrays:
        if unreadable:
            name, reason = unreadable[0]
            raise ValueError(f"{source}: none of {len(unreadable)} images can be read; {name}: {reason}")
        raise FileNotFoundError(f"{source}: holds no images")
    most = max(len(array) for array in arrays)
    pixels = np.stack([np.broadcast_to(array, (most, *array.shape[1:])) for array in arrays])
    return ImageSet(torch.from_numpy(pixels), tuple(names), tuple(unreadable))


def interpolations(pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return for each image its mean with another one, drawn at random: an odd set made of the data itself.

    Halves are rounded to the even value, so the mean brightness is unbiased. Source: Du & Mordatch (2019), "Interp".

    Args:
        pixels: uint8 `(n, channels, height, width)`, n >= 2.
        generator: Source of the pairs; the global one if None.

    Returns:
        uint8, same shape.

    Raises:
        ValueError: If there are fewer than two images.
    """
    n = len(pixels)
    if n < 2:
        raise ValueError(f"interpolations need at least 2 images, got {n}")
    other = (torch.arange(n) + torch.randint(1, n, (n,), generator=generator)) % n
    return ((pixels.to(torch.float32) + pixels[other].to(torch.float32)) / 2).round().to(torch.uint8)


def upside_down(pixels: Tensor) -> Tensor:
    """Mirror each image of `(n, channels, height, width)` top to bottom."""
    return pixels.flip(-2)


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


def _open_source(source: str | Path, split: str, streaming: bool) -> tuple[str, Iterable[_Entry], int | None]:
    """Return the name to put before the names of images, the undecoded images, and their number where known."""
    if isinstance(source, str) and source in BUNDLED:
        if split not in BUNDLED[source]:
            raise FileNotFoundError(f"{source}: no split {split!r}, only {', '.join(BUNDLED[source])}")
        return _open_parquet(_DATA / source, [_DATA / source / f"{split}.parquet"])
    path = Path(source)
    if path.is_dir() and source != "":
        return _open_folder(path, split)
    if path.is_file() and path.suffix.lower() == ".parquet":
        return _open_parquet(path.parent, [path])
    if path.is_file():
        return str(path.parent), [(path.name, str(path))], 1
    looks_like_id = isinstance(source, str) and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source)
    if looks_like_id and path.suffix.lower() not in {*_SUFFIXES, ".parquet"}:
        return _open_hub(str(source), split, streaming)
    raise FileNotFoundError(
        f"{source}: no such file or folder, nor a bundled set ({', '.join(BUNDLED)}), nor a Hub id owner/name"
    )


def _open_folder(folder: Path, split: str) -> tuple[str, Iterable[_Entry], int | None]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = [path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    parquet = [path for path in files if path.suffix.lower() == ".parquet"]
    images = [path for path in files if path.suffix.lower() in _SUFFIXES]
    if parquet and images:
        raise ValueError(
            f"{folder}: holds both Parquet files ({parquet[0].name}) and images ({images[0].name}); name one"
        )
    if not parquet and not images:
        raise FileNotFoundError(f"{folder}: holds no images ({', '.join(sorted(_SUFFIXES))}) and no .parquet files")
    splits: dict[str, list[Path]] = {}
    for path in parquet or images:
        splits.setdefault(_split_of(path.relative_to(folder)), []).append(path)
    # Without a known name of a split the folder has no splits: one Parquet file of any name, or folders of classes.
    if split not in splits and not _SPLITS & splits.keys() and (images or len(parquet) == 1):
        splits[split] = parquet or images
    if split not in splits:
        found = ", ".join(sorted(splits.keys() - {""})) or "none"
        raise FileNotFoundError(f"{folder}: no split {split!r}; splits found: {found}")
    if parquet:
        return _open_parquet(folder, splits[split])
    entries = [(path.relative_to(folder).as_posix(), str(path)) for path in splits[split]]
    return str(folder), entries, len(entries)


def _split_of(path: Path) -> str:
    """Name the split of a file from its path in the source: `train/...`, or for Parquet `train-00000-of-00002`."""
    folders = [part for part in path.parts[:-1] if part in _SPLITS]
    if folders:
        return folders[0]
    return path.stem.partition("-")[0] if path.suffix.lower() == ".parquet" else ""


def _open_parquet(root: Path, files: list[Path]) -> tuple[str, Iterable[_Entry], int | None]:
    from datasets import load_dataset

    def entries() -> Iterator[_Entry]:
        for file in files:
            name = file.relative_to(root).as_posix()
            try:
                # Streamed: `datasets` would otherwise copy every file into its cache; here it only keeps a lock there.
                with tempfile.TemporaryDirectory() as cache, _quiet():
                    pattern = glob.escape(str(file))
                    rows = load_dataset("parquet", data_files=pattern, split="train", streaming=True, cache_dir=cache)
                for row, value in enumerate(_values(rows)):
                    yield f"{name}#{row}", value
            except Exception as error:  # pyarrow, fsspec and datasets have no common base
                reason = str(error).partition("\n")[0]
                raise ValueError(f"{file}: cannot be read as Parquet with images: {reason}") from error

    return str(root), entries(), None


def _open_hub(name: str, split: str, streaming: bool) -> tuple[str, Iterable[_Entry], int | None]:
    from datasets import load_dataset

    try:
        rows = load_dataset(name, split=split, streaming=streaming)
        values = _values(rows)
    except (OSError, ValueError) as error:
        kind = FileNotFoundError if isinstance(error, OSError) else ValueError
        reason = str(error).partition("\n")[0]
        raise kind(f"{name}: no such file or folder, and not loaded from the Hugging Face Hub: {reason}") from error
    return name, ((f"{split}#{row}", value) for row, value in enumerate(values)), None if streaming else len(rows)


def _values(rows: Any) -> Iterator[Any]:
    """Iterate over the undecoded images of a data set of `datasets`, read in Arrow batches."""
    from datasets import Image as ImageFeature

    features = rows.features or {}
    named = [column for column, feature in features.items() if isinstance(feature, ImageFeature)]
    if "image" not in features and len(named) != 1:
        raise ValueError(f"no column 'image' among {', '.join(features) or 'no columns'}")
    column = "image" if "image" in features else named[0]
    rows = rows.select_columns([column]).cast_column(column, ImageFeature(decode=False)).with_format("arrow")
    return (value for batch in rows.iter(batch_size=256) for value in batch[column].to_pylist())


@contextmanager
def _quiet() -> Iterator[None]:
    """Switch off the progress bars of `datasets`, and on again if they were on."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    were_disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_disabled:
            enable_progress_bars()


def _read(value: Any) -> bytes:
    """Return the encoded image from a path, bytes, or the `{bytes, path}` of the Hub."""
    if isinstance(value, dict):
        value = value["path"] if value["bytes"] is None else value["bytes"]
    if value is None:
        raise ValueError("the row is empty")
    if isinstance(value, bytes):
        return value
    if "://" not in value:
        return Path(value).read_bytes()
    import fsspec  # type: ignore[import-untyped]  # streamed image folders of the Hub

    with fsspec.open(value, "rb") as file:
        return bytes(file.read())


def _decode(raw: bytes) -> tuple[Image.Image, tuple[int, ...]]:
    """Decode to mode L or RGB; also return the channel counts that the image can stand for, L first."""
    opened = Image.open(io.BytesIO(raw), formats=_FORMATS)
    format_has_gray = opened.format not in ("WEBP", "GIF") and opened.mode != "P"
    opened.load()
    image: Image.Image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no known range; convert to 8 or 16 bits")
    gray = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    if gray:
        return image.convert("L"), (1,) if format_has_gray else (1, 3)
    image = image.convert("RGB")
    if not format_has_gray:
        array = np.asarray(image)
        if (array == array[..., :1]).all():
            return image.convert("L"), (1, 3)
    return image, (3,)


def _shape(image: Image.Image, image_size: int | None, resize: str | None, center_crop: int | None) -> Image.Image:
    """Crop and resize to a square of `image_size`, or refuse."""
    size = f"{image.width}x{image.height}"
    if center_crop is not None:
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


def _with_progress(entries: Iterable[_Entry], count: int | None) -> Iterator[_Entry]:
    from rich.console import Console
    from rich.progress import track

    yield from track(entries, "decoding images", total=count, console=Console(stderr=True), transient=True)
