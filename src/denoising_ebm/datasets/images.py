"""Images from any source, decoded once to uint8 `(n, channels, height, width)`; nothing unreadable passes silently."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from denoising_ebm.datasets.decode import (
    MAX_PIXELS,
    Decoded,
    Decoding,
    Stored,
    decode_each,
    frame_entries,
    to_array,
    with_channels,
)
from denoising_ebm.datasets.entries import Entry, draw
from denoising_ebm.datasets.levels import ValueRange
from denoising_ebm.datasets.remarks import Remarks, with_fit
from denoising_ebm.datasets.shape import RESIZE, fit_shape
from denoising_ebm.datasets.sources import Source, open_source
from denoising_ebm.literals import Aspect, Frames, Resize
from denoising_ebm.utils.progress import progress_bar
from denoising_ebm.utils.text import counted, stderr_is_terminal

_CHUNK_BYTES = 2**26
"""Pixels of a chunk, at least those of one image: 64 MiB."""


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
        stored: How each image was stored, None where unknown.
    """

    pixels: Tensor
    names: tuple[str, ...]
    unreadable: tuple[Unreadable, ...] = ()
    labels: tuple[str | None, ...] = ()
    stored: tuple[Stored | None, ...] = ()

    def __post_init__(self) -> None:
        for field_name in ("labels", "stored"):
            values = getattr(self, field_name) or (None,) * len(self.names)
            object.__setattr__(self, field_name, values)
            if len(values) != len(self.names):
                raise ValueError(f"{field_name} must be as many as names, got {len(values)} and {len(self.names)}")
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
        return ImageSet(self.pixels[chosen], names, labels=labels, stored=tuple(self.stored[i] for i in places))


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
    split: str | None = None,
    default_split: str = "train",
    normal_only: bool = False,
    image_size: int | None = None,
    channels: int | None = None,
    resize: Resize | None = None,
    center_crop: int | None = None,
    limit: int | None = None,
    sample: int | None = None,
    generator: torch.Generator | None = None,
    convert: bool = False,
    value_range: ValueRange | None = None,
    background: str = "white",
    frames: Frames = "first",
    aspect: Aspect | None = None,
    max_pixels: int = MAX_PIXELS,
    strict: bool = False,
    skip_unfit: bool = False,
    progress: bool = True,
) -> ImageSet:
    """Load square images of one size from any source.

    EXIF rotation is applied. WebP and palette files cannot be marked as gray: where their three channels are equal they
    count as gray or as RGB, whichever is asked for. What was decided of an image stands in its `Stored.notes`.

    Args:
        source: A name in `BUNDLED`, a folder of image files (searched recursively, sorted), a folder of Parquet files
            or one such file (column `image`, as on the Hugging Face Hub), one image file, or `hf://owner/name` for a
            data set of the Hub.
        split: Which part of the source, that it must have: files `train.parquet`, `train-*.parquet` or a subfolder
            `train/`; `all` for everything in a folder or of the Hub.
        default_split: Which part if `split` is None and the source has parts; one without parts is taken whole. Of `train`
            only the normal images are taken where folders say which those are (`good` beside `defective`).
        normal_only: So of other parts as well, but not of `all`.
        image_size: Expected height and width in pixels; those of the first image if None.
        channels: Expected channels, 1 or 3; if None, 1 where all images are gray and else 3.
        resize: Filter in `RESIZE` that brings the central square of other sizes to `image_size`, with antialiasing.
        center_crop: Side in pixels of the central square that is cut out before anything else (CelebA: 140); images that
            are smaller but have `image_size` already stay as they are.
        limit: Stop after this many images.
        sample: Draw this many of the images (of the first `limit`) at random, in the order of the draw, and decode no
            others but those that take the place of unreadable ones: up to a fiftieth more, and ten.
        generator: What `sample` draws by; torch's global one if None.
        convert: Bring gray images to three channels where `channels` is 3, and colour to gray (ITU-R 601) where it is 1.
        value_range: Levels that become black and white in files of more than 8 bits, such as `(0, 4095)`; they are
            linear in between. By default 16 bits keep their high byte, and files of 32 bits and of floating-point
            numbers are unreadable.
        background: Colour that partly transparent images are laid over: `white`, `black` or `#rrggbb`; `ignore` reads
            their colours as if they were opaque. Wholly transparent ones are unreadable but with `ignore`.
        frames: Of animations and files of several pages the `first` frame, or `all`, each an image `NAME#k`, from 0.
        aspect: How `resize` makes a square of an image that is none: its central square (`crop`), all of it squeezed
            (`stretch`) or with borders of `background` (`pad`). By default the central square where that is at least half
            of the image; others do not fit.
        max_pixels: Pixels of the largest image that is decoded; half as many of more than 8 bits and of several frames
            that are all read, and a quarter of WebP, which take more memory. Large JPEG files are decoded at a smaller
            scale where `resize` allows it.
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
    # Small chunks, since what is in one is held twice until it is copied.
    return stream_images(
        source,
        chunk=16,
        split=split,
        default_split=default_split,
        normal_only=normal_only,
        image_size=image_size,
        channels=channels,
        resize=resize,
        center_crop=center_crop,
        limit=limit,
        sample=sample,
        generator=generator,
        convert=convert,
        value_range=value_range,
        background=background,
        frames=frames,
        aspect=aspect,
        max_pixels=max_pixels,
        strict=strict,
        skip_unfit=skip_unfit,
        progress=progress,
    ).joined()


class ImageStream(Iterator[ImageSet]):
    """Chunks of images, of which one at a time is held.

    Attributes:
        source: What was opened.
        count: How many images are expected, unreadable ones among them; None where it is not known.
        taken: How many images came so far.
    """

    def __init__(self, reading: _Reading, chunk: int) -> None:
        self.source = reading.found
        self.count = reading.count
        self.taken = 0
        self._reading = reading
        self._remarks = Remarks(frames=reading.frames, value_range=reading.value_range, aspect=reading.aspect)
        self._labels: set[str | None] = set()
        self._num_unreadable = 0
        self._first_unreadable: Unreadable | None = None
        self._chunks = reading.chunks(chunk)

    def __next__(self) -> ImageSet:
        images = next(self._chunks)
        self.taken += len(images)
        self._remarks.add(images.stored)
        self._labels.update(images.labels)
        self._num_unreadable += len(images.unreadable)
        self._first_unreadable = self._first_unreadable or next(iter(images.unreadable), None)
        return images

    def joined(self) -> ImageSet:
        """Return all images that are still to come as one set."""
        pixels = _Pixels(self.count)
        names: list[str] = []
        labels: list[str | None] = []
        stored: list[Stored | None] = []
        unreadable: list[Unreadable] = []
        for images in self:
            unreadable += [lost._replace(place=lost.place + len(names)) for lost in images.unreadable]
            if len(images):
                pixels.extend(images.pixels.numpy())
            names += images.names
            labels += images.labels
            stored += images.stored
        if not names:
            return ImageSet(images.pixels, (), tuple(unreadable))
        return ImageSet(pixels.tensor(), tuple(names), tuple(unreadable), tuple(labels), tuple(stored))

    def originals(self) -> Iterator[tuple[str, Tensor]]:
        """Open the source anew; yield name and pixels of its images in the same order, each of its own size.

        Images that cannot be read or have other channels are left out, others of any size are not; no limit ends them.

        Yields:
            The name, and uint8 of shape `(channels, height, width)`.
        """
        return self._reading.again().originals()

    def left_out(self) -> list[str]:
        """Return a line on the images so far that were left out, if any were."""
        if self._first_unreadable is None:
            return []
        name, reason, _ = self._first_unreadable
        kind = "unreadable or unfit" if self._reading.skip_unfit else "unreadable"
        return [f"{counted(self._num_unreadable, f'{kind} image')} left out, first {name}: {reason}"]

    def remarks(self) -> list[str]:
        """Return what was decided on the images so far, a line for each kind of decision."""
        lines = self._remarks.lines()
        limit, classes = self._reading.limit, self._reading.classes
        if (
            self._reading.sample is None
            and limit is not None
            and self.taken
            and self.taken == limit != self.source.count
        ):
            found = len(self._labels)
            if classes is not None and found < classes:
                lines.append(f"the first {limit:,} are of {found:,} of {classes:,} classes; --sample draws from all")
            elif classes is None and self._labels != {None} and found == 1 and limit > 1:
                lines.append(
                    f"the first {limit:,} are all of class {self._labels.copy().pop()}; --sample draws from all"
                )
        return lines


def stream_images(source: str | Path, *, chunk: int = 1024, **options: Any) -> ImageStream:
    """Load the images of `load_images` in chunks, of which one at a time is held.

    Errors are those of `load_images`; that of an image comes with the chunk it would stand in. Where `channels` is None
    each chunk has its own: 1 where all of its images are gray.

    Args:
        source: As for `load_images`.
        chunk: Images in a chunk, but for the last one; fewer where images are large or that many are unreadable.
        options: All others of `load_images`.

    Returns:
        The sets of the images in order, each with those that were left out among them.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be >= 1, got {chunk}")
    return ImageStream(_Reading(source, **options), chunk)


@dataclass
class _Reading:
    """A source that is being read, by the arguments of `load_images`."""

    source: str | Path
    split: str | None = None
    default_split: str = "train"
    normal_only: bool = False
    image_size: int | None = None
    channels: int | None = None
    resize: Resize | None = None
    center_crop: int | None = None
    limit: int | None = None
    sample: int | None = None
    generator: torch.Generator | None = None
    convert: bool = False
    value_range: ValueRange | None = None
    background: str = "white"
    frames: Frames = "first"
    aspect: Aspect | None = None
    max_pixels: int = MAX_PIXELS
    strict: bool = False
    skip_unfit: bool = False
    progress: bool = True
    count: int | None = field(init=False)  #: Images that are expected.
    found: Source = field(init=False)  #: What was opened.
    classes: int | None = field(init=False)  #: In all of the source; None where it is not known.
    _decoding: Decoding = field(init=False)
    _root: str = field(init=False)
    _entries: Iterable[Entry] = field(init=False)
    _drawn_by: Tensor | None = field(init=False)  #: State of the generator before the draw.

    def __post_init__(self) -> None:
        self._drawn_by = None if self.generator is None else self.generator.get_state()
        _check_arguments(self.image_size, self.channels, self.resize, self.center_crop, self.limit, self.sample)
        if self.skip_unfit and (self.image_size is None or self.channels is None):
            raise ValueError("skip_unfit needs an image_size and channels to fit")
        if self.aspect is not None and self.aspect not in (aspects := get_args(Aspect)):
            raise ValueError(f"aspect must be one of {', '.join(aspects)}, got {self.aspect!r}")
        needed = self.image_size if self.resize is not None and self.center_crop is None else None
        self._decoding = Decoding(self.value_range, self.background, self.frames, self.max_pixels, needed)
        streaming = self.limit is not None
        self.found = open_source(
            self.source,
            self.split,
            default_split=self.default_split,
            normal_only=self.normal_only,
            streaming=streaming,
        )
        self._root, entries, count = self.found.root, self.found.entries, self.found.count
        is_listed = isinstance(entries, Sequence)
        self.classes = len({entry.label for entry in entries}) if is_listed and self.limit is not None else None
        if self.frames == "all" and self.sample is not None:
            # Frames are drawn, not files.
            entries = (frame for entry in entries for frame in frame_entries(entry))
        if self.frames == "all":
            count = None
        if self.sample is not None:
            entries, count = draw(entries, count, self.sample, self.limit, self.generator)
        elif self.limit is not None and count is not None:
            count = min(count, self.limit)
        if self.progress and stderr_is_terminal() and (count is None or count > 2000):
            entries = _with_progress(entries, self.limit if count is None else count)
        self._entries, self.count = entries, count

    def again(self) -> _Reading:
        """Return the same images, to be read once more."""
        generator = None if self._drawn_by is None else torch.Generator().set_state(self._drawn_by)
        return replace(self, generator=generator, progress=False)

    def originals(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the images that can be read, whole and in their own size."""
        # The size that is needed of a large JPEG is all of it here.
        for entry, decoded, _ in decode_each(self._entries, replace(self._decoding, needed=None)):
            if decoded is None:
                continue
            try:
                image = with_channels(decoded, self.channels, self.convert)
            except ValueError:
                continue
            yield entry.name, torch.from_numpy(to_array(image).copy())

    def _fitted(self, decoded: Decoded) -> tuple[npt.NDArray[np.uint8], Stored]:
        """Return the pixels of an image as they are asked for, and how it was stored."""
        image = with_channels(decoded, self.channels, self.convert)
        border = self._decoding.colour()
        fitted = fit_shape(image, self.image_size, self.resize, self.center_crop, self.aspect, border)
        # A large JPEG is decoded at a part of its size.
        scale = fitted.scale * max(decoded.stored.width, decoded.stored.height) / max(image.size)
        stored = with_fit(decoded.stored, seen=fitted.seen, scale=scale, center_crop=self.center_crop)
        return to_array(fitted.image), stored

    def chunks(self, size: int) -> Iterator[ImageSet]:
        """Yield sets of `size` images, fewer where as many are unreadable or pixels are more than `_CHUNK_BYTES`."""
        wanted = self.limit if self.sample is None else self.sample
        held = _Chunk(self.channels or 1, self.image_size or 0)
        num, first_name, first_lost, num_lost = 0, "", None, 0
        for (name, _, label), decoded, reason in decode_each(self._entries, self._decoding):
            image: npt.NDArray[np.uint8] | None = None
            if decoded is not None:
                try:
                    image, stored = self._fitted(decoded)
                except ValueError as error:
                    reason = str(error)
                    if self.strict or not self.skip_unfit:
                        raise ValueError(f"{self._root}/{name}: {reason}") from None
            elif self.strict:
                raise ValueError(f"{self._root}/{name}: unreadable image: {reason}")
            if image is None:
                held.unreadable.append(Unreadable(name, reason, len(held.names)))
                first_lost = first_lost or held.unreadable[-1]
                num_lost += 1
            else:
                height, width = image.shape[1:]
                if not num:
                    first_name = name
                    held.size = height
                elif height != held.size:
                    raise ValueError(
                        f"{self._root}: sizes differ: {first_name} is {held.size}x{held.size}, {name} is "
                        f"{width}x{height}; give the image size and --resize to bring all to one size"
                    )
                held.add(image, name, label, stored)
                num += 1
            if num == wanted:
                break
            decoded = None  # two large images would not fit into memory together
            # The unreadable ones do not count among the others: batches of ever other sizes cost networks ever more memory.
            if max(len(held.names), len(held.unreadable)) >= size or held.bytes >= _CHUNK_BYTES:
                yield held.take()
        if not num and not (num_lost and self.skip_unfit):
            if first_lost is not None:
                raise ValueError(
                    f"{self.source}: none of {num_lost} images can be read; {first_lost.name}: {first_lost.reason}"
                )
            raise FileNotFoundError(f"{self.source}: holds no images")
        if held.names or held.unreadable:
            yield held.take()


class _Chunk:
    """Images as they come, until they are taken as a set."""

    def __init__(self, channels: int, size: int) -> None:
        self.channels = channels  #: Of a set without images.
        self.size = size  #: Height and width.
        self.unreadable: list[Unreadable] = []
        self._clear()

    def _clear(self) -> None:
        self.names: list[str] = []
        self.unreadable = []
        self.bytes = 0
        self._images: list[npt.NDArray[np.uint8]] = []
        self._labels: list[str | None] = []
        self._stored: list[Stored | None] = []

    def add(self, image: npt.NDArray[np.uint8], name: str, label: str | None, stored: Stored) -> None:
        """Add an image, uint8 `(channels, height, width)`."""
        self._images.append(image)
        self.names.append(name)
        self._labels.append(label)
        self._stored.append(stored)
        self.bytes += image.nbytes

    def take(self) -> ImageSet:
        """Return what came, gray images as RGB beside RGB ones, and begin anew."""
        channels = max(map(len, self._images), default=self.channels)
        pixels = np.empty((len(self._images), channels, self.size, self.size), np.uint8)
        for place, image in zip(pixels, self._images, strict=True):
            place[:] = image
        pixels_of = torch.from_numpy(pixels)
        images = ImageSet(
            pixels_of, tuple(self.names), tuple(self.unreadable), tuple(self._labels), tuple(self._stored)
        )
        self._clear()
        return images


class _Pixels:
    """Images as they come, in one array that is copied only where their number or channels turn out larger."""

    def __init__(self, expected: int | None) -> None:
        self._array = np.empty((expected or 256, 0, 0, 0), np.uint8)
        self._count = 0

    def extend(self, images: npt.NDArray[np.uint8]) -> None:
        """Add images `(n, channels, height, width)`; gray ones become RGB once there is an RGB one."""
        capacity, channels = self._array.shape[:2]
        needed = self._count + len(images)
        if self._count == 0:
            # The system gives memory as it is written to: images that do not come cost nothing.
            self._array = np.empty((max(capacity, needed), *images.shape[1:]), np.uint8)
        elif needed > capacity or images.shape[1] > channels:
            held = self._array[: self._count]
            larger = capacity if needed <= capacity else max(needed, 2 * capacity)
            self._array = np.empty((larger, max(channels, images.shape[1]), *images.shape[2:]), np.uint8)
            self._array[: self._count] = held
        self._array[self._count : needed] = images
        self._count = needed

    def tensor(self) -> Tensor:
        """Return all images, uint8."""
        return torch.from_numpy(self._array[: self._count])


def _check_arguments(
    image_size: int | None,
    channels: int | None,
    resize: Resize | None,
    center_crop: int | None,
    limit: int | None,
    sample: int | None,
) -> None:
    positive = {"image_size": image_size, "center_crop": center_crop, "limit": limit, "sample": sample}
    for name, value in positive.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    if resize is not None and resize not in RESIZE:
        raise ValueError(f"resize must be one of {', '.join(RESIZE)}, got {resize!r}")
    if resize is not None and image_size is None:
        raise ValueError("resize needs an image_size to resize to")


def _with_progress(entries: Iterable[Entry], count: int | None) -> Iterator[Entry]:
    with progress_bar("decoding images", count) as progress:
        for entry in entries:
            yield entry
            progress(1)
