"""Corruptions of normal images: of random strength to fit a detector with, of fixed strength as synthetic OOD sets.

The detector's discriminants need to know in which directions images can become anomalous. No anomalous images are asked of
the user: each corruption of `CORRUPTIONS` changes a normal image in one respect, by a strength drawn between two bounds,
from barely visible to plain. None of them takes the mean of images, which is a test set of the paper.

`SYNTHETIC_OOD` are the sets that come with `debm evaluate`. Most are relatives of `CORRUPTIONS`, so they say how well a
detector does what it was taught; `interpolation`, `constant` and `uniform-noise` are not.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from denoising_ebm.datasets.images import to_float, to_uint8
from denoising_ebm.ood.blur import gaussian_blur

Group = Literal["tone", "colour", "smoothness", "noise", "turn", "parts"]

#: A change of images in [-1, 1], shape (n, channels, height, width), by strengths of shape (n, 1, 1, 1).
Change = Callable[[Tensor, Tensor, torch.Generator], Tensor]
#: uint8 images, shape (n, channels, height, width), to as many anomalous ones.
SyntheticSet = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Corruption:
    """A change of random strength.

    Attributes:
        group: What it concerns; corruptions of one group resemble each other.
        change: What it does.
        low: Least strength.
        high: Largest strength.
        logarithmic: Draw the logarithm of the strength uniformly instead of the strength.
    """

    group: Group
    change: Change
    low: float = 1.0
    high: float = 1.0
    logarithmic: bool = False

    def __call__(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Return corrupted images.

        Args:
            pixels: uint8, shape `(n, channels, height, width)`.
            generator: Source of strengths and of all else that is random.

        Returns:
            uint8, same shape.
        """
        position = torch.rand((len(pixels), 1, 1, 1), generator=generator)
        if self.logarithmic:
            strength = (math.log(self.low) + position * math.log(self.high / self.low)).exp()
        else:
            strength = self.low + position * (self.high - self.low)
        return corrupt(pixels, self.change, strength, generator)


def corrupt(pixels: Tensor, change: Change, strength: Tensor | float, generator: torch.Generator) -> Tensor:
    """Change uint8 images by one strength, or by one for each, shape (n, 1, 1, 1)."""
    if not isinstance(strength, Tensor):
        strength = torch.full((len(pixels), 1, 1, 1), strength)
    return to_uint8(change(to_float(pixels), strength, generator).clamp(-1, 1))


def corruptions(channels: int) -> dict[str, Corruption]:
    """Return the corruptions of images with so many channels, by name: those of colour need three."""
    return {name: each for name, each in CORRUPTIONS.items() if channels == 3 or each.group != "colour"}


# -- changes that take more than a line ---------------------------------------------------------------------------------


def _away_from(centre: Callable[[Tensor], Tensor]) -> Change:
    """Scale the distance of every value from its centre by the strength."""
    return lambda x, strength, generator: centre(x) + strength * (x - centre(x))


def _shift(channel: int | None = None) -> Change:
    def change(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
        which = torch.ones(x.shape[1]) if channel is None else torch.eye(x.shape[1])[channel]
        return x + strength * which[:, None, None]

    return change


def _turn(quarters: int) -> Change:
    return lambda x, strength, generator: torch.rot90(x, quarters, (2, 3))


def _one_by_one(change: Callable[[Tensor, float, torch.Generator], Tensor]) -> Change:
    return lambda x, strength, generator: torch.cat(
        [change(image[None], float(s), generator) for image, s in zip(x, strength, strict=True)]
    )


def _coarse(x: Tensor) -> Tensor:
    return gaussian_blur(x, _pixels(x, 2.0))


def _flatten(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Scale what is coarse by the strength and keep the detail."""
    mean, coarse = x.mean((2, 3), keepdim=True), _coarse(x)
    return mean + strength * (coarse - mean) + (x - coarse)


def _fog(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Lay a gray cloud of 1/f noise over images, as the corruption "fog" of Hendrycks & Dietterich (2019)."""
    height, width = x.shape[2:]
    radius = (torch.fft.fftfreq(height)[:, None] ** 2 + torch.fft.rfftfreq(width) ** 2).sqrt()
    radius[0, 0] = 1.0
    white = torch.randn((len(x), 1, height, width), generator=generator)
    spectrum = torch.fft.rfft2(white) / radius
    spectrum[..., 0, 0] = 0.0  # not by a radius of infinity: older versions of torch make that NaN
    cloud = torch.fft.irfft2(spectrum, s=(height, width))
    low, high = cloud.amin((2, 3), keepdim=True), cloud.amax((2, 3), keepdim=True)
    light = (x + 1) / 2
    top = light.amax((1, 2, 3), keepdim=True)
    changed: Tensor = 2 * (light + strength * (cloud - low) / (high - low)) * top / (top + strength) - 1
    return changed


def _resample(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Bring an image to a fraction of its size and back, by filters drawn at random."""
    bicubic, antialias = torch.randint(0, 2, (2,), generator=generator).tolist()
    mode = "bicubic" if bicubic else "bilinear"
    small = F.interpolate(x, (_side(x, strength),) * 2, mode=mode, antialias=bool(antialias))
    return F.interpolate(small, x.shape[2:], mode=mode)


def _zoom_in(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Enlarge a part anywhere, of a fraction of the side, by a filter drawn at random."""
    side, size = _side(x, strength), x.shape[-1]
    top, left = torch.randint(0, size - side + 1, (2,), generator=generator).tolist()
    mode = "bicubic" if torch.randint(0, 2, (), generator=generator) else "bilinear"
    return F.interpolate(x[..., top : top + side, left : left + side], x.shape[2:], mode=mode)


def _zoom_out(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Mirror an image at margins of a fraction of the side, and shrink it to its size."""
    margin = max(1, round(strength * x.shape[-1]))
    return F.interpolate(F.pad(x, (margin,) * 4, "reflect"), x.shape[2:], mode="bilinear", antialias=True)


def _pixelate(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Bring an image to a fraction of its size by means, and back by squares."""
    return F.interpolate(F.interpolate(x, (_side(x, strength),) * 2, mode="area"), x.shape[2:], mode="nearest")


def _warp(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Move pixels along a smooth random field; strength is its standard deviation as a fraction of half the side."""
    field = gaussian_blur(torch.randn((len(x), 2, *x.shape[2:]), generator=generator), _pixels(x, 4.0))
    field = field / field.std((2, 3), keepdim=True) * strength
    rows, columns = (torch.linspace(-1, 1, side) for side in x.shape[2:])
    place = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
    return F.grid_sample(x, place + field.permute(0, 2, 3, 1), padding_mode="reflection", align_corners=True)


def _rotate(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate by an angle in radians, to a side drawn at random."""
    angle = strength[:, 0, 0, 0] * (2 * torch.randint(0, 2, (len(x),), generator=generator) - 1)
    zero = torch.zeros_like(angle)
    rows = torch.stack([angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos(), zero], dim=1).reshape(-1, 2, 3)
    place = F.affine_grid(rows, list(x.shape), align_corners=False)
    return F.grid_sample(x, place, padding_mode="reflection", align_corners=False)


def _noise(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    return x + strength * torch.randn(x.shape, generator=generator)


def _impulses(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Set a fraction of all values to black or white."""
    draw = torch.rand(x.shape, generator=generator)
    return torch.where(draw < strength, torch.where(draw < strength / 2, -1.0, 1.0), x)


def _jpeg(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Compress as JPEG of a quality from 1 to 95, and decode again."""
    pixels = to_uint8(x)[0].permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(buffer, "JPEG", quality=round(strength))
    decoded = torch.from_numpy(np.array(Image.open(buffer)).reshape(pixels.shape))
    return to_float(decoded.permute(2, 0, 1)[None])


def shuffle(parts: int) -> Change:
    """Cut images into `parts` x `parts` pieces and put these back in random order, never the old one."""

    def change(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
        count, channels, height, width = x.shape
        pieces = x.reshape(count, channels, parts, height // parts, parts, width // parts)
        pieces = pieces.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        orders = torch.rand(count, parts**2, generator=generator).argsort(1)
        same = (orders == torch.arange(parts**2)).all(1)
        orders[same] = orders[same].roll(1, dims=1)
        pieces = pieces[torch.arange(count)[:, None], orders]
        pieces = pieces.reshape(count, parts, parts, *pieces.shape[2:])
        return pieces.permute(0, 3, 1, 4, 2, 5).reshape(x.shape)

    return change


def _splice(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Put left halves beside right halves of other images."""
    half = x.shape[-1] // 2
    return torch.cat([x[..., :half], x[_partners(len(x), generator)][..., half:]], dim=-1)


def _paste(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Paste a rectangle from the image before, from anywhere to anywhere; strength is its mean side over the image's."""
    size, result = x.shape[-1], x.clone()
    for i, s in enumerate(strength.flatten().tolist()):
        height, width = ((s * size * (0.7 + 0.6 * torch.rand(2, generator=generator))).round().int()).clamp(2, size)
        h, w = int(height), int(width)
        rows = torch.randint(0, size - h + 1, (2,), generator=generator).tolist()
        columns = torch.randint(0, size - w + 1, (2,), generator=generator).tolist()
        piece = x[i - 1, :, rows[0] : rows[0] + h, columns[0] : columns[0] + w]
        result[i, :, rows[1] : rows[1] + h, columns[1] : columns[1] + w] = piece
    return result


def _side(x: Tensor, fraction: float) -> int:
    return max(2, min(x.shape[-1] - 1, round(fraction * x.shape[-1])))


def _pixels(x: Tensor, at_32: float) -> float:
    """Scale a length in pixels of a 32 x 32 image to the size of `x`."""
    return at_32 * x.shape[-1] / 32


def _partners(count: int, generator: torch.Generator) -> Tensor:
    """Return for each of `count` images the index of another one, each index once (itself if there is no other)."""
    order = torch.randperm(count, generator=generator)
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return partner


_contrast = _away_from(lambda x: x.mean((1, 2, 3), keepdim=True))
_saturation = _away_from(lambda x: x.mean(1, keepdim=True))
_detail = _away_from(_coarse)
_blur = _one_by_one(lambda x, strength, generator: gaussian_blur(x, strength))

# Fitting draws in this order: an entry in between changes all later ones.
CORRUPTIONS: dict[str, Corruption] = {
    "less contrast": Corruption("tone", _contrast, 0.5, 0.95),
    "more contrast": Corruption("tone", _contrast, 1.05, 1.6),
    "less detail": Corruption("tone", _detail, 0.4, 0.9),
    "more detail": Corruption("tone", _detail, 1.2, 2.0),
    "flat": Corruption("tone", _flatten, 0.3, 0.8),
    "lighter midtones": Corruption("tone", lambda x, s, _: 2 * ((x + 1) / 2).pow(s) - 1, 0.5, 0.9, True),
    "darker midtones": Corruption("tone", lambda x, s, _: 2 * ((x + 1) / 2).pow(s) - 1, 1.1, 2.0, True),
    "brighter": Corruption("tone", _shift(), 0.1, 0.4),
    "darker": Corruption("tone", _shift(), -0.4, -0.1),
    "fog": Corruption("tone", _fog, 0.2, 1.5),
    "less colour": Corruption("colour", _saturation, 0.0, 0.85),
    "more colour": Corruption("colour", _saturation, 1.15, 2.0),
    "more red": Corruption("colour", _shift(0), 0.1, 0.4),
    "less red": Corruption("colour", _shift(0), -0.4, -0.1),
    "more green": Corruption("colour", _shift(1), 0.1, 0.4),
    "less green": Corruption("colour", _shift(1), -0.4, -0.1),
    "more blue": Corruption("colour", _shift(2), 0.1, 0.4),
    "less blue": Corruption("colour", _shift(2), -0.4, -0.1),
    "swapped channels": Corruption("colour", lambda x, s, _: x.roll(1, dims=1)),
    "negative": Corruption("tone", lambda x, s, _: -x),
    "slight blur": Corruption("smoothness", _blur, 0.35, 0.7),
    "blur": Corruption("smoothness", _blur, 0.7, 1.5),
    "sharper": Corruption("smoothness", lambda x, s, _: x + s * (x - gaussian_blur(x, 0.7)), 0.2, 1.5),
    "resampled": Corruption("smoothness", _one_by_one(_resample), 0.4, 0.95),
    "zoomed in": Corruption("smoothness", _one_by_one(_zoom_in), 0.45, 0.95),
    "zoomed out": Corruption("smoothness", _one_by_one(_zoom_out), 0.06, 0.45),
    "pixelated": Corruption("smoothness", _one_by_one(_pixelate), 0.25, 0.85),
    "warped": Corruption("smoothness", _warp, 0.03, 0.15),
    "rotated": Corruption("smoothness", _rotate, 0.15, 0.8),
    "slight noise": Corruption("noise", _noise, 0.02, 0.08, True),
    "noise": Corruption("noise", _noise, 0.1, 0.4, True),
    "gray noise": Corruption("noise", lambda x, s, g: x + _noise(torch.zeros_like(x[:, :1]), s, g), 0.02, 0.4, True),
    "impulses": Corruption("noise", _impulses, 0.005, 0.15, True),
    "few levels": Corruption("noise", lambda x, s, _: 2 * ((x + 1) / 2 * s.round()).round() / s.round() - 1, 3.0, 16.0),
    "jpeg": Corruption("noise", _one_by_one(_jpeg), 10.0, 90.0),
    "turned left": Corruption("turn", _turn(1)),
    "turned right": Corruption("turn", _turn(3)),
    "upside down": Corruption("turn", _turn(2)),
    "shuffled quarters": Corruption("parts", shuffle(2)),
    "two halves": Corruption("parts", _splice),
    "pasted": Corruption("parts", _paste, 0.2, 0.6),
}


# -- synthetic OOD sets -------------------------------------------------------------------------------------------------


def _interpolation(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Return means of two random images (Du & Mordatch, 2019; the paper's Interp.)."""
    other = pixels[_partners(len(pixels), generator)]
    return ((pixels.int() + other.int() + 1) // 2).to(torch.uint8)


def _constant(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Return images of one random colour each."""
    colours = torch.randint(0, 256, (*pixels.shape[:2], 1, 1), generator=generator, dtype=torch.uint8)
    return colours.expand_as(pixels).contiguous()


def _uniform_noise(pixels: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 256, tuple(pixels.shape), generator=generator, dtype=torch.uint8)


def _brightness(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Shift every image by a quarter of the range, up or down at random."""
    sign = 2.0 * torch.randint(0, 2, (len(pixels), 1, 1, 1), generator=generator) - 1
    return corrupt(pixels, _shift(), 0.5 * sign, generator)


def _zoom(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Enlarge the middle to twice its size."""
    side = _side(pixels, 0.5)
    start = (pixels.shape[-1] - side) // 2
    middle = to_float(pixels[..., start : start + side, start : start + side])
    return to_uint8(F.interpolate(middle, pixels.shape[2:], mode="bicubic", antialias=True))


def _of_strength(name: str, strength: float = 1.0) -> SyntheticSet:
    return lambda pixels, generator: corrupt(pixels, CORRUPTIONS[name].change, strength, generator)


SYNTHETIC_OOD: dict[str, SyntheticSet] = {
    "interpolation": _interpolation,
    "constant": _constant,
    "uniform-noise": _uniform_noise,
    "gaussian-noise": _of_strength("noise", 0.2),
    "impulse-noise": _of_strength("impulses", 0.05),
    "blur": _of_strength("blur", 1.0),
    "contrast": _of_strength("less contrast", 0.4),
    "brightness": _brightness,
    "pixelate": _of_strength("pixelated", 0.5),
    "jpeg": _of_strength("jpeg", 15),
    "zoom": _zoom,
    "upside-down": _of_strength("upside down"),
    "shuffled": _of_strength("shuffled quarters"),
    "spliced": _of_strength("two halves"),
    "inverted": _of_strength("negative"),
    "swapped-channels": _of_strength("swapped channels"),
}
