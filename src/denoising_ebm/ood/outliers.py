"""Odd images made of normal ones: sets that come with `debm evaluate`.

Most are plainer relatives of what discriminants learn from (`alterations.py`), so they say how well a detector does what
it was taught; `interpolation`, `constant` and `uniform-noise` are not.

Every function takes uint8 images, shape `(n, channels, height, width)`, and a generator, and returns as many odd ones.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from denoising_ebm.datasets.images import to_float, to_uint8
from denoising_ebm.ood.anomaly_maps import smoothed

Make = Callable[[Tensor, torch.Generator], Tensor]


def interpolation(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Return means of two random images (Du & Mordatch, 2019; the paper's Interp.)."""
    other = pixels[_partners(len(pixels), generator)]
    return ((pixels.int() + other.int() + 1) // 2).to(torch.uint8)


def constant(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Return images of one random colour each."""
    colours = torch.randint(0, 256, (*pixels.shape[:2], 1, 1), generator=generator, dtype=torch.uint8)
    return colours.expand_as(pixels).contiguous()


def uniform_noise(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Return images of independent uniform pixels."""
    return torch.randint(0, 256, tuple(pixels.shape), generator=generator, dtype=torch.uint8)


def gaussian_noise(pixels: Tensor, generator: torch.Generator, *, sigma: float = 0.2) -> Tensor:
    """Add Gaussian noise of standard deviation `sigma`, in units where images span [-1, 1]."""
    return to_uint8(to_float(pixels) + sigma * torch.randn(tuple(pixels.shape), generator=generator))


def impulse_noise(pixels: Tensor, generator: torch.Generator, *, share: float = 0.05) -> Tensor:
    """Set a share of all values to black or white."""
    draw = torch.rand(tuple(pixels.shape), generator=generator)
    return torch.where(draw < share, torch.where(draw < share / 2, 0, 255).to(torch.uint8), pixels)


def blur(pixels: Tensor, generator: torch.Generator, *, sigma: float = 1.0) -> Tensor:
    """Blur by a Gaussian of `sigma` pixels."""
    return to_uint8(smoothed(to_float(pixels), sigma))


def contrast(pixels: Tensor, generator: torch.Generator, *, factor: float = 0.4) -> Tensor:
    """Move every value towards the mean of its image."""
    x = to_float(pixels)
    mean = x.mean((1, 2, 3), keepdim=True)
    return to_uint8(mean + factor * (x - mean))


def brightness(pixels: Tensor, generator: torch.Generator, *, shift: float = 0.5) -> Tensor:
    """Add `shift`, in units where images span [-1, 1], up or down at random."""
    sign = 2.0 * torch.randint(0, 2, (len(pixels), 1, 1, 1), generator=generator) - 1
    return to_uint8(to_float(pixels) + shift * sign)


def pixelate(pixels: Tensor, generator: torch.Generator, *, size: int = 2) -> Tensor:
    """Replace squares of `size` pixels by their mean."""
    height, width = pixels.shape[2:]
    return to_uint8(F.interpolate(F.avg_pool2d(to_float(pixels), size), (height, width), mode="nearest"))


def jpeg(pixels: Tensor, generator: torch.Generator, *, quality: int = 15) -> Tensor:
    """Compress as JPEG and decode again."""
    results = []
    for image in pixels.permute(0, 2, 3, 1).numpy():
        buffer = io.BytesIO()
        Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(buffer, "JPEG", quality=quality)
        decoded = np.array(Image.open(buffer))
        results.append(torch.from_numpy(decoded.reshape(image.shape)))
    return torch.stack(results).permute(0, 3, 1, 2).contiguous()


def zoom(pixels: Tensor, generator: torch.Generator, *, factor: float = 2.0) -> Tensor:
    """Enlarge the middle of the image."""
    size = pixels.shape[-1]
    part = max(2, round(size / factor))
    start = (size - part) // 2
    middle = to_float(pixels[..., start : start + part, start : start + part])
    return to_uint8(F.interpolate(middle, (size, size), mode="bicubic", antialias=True))


def upside_down(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Turn images by 180 degrees."""
    return pixels.flip(2, 3)


def shuffled(pixels: Tensor, generator: torch.Generator, *, parts: int = 2) -> Tensor:
    """Cut images into `parts` x `parts` pieces and put these back in random order, never the old one."""
    count, channels, height, width = pixels.shape
    pieces = pixels.reshape(count, channels, parts, height // parts, parts, width // parts)
    pieces = pieces.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    orders = torch.rand(count, parts**2, generator=generator).argsort(1)
    same = (orders == torch.arange(parts**2)).all(1)
    orders[same] = orders[same].roll(1, dims=1)
    pieces = pieces[torch.arange(count)[:, None], orders]
    pieces = pieces.reshape(count, parts, parts, *pieces.shape[2:])
    return pieces.permute(0, 3, 1, 4, 2, 5).reshape(pixels.shape).contiguous()


def spliced(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Return left halves beside right halves of other images."""
    other = pixels[_partners(len(pixels), generator)]
    half = pixels.shape[-1] // 2
    return torch.cat([pixels[..., :half], other[..., half:]], dim=-1)


def inverted(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Return negatives."""
    return 255 - pixels


def swapped_channels(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Turn red, green, blue into green, blue, red (gray images stay)."""
    return pixels.roll(1, dims=1)


#: Sets by name, for `debm evaluate`.
SYNTHETIC_OOD: dict[str, Make] = {
    "interpolation": interpolation,
    "constant": constant,
    "uniform-noise": uniform_noise,
    "gaussian-noise": gaussian_noise,
    "impulse-noise": impulse_noise,
    "blur": blur,
    "contrast": contrast,
    "brightness": brightness,
    "pixelate": pixelate,
    "jpeg": jpeg,
    "zoom": zoom,
    "upside-down": upside_down,
    "shuffled": shuffled,
    "spliced": spliced,
    "inverted": inverted,
    "swapped-channels": swapped_channels,
}


def _partners(count: int, generator: torch.Generator) -> Tensor:
    """Return for each of `count` images the index of another one, each index once (itself if there is no other)."""
    order = torch.randperm(count, generator=generator)
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return partner
