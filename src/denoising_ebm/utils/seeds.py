"""Random numbers by hashes of what they are for: neighbouring seeds, steps and images get unrelated ones.

A batch of chains draws either from one `torch.Generator`, so that the draws of a chain depend on its place in the batch and
on the batch's size; or from an `ImageNoise`, which holds a generator for each chain: image i of a seed then has the same
draws in any batch, in any process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

#: 2^64 over the golden ratio, the increment of SplitMix64 (Steele et al., 2014).
_INCREMENT = 0x9E3779B97F4A7C15
_MASK = 0xFFFFFFFFFFFFFFFF

#: What the random numbers of an image are for: uses of one seed have unrelated draws.
Purpose = Literal["sample", "degrade", "restore", "likelihood"]
_PURPOSES: dict[Purpose, int] = {"sample": 1, "degrade": 2, "restore": 3, "likelihood": 4}
#: Keeps the hashes of images from those of training, whose keys are (seed, step, ...).
_IMAGES = 0x1A6E5


def hashed_generator(device: torch.device, *keys: int) -> torch.Generator:
    """Return a generator on `device` whose seed is a hash of `keys`, by the mixing steps of SplitMix64."""
    seed = 0
    for key in keys:
        seed = (seed + key + _INCREMENT) & _MASK
        seed = ((seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        seed = ((seed ^ (seed >> 27)) * 0x94D049BB133111EB) & _MASK
        seed ^= seed >> 31
    return torch.Generator(device).manual_seed(seed >> 1)


class ImageNoise:
    """A source of random numbers with a generator for each image of a batch, on the CPU.

    Args:
        generators: One for each image, in their order.
    """

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self._generators = tuple(generators)

    @classmethod
    def of(cls, seed: int, images: Iterable[int], purpose: Purpose = "sample", *, repeats: int = 1) -> ImageNoise:
        """Return the source of the images with these indices: each one's draws depend on the seed and its index alone.

        Args:
            seed: Any integer; the draws of different seeds are unrelated.
            images: Indices of the images, each >= 0.
            purpose: What is drawn.
            repeats: Chains of each image: first one of every image, then a second of every image, and so on.
        """
        indices, cpu = list(images), torch.device("cpu")
        keys = [(seed, _IMAGES, _PURPOSES[purpose], index, chain) for chain in range(repeats) for index in indices]
        return cls([hashed_generator(cpu, *each) for each in keys])

    @classmethod
    def by_content(cls, seed: int, images: Tensor, purpose: Purpose) -> ImageNoise:
        """Return the source of images by their values: each one's draws depend on the seed and the image alone."""
        digests = [
            hashlib.blake2b(image.numpy().tobytes(), digest_size=8).digest() for image in images.cpu().contiguous()
        ]
        return cls.of(seed, (int.from_bytes(digest, "big") for digest in digests), purpose)

    def __len__(self) -> int:
        return len(self._generators)

    def draw(self, kind: Callable[..., Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Draw by `torch.randn` or `torch.rand`, shape `(len(self), ...)`."""
        if shape[0] != len(self):
            raise ValueError(f"random numbers for {len(self)} images are asked for {shape[0]}")
        return torch.stack([kind(shape[1:], generator=generator, dtype=dtype) for generator in self._generators])


#: Of random numbers: one generator for a whole batch, or one for each image.
RandomSource = torch.Generator | ImageNoise
