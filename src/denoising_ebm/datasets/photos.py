"""Photographs of any size, read from disk one at a time, with what folders say of them: kinds, normal or not, masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from denoising_ebm.datasets import layouts
from denoising_ebm.datasets.decode import MAX_PIXELS, Decoding
from denoising_ebm.datasets.entries import Entry
from denoising_ebm.datasets.headers import UnreadableImageError
from denoising_ebm.datasets.hub import PREFIX
from denoising_ebm.datasets.images import Unreadable
from denoising_ebm.datasets.levels import ValueRange
from denoising_ebm.datasets.listing import File
from denoising_ebm.datasets.mask_pairs import Pairs, pair, read_marks
from denoising_ebm.datasets.pixels import MAX_CHANNELS, Pixels, read_pixels
from denoising_ebm.datasets.remarks import Remarks
from denoising_ebm.datasets.sources import BUNDLED, open_source
from denoising_ebm.utils.text import counted

BUNDLED_PHOTOS = ("paper",)
"""Names of the sets of photos inside the package."""
_ASSETS = Path(__file__).parents[1] / "assets" / "photos"
_NAMED = 3
"""Photos that a message names at most."""


@dataclass(frozen=True, eq=False)
class Photo:
    """A photograph in its own size.

    Attributes:
        name: Path relative to the source, with slashes.
        pixels: As stored, shape `(channels, height, width)`: uint8, int32 (for 16 bits) or float32.
        kind: Folder of its kind, such as `good` or `scratch`; None where folders do not say.
        is_normal: Whether it is, by the folders' names; None where they do not say.
        mask: Its defects, bool `(height, width)`; all False for normal photos of a set with masks, None if there is none.
        notes: What was decided on reading it, in plain words.
        value_range: Levels that become -1 and 1.
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
        """The photo as float32 in [-1, 1], shape `(channels, height, width)`; levels outside of the range are cut off."""
        return to_unit(self.pixels, self.value_range)


def to_unit(pixels: Tensor, value_range: ValueRange) -> Tensor:
    """Map levels to float32 in [-1, 1]: `(v - low) / ((high - low) / 2) - 1`, clamped."""
    low, high = value_range
    # In place: a large photo takes four times its bytes already.
    return pixels.to(torch.float32, copy=True).sub_(low).div_((high - low) / 2).sub_(1).clamp_(-1, 1)


@dataclass(frozen=True)
class _Item:
    entry: Entry
    is_normal: bool | None
    masks: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Found:
    """What all parts of a set know of the whole."""

    root: Path
    items: Sequence[_Item]
    how: Decoding
    asked_channels: int | None
    has_masks: bool
    strict: bool
    notes: tuple[str, ...]
    without_image: tuple[str, ...]

    @cached_property
    def channels(self) -> tuple[int, str]:
        """Channels of all photos, and the name of the first one, where they are of that."""
        if self.asked_channels is not None:
            return self.asked_channels, ""
        for item in self.items:
            with suppress(UnreadableImageError):
                return read_pixels(item.entry, self.how).channels[0], item.entry.name
        raise ValueError(f"{self.root}: none of {counted(len(self.items), 'photo')} can be read")


class PhotoSet(Sequence[Photo]):
    """Photos that are read when they are asked for; none is kept. Made by `open_photos`.

    `photos[i]` raises ValueError for a photo that cannot be read. Iteration leaves such photos out and lists them in
    `unreadable`, unless the set is strict.

    Attributes:
        has_masks: Whether the source holds masks of defects.
    """

    def __init__(self, items: Sequence[_Item], found: _Found) -> None:
        self._items, self._found = items, found
        self.has_masks = found.has_masks
        self._unreadable: dict[int, Unreadable] = {}
        self._seen = bytearray(len(items))
        self._facts = Remarks(frames="first", value_range=found.how.value_range, aspect="crop")
        self._channels: Counter[int] = Counter()
        self._bits: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Photo:  # type: ignore[override]  # slices are `take`
        index = range(len(self))[index]
        return self._photo(index, with_mask=True)

    def __iter__(self) -> Iterator[Photo]:
        for index in range(len(self)):
            photo = self.get(index)
            if photo is not None:
                yield photo
            del photo  # two large ones would not fit into memory together

    def get(self, index: int, *, with_mask: bool = True) -> Photo | None:
        """Return a photo; None, noted in `unreadable`, where it cannot be read and the set is not strict.

        Args:
            index: Its place.
            with_mask: Read its mask, too.

        Raises:
            ValueError: If it has another channel count than the set, or a mask that does not fit.
        """
        try:
            return self._photo(index, with_mask=with_mask)
        except UnreadableImageError:
            if self._found.strict:
                raise
            return None

    @property
    def root(self) -> Path:
        """The folder that names of photos begin at."""
        return self._found.root

    @property
    def names(self) -> tuple[str, ...]:
        """Path of each photo relative to the source, with slashes."""
        return tuple(item.entry.name for item in self._items)

    @property
    def kinds(self) -> tuple[str | None, ...]:
        """Folder of the kind of each photo."""
        return tuple(item.entry.label for item in self._items)

    @property
    def is_normal(self) -> tuple[bool | None, ...]:
        """Whether each photo is normal, by the folders' names."""
        return tuple(item.is_normal for item in self._items)

    @property
    def unreadable(self) -> tuple[Unreadable, ...]:
        """The photos so far that could not be read, in order."""
        return tuple(self._unreadable[index] for index in sorted(self._unreadable))

    @property
    def channels(self) -> int:
        """Of all photos: those that were asked for, or those of the first of the whole set that can be read.

        Raises:
            ValueError: If none can be read.
        """
        return self._found.channels[0]

    def take(self, indices: Sequence[int] | Tensor) -> PhotoSet:
        """Return the photos at `indices`, in that order."""
        return PhotoSet([self._items[int(index)] for index in indices], self._found)

    def without(self, others: PhotoSet) -> PhotoSet:
        """Return the photos that are no files of another set."""
        known = {(others.root / name).resolve() for name in others.names}
        return self.take([i for i, name in enumerate(self.names) if (self.root / name).resolve() not in known])

    def check(self) -> PhotoSet:
        """Read all photos once and return those that can be read; `unreadable` and `remarks()` are complete afterwards.

        Raises:
            ValueError: If photos have another channel count than the set, with their number and names; if a mask does
                not fit its photo; if no photo can be read.
        """
        others: list[str] = []
        for index in range(len(self)):
            try:
                self.get(index)
            except _ChannelsError as error:
                others.append(str(error))
        if others:
            more = f"; so {len(others) - 1:,} more" if len(others) > 1 else ""
            raise ValueError(f"{counted(len(others), 'photo')} of {len(self):,} do not fit: {others[0]}{more}")
        left = [index for index in range(len(self)) if index not in self._unreadable]
        if not left:
            reason = self.unreadable[0].reason if self._unreadable else "there is none"
            raise ValueError(f"{self._found.root}: none of {counted(len(self), 'photo')} can be read: {reason}")
        return self.take(left)

    def remarks(self) -> list[str]:
        """Return what the user should know, a line for each: of the folders, and of the photos that were read so far."""
        found = self._found
        lines = list(found.notes)
        kinds = Counter(kind for kind in self.kinds if kind is not None)
        if kinds:
            lines.append(f"{counted(len(self), 'photo')}: {_listed(kinds)}")
        if found.without_image:
            names = layouts.enumerated(found.without_image, _NAMED)
            lines.append(f"{counted(len(found.without_image), 'mask')} without an image: {names}")
        if found.has_masks:
            bare = [item.entry.name for item in self._items if item.is_normal is False and not item.masks]
            if bare:
                lines.append(
                    f"{counted(len(bare), 'anomalous photo')} without a mask: {layouts.enumerated(bare, _NAMED)}"
                )
        if len(self._bits) > 1:
            bits = ", ".join(f"{num:,} of {bits} bits" for bits, num in sorted(self._bits.items()))
            lines.append(f"mixed bit depths: {bits}")
        if len(self._channels) > 1:
            channels = ", ".join(
                f"{num:,} of {counted(count, 'channel')}" for count, num in sorted(self._channels.items())
            )
            lines.append(f"mixed channels: {channels}")
        lines += [line.replace("images", "photos") for line in self._facts.lines()]
        if self._unreadable:
            first = self.unreadable[0]
            lines.append(f"{counted(len(self._unreadable), 'photo')} cannot be read: {first.name} {first.reason}")
        return lines

    # -- reading ----------------------------------------------------------------------------------------------------

    def _photo(self, index: int, *, with_mask: bool) -> Photo:
        item, found = self._items[index], self._found
        name = item.entry.name
        try:
            pixels = read_pixels(item.entry, found.how)
        except UnreadableImageError as error:
            self._unreadable[index] = Unreadable(name, str(error), index)
            raise UnreadableImageError(f"{found.root / name}: {error}") from None
        notes = pixels.stored.notes
        self._count(index, pixels)
        values = pixels.values
        own, first = found.channels
        if len(values) != own:
            if len(values) != 1 or own != 3 or (found.strict and own not in pixels.channels):
                wanted = f"the first photo ({first}) {own}" if first else f"{own} are asked for"
                raise _ChannelsError(f"{found.root / name}: has {counted(len(values), 'channel')}, {wanted}")
            values = np.broadcast_to(values, (own, *values.shape[1:]))
            notes += ("gray, repeated in three channels",) * (own not in pixels.channels)
        tensor = torch.from_numpy(np.array(values, np.int32 if values.dtype == np.uint16 else values.dtype))
        mask = self._mask(item, (tensor.shape[1], tensor.shape[2])) if with_mask else None
        return Photo(name, tensor, item.entry.label, item.is_normal, mask, notes, pixels.value_range)

    def _mask(self, item: _Item, size: tuple[int, int]) -> Tensor | None:
        root = self._found.root
        if not item.masks:
            return torch.zeros(size, dtype=torch.bool) if self.has_masks and item.is_normal else None
        marked = np.zeros(size, bool)
        for mask_name in item.masks:
            one = read_marks(root / mask_name, self._found.how.max_pixels)
            if one.shape != size:
                raise ValueError(
                    f"{root / mask_name}: is {one.shape[1]}x{one.shape[0]}, but its photo {root / item.entry.name} is "
                    f"{size[1]}x{size[0]}"
                )
            marked |= one
        return torch.from_numpy(marked)

    def _count(self, index: int, pixels: Pixels) -> None:
        if self._seen[index]:
            return
        self._seen[index] = 1
        self._channels[pixels.channels[0]] += 1
        self._bits[pixels.stored.bits] += 1
        self._facts.add([pixels.stored])


class _ChannelsError(ValueError):
    """A photo has another channel count than the set."""


def open_photos(
    source: str | Path,
    *,
    split: str | None = None,
    default_split: str = "all",
    normal_only: bool = False,
    channels: int | None = None,
    value_range: ValueRange | None = None,
    background: str = "white",
    max_pixels: int = MAX_PIXELS,
    limit: int | None = None,
    strict: bool = False,
) -> PhotoSet:
    """Find the photos of a folder and the masks of their defects; none is read yet.

    Layouts are recognised by the names of folders, in any case: MVTec AD (`train/good`, `test/KIND`, `ground_truth/KIND`),
    VisA (`Data/Images/Normal`, `Data/Masks/Anomaly`), `good` beside `defective`, several of these in folders of their own,
    and one flat folder. Nothing is cropped or scaled.

    Args:
        source: A name in `BUNDLED_PHOTOS`, a folder, searched recursively, or one file: images, or `.npy` arrays
            `(height, width)`, `(height, width, channels)` or `(channels, height, width)`.
        split: The part to take: `train` (normal photos only, where folders say which those are), `test`, ..., or `all`.
        default_split: The part that is taken if none is asked for and the source has parts.
        normal_only: Leave out photos that the folders call anomalous.
        channels: Of all photos, 1 to 16; those of the first one if None.
        value_range: Levels of files of more than 8 bits that become -1 and 1; by default 0 and the largest level of the
            file's depth, and 0 and 1 for floating-point numbers.
        background: Colour that partly transparent photos are laid over: `white`, `black` or `#rrggbb`; `ignore` reads their
            colours as if they were opaque.
        max_pixels: Pixels of the largest photo that is read; half as many of more than 8 bits.
        limit: Take the first of this number only.
        strict: Raise at the first photo that cannot be read, and at gray ones among colour.

    Raises:
        FileNotFoundError: If the source or the part does not exist or holds no photos.
        ValueError: If an argument is out of range, the source holds no files of images, or a mask would be that of several
            photos.
    """
    if channels is not None and not 1 <= channels <= MAX_CHANNELS:
        raise ValueError(f"channels must be 1 to {MAX_CHANNELS}, got {channels}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be >= 1, got {limit}")
    how = Decoding(value_range=value_range, background=background, max_pixels=max_pixels)
    if str(source) in BUNDLED or str(source).startswith(PREFIX):
        raise ValueError(f"{source}: photos are read from a folder or a file of images")
    place = _ASSETS / str(source) if str(source) in BUNDLED_PHOTOS and not Path(source).exists() else source
    taken = open_source(place, split, default_split=default_split, arrays=True)
    if not isinstance(taken.entries, list):
        raise ValueError(f"{source}: photos are read from files of images, not from Parquet")
    files, pairs, notes = [], Pairs({}, ()), list(taken.notes)
    if taken.found is not None:
        files = taken.found.images
        pairs = pair(files, taken.found.masks, taken.found.mask_folders)
    normal = _normality(files)
    items = [_Item(entry, normal.get(entry.name), pairs.masks.get(entry.name, ())) for entry in taken.entries]
    if normal_only:
        left = [item for item in items if item.is_normal is not False]
        if not left:
            raise FileNotFoundError(
                f"{source}: none of {counted(len(items), 'photo')} is normal, by the folders' names"
            )
        if len(left) < len(items):
            kinds = Counter(str(item.entry.label) for item in items if item.is_normal is False)
            taken_are = f"only the {counted(len(left), 'normal photo')} taken"
            notes.append(f"{taken_are}, not {len(items) - len(left):,} others ({_listed(kinds)})")
        items = left
    items = items[:limit]
    without_image = pairs.without_image
    found = _Found(Path(taken.root), items, how, channels, bool(pairs.masks), strict, tuple(notes), without_image)
    return PhotoSet(items, found)


def _normality(files: Sequence[File]) -> Mapping[str, bool | None]:
    """Say of each photo whether it is normal: its folders are called so, or stand where others are."""
    anomalous = layouts.anomalous_folders(files)
    says = {name: layouts.judged(name) for file in files for name in file.parts[:-1]}
    has_normal = "normal" in says.values()
    normal: dict[str, bool | None] = {}
    for file, part in zip(files, layouts.parts_of_images(files) if files else [], strict=True):
        folders = file.parts[:-1]
        is_beside = any(folders[:depth] in anomalous for depth in range(1, len(file.parts)))
        words = [says[name] for name in reversed(folders) if says[name]]
        if words:
            normal[file.name] = words[0] == "normal" and not is_beside
        elif is_beside or (has_normal and layouts.class_of(file, part) is not None):
            normal[file.name] = False
        else:
            normal[file.name] = None
    return normal


def _listed(counts: Mapping[str, int]) -> str:
    return layouts.enumerated([f"{name} {num:,}" for name, num in counts.items()], 8)
