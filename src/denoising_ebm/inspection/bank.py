"""A bank of windows of photos in memory: what is learned from, of bounded size however many and large the photos are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from denoising_ebm.datasets.images import to_uint8

#: Bytes of a bank at most.
MAX_BYTES = 2**28
#: Side of the windows that photos are cut to where all of them would take more, in pixels.
WINDOW = 512


class _Photo(Protocol):
    @property
    def x(self) -> Tensor: ...


@dataclass(frozen=True)
class PhotoBank:
    """Windows of photos, or all of them.

    Attributes:
        windows: Float32 arrays in [-1, 1], each `(channels, height, width)` of its own size.
    """

    windows: tuple[npt.NDArray[np.float32], ...]

    @classmethod
    def of(
        cls,
        photos: Sequence[_Photo],
        rng: np.random.Generator,
        *,
        least_side: int,
        max_bytes: int = MAX_BYTES,
        progress: Callable[[int], object] | None = None,
    ) -> PhotoBank:
        """Read photos, in an order that is drawn, until the bank is full.

        Photos are held whole while they are small; of larger ones random windows, as many of each as make the shares equal.

        Args:
            photos: The photos.
            rng: Draws the order and the windows.
            least_side: Photos with a shorter side are enlarged to it by reflection.
            max_bytes: Size of the bank.
            progress: Called with 1 after each photo.
        """
        share = max_bytes // max(len(photos), 1)
        windows: list[npt.NDArray[np.float32]] = []
        held = 0
        for index in rng.permutation(len(photos)):
            x = at_least(photos[int(index)].x.numpy(), least_side)
            whole = x.nbytes <= max(share, 4 * x.shape[0] * WINDOW**2)
            window = x if whole else _window(x, max(WINDOW, least_side), rng)
            windows.append(np.ascontiguousarray(window))
            held += window.nbytes
            if progress is not None:
                progress(1)
            if held > max_bytes:
                break
        return cls(tuple(windows))

    def __len__(self) -> int:
        return len(self.windows)

    def crop(self, size: int, rng: np.random.Generator, *, turns: bool) -> npt.NDArray[np.float32]:
        """Return a random crop of a random photo, turned by quarters and mirrored if `turns`."""
        window = self.windows[int(rng.integers(len(self.windows)))]
        crop = _window(window, size, rng)
        if turns:
            crop = np.rot90(crop, int(rng.integers(4)), (1, 2))
            if rng.random() < 0.5:
                crop = crop[:, :, ::-1]
        return np.ascontiguousarray(crop)

    def crops(self, count: int, size: int, rng: np.random.Generator, *, turns: bool) -> Tensor:
        """Return random crops as training images, uint8, shape `(count, channels, size, size)`."""
        pixels = torch.empty(count, len(self.windows[0]), size, size, dtype=torch.uint8)
        for place in pixels:
            place.copy_(to_uint8(torch.from_numpy(self.crop(size, rng, turns=turns))))
        return pixels

    def deviation(self) -> float:
        """Return the standard deviation of all values around their mean."""
        values = np.concatenate([window.ravel()[:: max(1, window.size // 4096)] for window in self.windows])
        return float(values.std())


def at_least(x: npt.NDArray[np.float32], side: int) -> npt.NDArray[np.float32]:
    """Return a photo whose sides are at least `side`, enlarged by reflection at the end of each side."""
    missing = [max(0, side - length) for length in x.shape[1:]]
    if not any(missing):
        return x
    return np.pad(x, ((0, 0), (0, missing[0]), (0, missing[1])), mode="symmetric")


def _window(x: npt.NDArray[np.float32], side: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    tall, wide = (min(side, length) for length in x.shape[1:])
    top = int(rng.integers(x.shape[1] - tall + 1))
    left = int(rng.integers(x.shape[2] - wide + 1))
    return x[:, top : top + tall, left : left + wide]
