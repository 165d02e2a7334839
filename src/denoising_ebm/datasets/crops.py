"""Random crops of photos for training, from a buffer that is refilled from disk: sets may be larger than memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from denoising_ebm.datasets.levels import ValueRange
from denoising_ebm.datasets.photos import Photo, PhotoSet, to_unit

Flip = Literal["horizontal", "vertical", "transpose"]
"""What a crop may undergo with p = 0.5: left and right swapped, top and bottom, rows and columns. All three together make
the eight symmetries of the square."""
_MAX_BYTES = 2**28


class _Held(NamedTuple):
    pixels: Tensor  # as stored, padded to the size of a crop at least
    value_range: ValueRange
    uses: int


class CropSampler:
    """Draws random square crops of photos, each from a random photo of those held.

    A photo gives way to the next one, in random order and again and again, after `crops_per_photo` crops; a set that fits
    into the buffer as a whole stays in it. Photos smaller than a crop are padded by reflection; those that cannot be read
    are left out (`photos.unreadable`).

    Args:
        photos: The photos.
        size: Side of a crop in pixels.
        generator: What is drawn by.
        held: Photos in the buffer at most; fewer where they would take more than 256 MiB, but always one.
        crops_per_photo: Crops of a photo before it gives way.
        flips: What crops may undergo.
        channels: That the photos must have; any if None.

    Raises:
        ValueError: If an argument is out of range, or the photos have another channel count.
    """

    def __init__(
        self,
        photos: PhotoSet,
        size: int,
        *,
        generator: torch.Generator,
        held: int = 64,
        crops_per_photo: int = 4,
        flips: Sequence[Flip] = (),
        channels: int | None = None,
    ) -> None:
        for name, value in (("size", size), ("held", held), ("crops_per_photo", crops_per_photo)):
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        if unknown := [flip for flip in flips if flip not in get_args(Flip)]:
            raise ValueError(f"flips must be of {', '.join(get_args(Flip))}, got {unknown[0]!r}")
        if not len(photos):
            raise ValueError("there are no photos to crop")
        if channels is not None and photos.channels != channels:
            raise ValueError(f"the photos have {photos.channels} channels, the model takes {channels}")
        self._photos, self._size, self._generator = photos, size, generator
        self._held, self._crops_per_photo, self._flips = held, crops_per_photo, frozenset(flips)
        self._buffer: list[_Held] = []
        self._bytes = 0
        self._order: list[int] = []  # photos of this round that are still to come, the next one last
        self._rounds = 0
        self._is_whole = False

    @property
    def num_held(self) -> int:
        """Number of photos in the buffer."""
        return len(self._buffer)

    def draw(self, batch_size: int) -> Tensor:
        """Return random crops, float32 in [-1, 1], shape `(batch_size, channels, size, size)`.

        Raises:
            ValueError: If no photo can be read, or one has another channel count than the set.
        """
        crops = []
        for _ in range(batch_size):
            self._fill()
            place = self._random(len(self._buffer))
            photo = self._buffer[place]
            crops.append(self._crop(photo))
            if self._is_whole:
                continue
            if photo.uses + 1 < self._crops_per_photo:
                self._buffer[place] = photo._replace(uses=photo.uses + 1)
            else:
                self._drop(place)
        return torch.stack(crops)

    def _crop(self, photo: _Held) -> Tensor:
        size = self._size
        top = self._random(photo.pixels.shape[1] - size + 1)
        left = self._random(photo.pixels.shape[2] - size + 1)
        crop = to_unit(photo.pixels[:, top : top + size, left : left + size], photo.value_range)
        for name in get_args(Flip):
            if name in self._flips and self._random(2):
                crop = crop.transpose(1, 2) if name == "transpose" else crop.flip(2 if name == "horizontal" else 1)
        return crop

    def _fill(self) -> None:
        misses = 0
        while not self._is_whole and len(self._buffer) < self._held and (self._bytes < _MAX_BYTES or not self._buffer):
            if not self._order:
                self._order = torch.randperm(len(self._photos), generator=self._generator).tolist()
                self._rounds += 1
            photo = self._photos.get(self._order.pop(), with_mask=False)
            if photo is None:
                misses += 1
                if misses > len(self._photos):
                    first = self._photos.unreadable[0]
                    raise ValueError(f"none of {len(self._photos):,} photos can be read: {first.name} {first.reason}")
            else:
                misses = 0
                self._hold(photo)
            # A whole round went in and nothing came out.
            self._is_whole = not self._order and self._rounds == 1 and len(self._buffer) == self._readable() > 0

    def _hold(self, photo: Photo) -> None:
        pixels = _padded(photo.pixels, self._size)
        self._buffer.append(_Held(pixels, photo.value_range, 0))
        self._bytes += pixels.nbytes
        while self._bytes > _MAX_BYTES and len(self._buffer) > 1:
            self._drop(0)

    def _readable(self) -> int:
        return len(self._photos) - len(self._photos.unreadable)

    def _drop(self, place: int) -> None:
        self._bytes -= self._buffer.pop(place).pixels.nbytes

    def _random(self, below: int) -> int:
        return int(torch.randint(below, (1,), generator=self._generator)) if below > 1 else 0


def _padded(pixels: Tensor, size: int) -> Tensor:
    """Pad `(channels, height, width)` by reflection to at least `size` on both sides, equally on either end."""
    lacks = [max(0, size - side) for side in pixels.shape[1:]]
    if not any(lacks):
        return pixels
    # Unlike torch's, numpy's reflection may be wider than the picture.
    around = [(0, 0), *((lack // 2, lack - lack // 2) for lack in lacks)]
    return torch.from_numpy(np.pad(pixels.numpy(), around, mode="reflect"))
