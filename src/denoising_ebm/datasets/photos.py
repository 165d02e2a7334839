"""Photographs of any size, read one at a time: their kinds and masks by the layout of folders, bits and bands as stored.

Layouts are recognised by names, in any case: MVTec AD (`train/good`, `test/KIND`, `ground_truth/KIND/NAME_mask.png`), VisA
(`Images/Normal`, `Images/Anomaly`, `Masks/Anomaly`), `good/` beside folders of other kinds, several such sets in one
folder, or photos without any. Nothing is cut or scaled.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from denoising_ebm.datasets import layouts
from denoising_ebm.datasets.decode import FORMATS, MAX_PIXELS, Decoding, decode_each, to_array
from denoising_ebm.datasets.entries import Entry
from denoising_ebm.datasets.layouts import SPLITS
from denoising_ebm.datasets.levels import ValueRange, check_range, is_deep
from denoising_ebm.datasets.listing import File, list_folder
from denoising_ebm.utils.text import counted, reason_of

BUNDLED_PHOTOS = ("paper",)
"""Names of the sets of photos inside the package."""
_ASSETS = Path(__file__).parents[1] / "assets" / "photos"
#: Bands of a photo at most.
MAX_CHANNELS = 16
#: Share of the range of 16 bits below which the largest level of a set is remarked on.
_LITTLE = 0.5


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo as it is stored.

    Attributes:
        name: Path relative to the source, with slashes.
        pixels: uint8, int32 (of 16 bits) or float32, shape `(channels, height, width)`.
        kind: Folder of its kind, such as `good` or `scratch`; None where folders do not say.
        is_normal: Whether that is a kind of normal photos; None where unknown.
        mask: Where it is defective, bool, shape `(height, width)`, nowhere in a normal photo of a set with masks; None if
            that is not known.
        notes: What was decided as it was read.
        value_range: Levels that are black and white.
    """

    name: str
    pixels: Tensor
    kind: str | None = None
    is_normal: bool | None = None
    mask: Tensor | None = None
    notes: tuple[str, ...] = ()
    value_range: ValueRange = (0.0, 255.0)

    @property
    def x(self) -> Tensor:
        """The photo in [-1, 1], float32, shape `(channels, height, width)`; what is beyond the range is cut off."""
        low, high = self.value_range
        # In place: a photo of 36 megapixels takes 432 MB.
        return self.pixels.to(torch.float32, copy=True).sub_(low).mul_(2 / (high - low)).sub_(1).clamp_(-1, 1)


@dataclass(frozen=True)
class _File:
    name: str
    path: Path
    kind: str | None
    is_normal: bool | None
    mask: Path | None


class PhotoSet(Sequence[Photo]):
    """Photos that are read when they are asked for; none is kept.

    Args:
        root: Put before names in messages.
        files: The photos.
        has_masks: Whether masks tell where photos are defective.
        channels: Bands of every photo; those of the first if None.
        value_range: Levels that become black and white; by the number of bits if None.
        max_pixels: Pixels of the largest photo that is read.
        notes: What was decided about the source.
    """

    def __init__(
        self,
        root: str,
        files: Sequence[_File],
        *,
        has_masks: bool,
        channels: int | None = None,
        value_range: ValueRange | None = None,
        max_pixels: int = MAX_PIXELS,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.root, self.has_masks, self.value_range, self.notes = root, has_masks, value_range, notes
        self._files, self._max_pixels, self._channels = tuple(files), max_pixels, channels
        # What has been seen so far, by file: bits, bands and largest level.
        self._seen: dict[str, tuple[int, int, float]] = {}
        self._remarked: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._files)

    @property
    def names(self) -> list[str]:
        """Paths of the photos relative to the source."""
        return [file.name for file in self._files]

    @property
    def kinds(self) -> list[str | None]:
        """Kind of each photo, as `Photo.kind`."""
        return [file.kind for file in self._files]

    @property
    def is_normal(self) -> list[bool | None]:
        """Whether each photo is normal, as `Photo.is_normal`."""
        return [file.is_normal for file in self._files]

    @property
    def channels(self) -> int:
        """Bands of every photo."""
        if self._channels is None:
            if not self._files:
                raise ValueError(f"{self.root}: holds no photos")
            self._channels = len(self._read(self._files[0])[0])
        return self._channels

    def __getitem__(self, index: int) -> Photo:  # type: ignore[override]
        """Read a photo.

        Raises:
            ValueError: If it cannot be read or has other channels than the first, or its mask has another size.
        """
        file = self._files[index]
        pixels, bits, notes = self._read(file)
        pixels, said = self._with_channels(pixels, file)
        value_range = self.value_range or _usual_range(pixels, bits, f"{self.root}/{file.name}")
        self._seen[file.name] = bits, len(pixels), float(pixels.max()) if bits > 8 else 255.0
        for note in (*notes, *said):
            self._remarked[note] += 1
        # A copy: arrays of Pillow's cannot be written to, which tensors can.
        tensor = torch.from_numpy(pixels.astype(np.int32) if pixels.dtype == np.uint16 else np.array(pixels))
        mask = self._mask(file, tensor.shape[1:])
        return Photo(file.name, tensor, file.kind, file.is_normal, mask, (*notes, *said), value_range)

    def __iter__(self) -> Iterator[Photo]:
        return (self[i] for i in range(len(self)))

    def take(self, indices: Iterable[int]) -> PhotoSet:
        """Return the photos at `indices`, in that order."""
        return self._with([self._files[i] for i in indices])

    def without(self, others: PhotoSet) -> PhotoSet:
        """Return the photos that are not files of another set."""
        known = {file.path.resolve() for file in others._files}
        return self._with([file for file in self._files if file.path.resolve() not in known])

    def _with(self, files: Sequence[_File]) -> PhotoSet:
        channels = self.channels if self._files else self._channels
        return PhotoSet(
            self.root,
            files,
            has_masks=self.has_masks,
            channels=channels,
            value_range=self.value_range,
            max_pixels=self._max_pixels,
        )

    def remarks(self) -> list[str]:
        """Return what is to be said of the photos that were read so far, a line for each kind of remark."""
        lines = list(self.notes)
        lines += [f"{counted(count, 'photo')}: {note}" for note, count in sorted(self._remarked.items())]
        depths = Counter(bits for bits, _, _ in self._seen.values())
        if len(depths) > 1:
            parts = ", ".join(f"{bits} bits {count:,}" for bits, count in sorted(depths.items()))
            first = next(
                name for name, (bits, _, _) in self._seen.items() if bits != max(depths, key=depths.__getitem__)
            )
            lines.append(
                f"photos differ in depth ({parts}), first {first}: each is brought to black and white by its own"
            )
        highest = max((level for bits, _, level in self._seen.values() if bits == 16), default=0.0)
        if self.value_range is None and 0 < highest < _LITTLE * 65535:
            lines.append(
                f"16-bit photos use levels up to {highest:,.0f} of 65,535 alone, so all look dark; --range "
                f"{2 ** max(1, int(highest)).bit_length() - 1} would take the range of their bits"
            )
        return lines

    # -- one file ---------------------------------------------------------------------------------------------------

    def _read(self, file: _File) -> tuple[npt.NDArray[np.generic], int, tuple[str, ...]]:
        """Return pixels, bits and notes.

        Raises:
            ValueError: If the file cannot be read; it names it.
        """
        where = f"{self.root}/{file.name}"
        try:
            if file.path.suffix.lower() == ".npy":
                return *_read_array(file.path), ()
            if (deep := _read_deep(file.path, self._channels, self._max_pixels)) is not None:
                return deep
        except (OSError, ValueError, MemoryError) as error:
            raise ValueError(f"{where}: unreadable photo: {reason_of(error)}") from None
        how = Decoding(self.value_range, max_pixels=self._max_pixels)
        _, decoded, reason = next(iter(decode_each([Entry(file.name, str(file.path))], how)))
        if decoded is None:
            raise ValueError(f"{where}: unreadable photo: {reason}")
        notes = decoded.stored.notes
        if decoded.stored.bits > 8:
            notes = (*notes, "16-bit colour read at 8 bits")
        # A range has been applied in bringing it to 8 bits.
        return to_array(decoded.image), 8, notes

    def _with_channels(
        self, pixels: npt.NDArray[np.generic], file: _File
    ) -> tuple[npt.NDArray[np.generic], tuple[str, ...]]:
        expected = self._channels if self._channels is not None else len(pixels)
        self._channels = expected
        if len(pixels) == expected:
            return pixels, ()
        if len(pixels) == 1 and expected == 3:
            return np.repeat(pixels, 3, 0), ("gray, taken as colour",)
        if len(pixels) == 3 and expected == 1 and bool((pixels == pixels[:1]).all()):
            return np.ascontiguousarray(pixels[:1]), ("gray stored as colour",)
        raise ValueError(
            f"{self.root}/{file.name}: has {counted(len(pixels), 'channel')}, the photos before have {expected}: bring "
            "all to one kind"
        )

    def _mask(self, file: _File, shape: tuple[int, ...]) -> Tensor | None:
        if file.mask is None:
            return torch.zeros(shape, dtype=torch.bool) if self.has_masks and file.is_normal else None
        entry = Entry(file.mask.name, str(file.mask))
        _, decoded, reason = next(iter(decode_each([entry], Decoding(background="ignore"))))
        if decoded is None:
            raise ValueError(f"{file.mask}: unreadable mask: {reason}")
        values = to_array(decoded.image).max(0)
        if values.shape != tuple(shape):
            raise ValueError(
                f"{file.mask}: the mask is {values.shape[1]} x {values.shape[0]}, its photo {self.root}/{file.name} is "
                f"{shape[1]} x {shape[0]}"
            )
        # Numbers of regions or black and white; soft edges, where there are many levels, count from the middle on.
        many = len(np.unique(values)) > 32
        return torch.from_numpy(values > (values.max() // 2 if many else 0))


def open_photos(
    source: str | Path,
    *,
    split: str | None = None,
    default_split: str | None = None,
    normal_only: bool = False,
    channels: int | None = None,
    value_range: ValueRange | None = None,
    max_pixels: int = MAX_PIXELS,
) -> PhotoSet:
    """Find the photos of a folder, or take one file; none is read yet.

    Args:
        source: A folder, a photo, or a name in `BUNDLED_PHOTOS`. Masks are attached to their photos, never taken for some.
        split: The part to take, `train` or `test` by whatever name; of a folder without parts, and with `all`, all of it.
        default_split: The part that is taken if none is asked for and there is such a one.
        normal_only: Take those alone that folders call normal, where folders say so.
        channels: Bands that photos must have, 1..16; those of the first if None.
        value_range: Levels that become black and white; by default 0 to 255, 0 to 65,535, or 0 to 1 of arrays of floats.
        max_pixels: Pixels of the largest photo that is read.

    Raises:
        FileNotFoundError: If the source does not exist, or has no photos or no such part.
        ValueError: If an argument is out of range.
    """
    check_range(value_range)
    if channels is not None and not 1 <= channels <= MAX_CHANNELS:
        raise ValueError(f"channels must be within 1..{MAX_CHANNELS}, got {channels}")
    path = Path(source)
    if not path.exists():
        if str(source) not in BUNDLED_PHOTOS:
            raise FileNotFoundError(
                f"{source}: no such file or folder, nor a bundled set ({', '.join(BUNDLED_PHOTOS)})"
            )
        path = _ASSETS / str(source)
    notes: tuple[str, ...]
    if path.is_file():
        files, masks, notes = [File((path.name,))], [], ()
        root = path.parent
    else:
        root = path
        listing = list_folder(path)
        apart = layouts.set_apart(sorted([*listing.images, *_arrays(path)]))
        files, masks = apart.images, apart.masks
        notes = _passed_over(apart.thumbnails)
    if not files:
        raise FileNotFoundError(f"{source}: holds no photos")
    found, notes_of_masks = _sorted_out(root, files, masks)
    found = _of_split(found, files, split, default_split, str(source))
    if normal_only and any(file.is_normal is not None for file in found):
        found = [file for file in found if file.is_normal]
        if not found:
            raise FileNotFoundError(f"{source}: holds no normal photos")
    return PhotoSet(
        str(root),
        found,
        has_masks=bool(masks),
        channels=channels,
        value_range=value_range,
        max_pixels=max_pixels,
        notes=(*notes, *notes_of_masks),
    )


# -- folders --------------------------------------------------------------------------------------------------------


def _arrays(folder: Path) -> list[File]:
    """Return the arrays below a folder, which listings of images pass over."""
    return [
        File(found.relative_to(folder).parts)
        for found in sorted(folder.rglob("*"))
        if found.suffix.lower() == ".npy" and found.is_file()
    ]


def _passed_over(thumbnails: Sequence[File]) -> tuple[str, ...]:
    return (f"{counted(len(thumbnails), 'thumbnail')} passed over",) if thumbnails else ()


def _sorted_out(root: Path, files: Sequence[File], masks: Sequence[File]) -> tuple[list[_File], tuple[str, ...]]:
    """Return the photos with kinds and masks, and what to say of masks that belong to none."""
    parts = layouts.parts_of_images(files)
    kinds = [layouts.class_of(file, part) for file, part in zip(files, parts, strict=True)]
    is_known = any(kind is not None and layouts.judged(kind) == "normal" for kind in kinds)
    by_stem: dict[str, list[File]] = defaultdict(list)
    for mask in masks:
        by_stem[_stem_of_mask(mask)].append(mask)
    used: set[File] = set()
    found = []
    for file, kind in zip(files, kinds, strict=True):
        own = _mask_of(file, kind, by_stem.get(_stem(file), ()))
        is_normal = None if not is_known or kind is None else layouts.judged(kind) == "normal"
        if own is not None and is_normal and kind not in own.parts[:-1]:
            # A number that a normal photo shares with a defective one of another folder.
            own = None
        if own is not None:
            used.add(own)
        path = None if own is None else root.joinpath(*own.parts)
        found.append(_File(file.name, root.joinpath(*file.parts), kind, is_normal, path))
    left = [mask for mask in masks if mask not in used]
    notes = (f"{counted(len(left), 'mask')} of no photo, first {left[0].name}",) if left else ()
    return found, notes


def _stem(file: File) -> str:
    return os.path.splitext(file.parts[-1])[0].lower()


def _stem_of_mask(file: File) -> str:
    stem = _stem(file)
    return next((stem[: -len(end)] for end in ("_mask", "-mask", "_gt", "_label") if stem.endswith(end)), stem)


def _mask_of(file: File, kind: str | None, candidates: Sequence[File]) -> File | None:
    """Return the mask that shares most of the photo's path: the same set, then the same kind."""

    def likeness(mask: File) -> tuple[int, bool]:
        pairs = zip(file.parts[:-1], mask.parts[:-1], strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        return shared, kind is not None and kind in mask.parts[:-1]

    usable = [mask for mask in candidates if kind is None or kind in mask.parts[:-1] or len(candidates) == 1]
    return max(usable, key=likeness, default=None)


def _of_split(
    found: list[_File], files: Sequence[File], split: str | None, default: str | None, source: str
) -> list[_File]:
    parts = [part.split for part in layouts.parts_of_images(files)]
    names = sorted({part for part in parts if part})
    if split is None and default in names:
        split = default
    if split in (None, "all") or not names:
        return found
    wanted = SPLITS.get(str(split).lower(), split)
    taken = [file for file, part in zip(found, parts, strict=True) if part == wanted]
    if not taken:
        raise FileNotFoundError(f"{source}: no split {split!r}; splits found: {', '.join(names)}")
    return taken


# -- formats --------------------------------------------------------------------------------------------------------


def _usual_range(pixels: npt.NDArray[np.generic], bits: int, where: str) -> ValueRange:
    if bits == 8:
        return 0.0, 255.0
    if bits == 16:
        return 0.0, 65535.0
    if float(pixels.min()) < 0 or float(pixels.max()) > 1:
        raise ValueError(f"{where}: has floating-point values beyond 0 to 1; --range LOW,HIGH says their range")
    return 0.0, 1.0


def _read_array(path: Path) -> tuple[npt.NDArray[np.generic], int]:
    array = np.load(path, allow_pickle=False)
    if array.ndim == 2:
        array = array[None]
    elif array.ndim == 3 and array.shape[2] <= MAX_CHANNELS < array.shape[0]:
        array = array.transpose(2, 0, 1)
    if array.ndim != 3 or not 1 <= len(array) <= MAX_CHANNELS or 0 in array.shape:
        raise ValueError(f"expected an array (height, width) or of up to {MAX_CHANNELS} bands, got shape {array.shape}")
    if array.dtype in (np.uint8, np.uint16):
        return np.ascontiguousarray(array), 8 * array.dtype.itemsize
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"expected uint8, uint16 or floating-point values, got {array.dtype}")
    values = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(values).all():
        raise ValueError("holds values that are not finite")
    return values, 32


def _read_deep(
    path: Path, channels: int | None, max_pixels: int
) -> tuple[npt.NDArray[np.generic], int, tuple[str, ...]] | None:
    """Return a file of 16-bit gray levels, or a TIFF file of as many bands or pages as are asked for; None for others."""
    with open(path, "rb") as file:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                opened = Image.open(file, formats=FORMATS)
                turned = opened.getexif().get(0x0112, 1) != 1
        except Exception:  # of any type; the usual reader says why
            return None
        if turned or opened.width * opened.height > max_pixels:
            return None
        pages = getattr(opened, "n_frames", 1)
        is_tiff = opened.format == "TIFF"
        if is_tiff and channels is not None and pages == channels > 1:
            stacked = np.stack(_pages(opened, pages))
        elif is_tiff and channels == len(opened.getbands()) > 3:
            stacked = np.asarray(opened).transpose(2, 0, 1)
        elif is_deep(opened) and opened.mode.startswith("I;16") and pages == 1:
            stacked = np.asarray(opened)[None]
        else:
            return None
    stacked = stacked.astype(stacked.dtype.newbyteorder("="))
    if stacked.dtype not in (np.uint8, np.uint16):
        return None
    notes = (f"{len(stacked)} pages as bands",) if pages > 1 else ()
    return np.ascontiguousarray(stacked), 8 * stacked.dtype.itemsize, notes


def _pages(opened: Image.Image, count: int) -> list[npt.NDArray[np.generic]]:
    bands = []
    for page in range(count):
        opened.seek(page)
        bands.append(np.asarray(opened))
    if any(band.ndim != 2 or band.shape != bands[0].shape for band in bands):
        raise ValueError("its pages are not bands of one size")
    return bands
