"""Slight changes of normal images, drawn at random: what a detector learns the looks of odd images from.

A detector's discriminants need to know in which directions images can become odd. No odd images are asked of the user:
each alteration changes a normal image in one respect, by a strength drawn between two bounds, from barely visible to
plain. None of them takes the mean of images, which is a test set of the paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from denoising_ebm.datasets.images import to_float, to_uint8
from denoising_ebm.ood import outliers
from denoising_ebm.ood.anomaly_maps import smoothed

Group = Literal["tone", "colour", "smoothness", "noise", "turn", "parts"]

#: A change of images in [-1, 1], shape (n, channels, height, width), by strengths of shape (n, 1, 1, 1).
Change = Callable[[Tensor, Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Alteration:
    """One way to alter images.

    Attributes:
        group: What it concerns; alterations of one group resemble each other.
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
        """Return altered images.

        Args:
            pixels: uint8, shape `(n, channels, height, width)`.
            generator: Source of strengths and of all else that is random.

        Returns:
            uint8, same shape.
        """
        share = torch.rand((len(pixels), 1, 1, 1), generator=generator)
        if self.logarithmic:
            strength = (math.log(self.low) + share * math.log(self.high / self.low)).exp()
        else:
            strength = self.low + share * (self.high - self.low)
        return to_uint8(self.change(to_float(pixels), strength, generator).clamp(-1, 1))


def alterations(channels: int) -> dict[str, Alteration]:
    """Return the alterations of images with so many channels, by name: those of colour need three."""
    return {name: each for name, each in ALTERATIONS.items() if channels == 3 or each.group != "colour"}


def _around(centre: Callable[[Tensor], Tensor]) -> Change:
    return lambda x, strength, generator: centre(x) + strength * (x - centre(x))


def _gamma(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    return 2 * ((x + 1) / 2).pow(strength) - 1


def _shift(channel: int | None = None) -> Change:
    def change(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
        which = torch.ones(x.shape[1]) if channel is None else torch.eye(x.shape[1])[channel]
        return x + strength * which[:, None, None]

    return change


def _flat(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    mean, coarse = x.mean((2, 3), keepdim=True), _coarse(x)
    return mean + strength * (coarse - mean) + (x - coarse)


def _coarse(x: Tensor) -> Tensor:
    return smoothed(x, _pixels(x, 2.0))


def _sharpen(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    return x + strength * (x - smoothed(x, 0.7))


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


def _gaussian(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    return x + strength * torch.randn(x.shape, generator=generator)


def _gray_noise(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    return x + strength * torch.randn((len(x), 1, *x.shape[2:]), generator=generator)


def _impulse(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    draw = torch.rand(x.shape, generator=generator)
    return torch.where(draw < strength, torch.where(draw < strength / 2, -1.0, 1.0), x)


def _poster(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    steps = strength.round()
    return 2 * ((x + 1) / 2 * steps).round() / steps - 1


def _one_by_one(change: Callable[[Tensor, float, torch.Generator], Tensor]) -> Change:
    return lambda x, strength, generator: torch.cat(
        [change(image[None], float(s), generator) for image, s in zip(x, strength, strict=True)]
    )


def _blur(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    return smoothed(x, strength)


def _resample(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Bring images to a share `strength` of their size and back, by filters drawn at random."""
    bicubic, antialias = torch.randint(0, 2, (2,), generator=generator).tolist()
    mode = "bicubic" if bicubic else "bilinear"
    small = F.interpolate(x, (_side(x, strength),) * 2, mode=mode, antialias=bool(antialias))
    return F.interpolate(small, x.shape[2:], mode=mode)


def _zoom_in(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    side, size = _side(x, strength), x.shape[-1]
    top, left = torch.randint(0, size - side + 1, (2,), generator=generator).tolist()
    mode = "bicubic" if torch.randint(0, 2, (), generator=generator) else "bilinear"
    return F.interpolate(x[..., top : top + side, left : left + side], x.shape[2:], mode=mode)


def _zoom_out(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    margin = max(1, round(strength * x.shape[-1]))
    return F.interpolate(F.pad(x, (margin,) * 4, "reflect"), x.shape[2:], mode="bilinear", antialias=True)


def _pixelate(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    return F.interpolate(F.interpolate(x, (_side(x, strength),) * 2, mode="area"), x.shape[2:], mode="nearest")


def _jpeg(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    return to_float(outliers.jpeg(to_uint8(x), generator, quality=round(strength)))


def _warp(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Move pixels along a smooth random field; strength is its standard deviation as a share of half the side."""
    field = smoothed(torch.randn((len(x), 2, *x.shape[2:]), generator=generator), _pixels(x, 4.0))
    field = field / field.std((2, 3), keepdim=True) * strength
    rows, columns = (torch.linspace(-1, 1, side) for side in x.shape[2:])
    place = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
    return F.grid_sample(x, place + field.permute(0, 2, 3, 1), padding_mode="reflection", align_corners=True)


def _rotate(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    angle = strength[:, 0, 0, 0] * (2 * torch.randint(0, 2, (len(x),), generator=generator) - 1)
    zero = torch.zeros_like(angle)
    rows = torch.stack([angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos(), zero], dim=1).reshape(-1, 2, 3)
    place = F.affine_grid(rows, list(x.shape), align_corners=False)
    return F.grid_sample(x, place, padding_mode="reflection", align_corners=False)


def _turn(quarters: int) -> Change:
    return lambda x, strength, generator: torch.rot90(x, quarters, (2, 3))


def _as_set(make: outliers.Make) -> Change:
    return lambda x, strength, generator: to_float(make(to_uint8(x), generator))


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


def _side(x: Tensor, share: float) -> int:
    return max(2, min(x.shape[-1] - 1, round(share * x.shape[-1])))


def _pixels(x: Tensor, at_32: float) -> float:
    """Scale a length in pixels of a 32 x 32 image to the size of `x`."""
    return at_32 * x.shape[-1] / 32


_GRAY = _around(lambda x: x.mean(1, keepdim=True))
_MEAN = _around(lambda x: x.mean((1, 2, 3), keepdim=True))
_DETAIL = _around(_coarse)

ALTERATIONS: dict[str, Alteration] = {
    "less contrast": Alteration("tone", _MEAN, 0.5, 0.95),
    "more contrast": Alteration("tone", _MEAN, 1.05, 1.6),
    "less detail": Alteration("tone", _DETAIL, 0.4, 0.9),
    "more detail": Alteration("tone", _DETAIL, 1.2, 2.0),
    "flat": Alteration("tone", _flat, 0.3, 0.8),
    "lighter midtones": Alteration("tone", _gamma, 0.5, 0.9, True),
    "darker midtones": Alteration("tone", _gamma, 1.1, 2.0, True),
    "brighter": Alteration("tone", _shift(), 0.1, 0.4),
    "darker": Alteration("tone", _shift(), -0.4, -0.1),
    "fog": Alteration("tone", _fog, 0.2, 1.5),
    "less colour": Alteration("colour", _GRAY, 0.0, 0.85),
    "more colour": Alteration("colour", _GRAY, 1.15, 2.0),
    "more red": Alteration("colour", _shift(0), 0.1, 0.4),
    "less red": Alteration("colour", _shift(0), -0.4, -0.1),
    "more green": Alteration("colour", _shift(1), 0.1, 0.4),
    "less green": Alteration("colour", _shift(1), -0.4, -0.1),
    "more blue": Alteration("colour", _shift(2), 0.1, 0.4),
    "less blue": Alteration("colour", _shift(2), -0.4, -0.1),
    "swapped channels": Alteration("colour", lambda x, strength, generator: x.roll(1, dims=1)),
    "negative": Alteration("tone", lambda x, strength, generator: -x),
    "slight blur": Alteration("smoothness", _one_by_one(_blur), 0.35, 0.7),
    "blur": Alteration("smoothness", _one_by_one(_blur), 0.7, 1.5),
    "sharper": Alteration("smoothness", _sharpen, 0.2, 1.5),
    "resampled": Alteration("smoothness", _one_by_one(_resample), 0.4, 0.95),
    "zoomed in": Alteration("smoothness", _one_by_one(_zoom_in), 0.45, 0.95),
    "zoomed out": Alteration("smoothness", _one_by_one(_zoom_out), 0.06, 0.45),
    "pixelated": Alteration("smoothness", _one_by_one(_pixelate), 0.25, 0.85),
    "warped": Alteration("smoothness", _warp, 0.03, 0.15),
    "rotated": Alteration("smoothness", _rotate, 0.15, 0.8),
    "slight noise": Alteration("noise", _gaussian, 0.02, 0.08, True),
    "noise": Alteration("noise", _gaussian, 0.1, 0.4, True),
    "gray noise": Alteration("noise", _gray_noise, 0.02, 0.4, True),
    "impulses": Alteration("noise", _impulse, 0.005, 0.15, True),
    "few levels": Alteration("noise", _poster, 3.0, 16.0),
    "jpeg": Alteration("noise", _one_by_one(_jpeg), 10.0, 90.0),
    "turned left": Alteration("turn", _turn(1)),
    "turned right": Alteration("turn", _turn(3)),
    "upside down": Alteration("turn", _turn(2)),
    "shuffled quarters": Alteration("parts", _as_set(outliers.shuffled)),
    "two halves": Alteration("parts", _as_set(outliers.spliced)),
    "pasted": Alteration("parts", _paste, 0.2, 0.6),
}
