r"""Made defects: local alterations of normal photos, and harmless changes of whole ones, for the head to tell apart.

Nobody has enough photos of real defects to learn from, and those of tomorrow are of no kind seen before. So the head learns
from normal photos that were altered at one place, as in CutPaste (Li et al., 2021), DRAEM (Zavrtanik et al., 2021) and NSA
(Schlüter et al., 2022). Each kind of `DEFECTS` is a function that any user can add to: it takes a photo, another normal
photo to borrow from, and a random generator, and returns the altered photo with the region that it touched.

What counts as altered is what can be seen: pixels of the region whose change stands out of the noise of the photo. Harmless
changes (`HARMLESS`: exposure, contrast, light from a side, shifts, compression, sensor noise, focus) are applied to photos
with and without defects, so that the head learns to let them pass.

Photos are float32 arrays in [-1, 1], shape `(channels, height, width)`; regions are bool arrays `(height, width)`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage

Photo = npt.NDArray[np.float32]
Region = npt.NDArray[np.bool_]
#: `(photo, donor, rng) -> (altered photo, region)`; neither argument is changed.
Defect = Callable[[Photo, Photo, np.random.Generator], tuple[Photo, Region]]
#: `(photo, rng) -> changed photo`.
Change = Callable[[Photo, np.random.Generator], Photo]

#: Least change of a pixel that counts as altered, in units of [-1, 1]: two and a half gray levels.
VISIBLE = 0.02
#: Weight from which a soft edge belongs to a region; what can be seen of it is decided afterwards.
_EDGE = 0.02


class Altered(NamedTuple):
    """A photo with a made defect."""

    photo: Photo
    mask: Region  #: Where it is altered visibly; nowhere, if the alteration cannot be seen.
    kind: str  #: Its name in `DEFECTS`.


def alter(photo: Photo, donor: Photo, rng: np.random.Generator, defects: Mapping[str, Defect] | None = None) -> Altered:
    """Return a photo with a defect of a kind that is drawn.

    Args:
        photo: The photo.
        donor: Another normal photo, of the same shape.
        rng: Source of all that is random.
        defects: Kinds to draw from; `DEFECTS` if None.
    """
    defects = DEFECTS if defects is None else defects
    kind = list(defects)[int(rng.integers(len(defects)))]
    changed, region = defects[kind](photo, donor, rng)
    changed = changed.clip(-1, 1).astype(np.float32)
    return Altered(changed, _visible(photo, changed, region), kind)


def change_harmlessly(photo: Photo, rng: np.random.Generator, *, chance: float = 0.3) -> Photo:
    """Return a photo after each of the changes in `HARMLESS` that a draw with this chance takes."""
    for change in HARMLESS.values():
        if rng.random() < chance:
            photo = change(photo, rng).clip(-1, 1).astype(np.float32)
    return photo


def noise_level(photo: Photo) -> float:
    """Return a robust estimate of the standard deviation of the noise of a photo (Immerkaer's mask, median form)."""
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    response = ndimage.convolve(photo.mean(0), kernel, mode="mirror")
    # The mask has norm 6; a normal variable's median size is .6745 deviations.
    return float(np.median(np.abs(response))) / 6 / 0.6745 * math.sqrt(len(photo))


def _visible(photo: Photo, changed: Photo, region: Region) -> Region:
    least = max(VISIBLE, noise_level(photo))
    difference = ndimage.gaussian_filter(np.abs(changed - photo).max(0), 0.7)
    # A patch of other texture agrees with the old one at some pixels by chance: these belong to it.
    visible = region & (difference > least)
    closed: Region = visible | (region & ndimage.binary_closing(visible, iterations=2))
    return closed


# -- where and of which form ------------------------------------------------------------------------------------------


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _centre(photo: Photo, rng: np.random.Generator) -> tuple[float, float]:
    """Draw a place: half of the time anywhere, else where there is much to see, since objects have the defects."""
    height, width = photo.shape[1:]
    if rng.random() < 0.5:
        return rng.uniform(0, height), rng.uniform(0, width)
    gray = photo.mean(0)[::2, ::2]
    activity = ndimage.gaussian_filter(np.hypot(ndimage.sobel(gray, 0), ndimage.sobel(gray, 1)), 2).ravel()
    total = np.cumsum(activity.astype(np.float64) + 1e-6)
    place = int(np.searchsorted(total, rng.uniform(0, total[-1])))
    row, column = divmod(min(place, len(total) - 1), gray.shape[1])
    return 2.0 * row, 2.0 * column


def _size(photo: Photo, rng: np.random.Generator, low: float = 2.0, share: float = 0.25) -> float:
    """Draw a radius in pixels, small ones as often as large ones, up to a share of the shorter side."""
    return _log_uniform(rng, low, max(share * min(photo.shape[1:]), low + 1e-3))


def smooth_field(shape: tuple[int, int], scale: float, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return a smooth random field of unit variance whose features have about `scale` pixels."""
    coarse = [max(2, math.ceil(side / scale) + 1) for side in shape]
    values = rng.standard_normal(coarse).astype(np.float32)
    image = Image.fromarray(values).resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    field = np.asarray(image)
    return (field / max(float(field.std()), 1e-6)).astype(np.float32)


def _distance(photo: Photo, rng: np.random.Generator, radius: float) -> npt.NDArray[np.float32]:
    """Return the distance from a drawn centre in units of the radius, along turned axes of unequal length."""
    height, width = photo.shape[1:]
    row, column = _centre(photo, rng)
    y, x = np.ogrid[:height, :width]
    angle, stretch = rng.uniform(0, math.pi), _log_uniform(rng, 1, 3)
    along = (x - column) * math.cos(angle) + (y - row) * math.sin(angle)
    across = (y - row) * math.cos(angle) - (x - column) * math.sin(angle)
    return (np.hypot(along / math.sqrt(stretch), across * math.sqrt(stretch)) / radius).astype(np.float32)


def _blob(photo: Photo, rng: np.random.Generator, radius: float) -> npt.NDArray[np.float32]:
    """Return weights in [0, 1] of a blob of irregular outline with a soft or a sharp edge."""
    distance = _distance(photo, rng, radius)
    if radius > 3:
        distance = distance + rng.uniform(0, 0.5) * smooth_field(photo.shape[1:], radius, rng)
    softness = _log_uniform(rng, 0.05, 0.5)
    weight = 1 / (1 + np.exp(((distance - 1) / softness).clip(-30, 30)))
    return np.asarray(weight, np.float32)


def _stroke(photo: Photo, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return weights in [0, 1] of a thin line that wanders, drawn at twice the size for smooth edges."""
    height, width = photo.shape[1:]
    length = _log_uniform(rng, 8, max(9, 0.8 * min(height, width)))
    row, column = _centre(photo, rng)
    angle, bend = rng.uniform(0, 2 * math.pi), rng.normal(0, 0.25)
    points, step = [(column, row)], length / 12
    for _ in range(12):
        angle += rng.normal(bend, 0.15)
        column, row = column + step * math.cos(angle), row + step * math.sin(angle)
        points.append((column, row))
    canvas = Image.new("L", (2 * width, 2 * height))
    thickness = max(1, round(2 * _log_uniform(rng, 0.6, 4)))
    ImageDraw.Draw(canvas).line([(2 * x, 2 * y) for x, y in points], fill=255, width=thickness, joint="curve")
    return (np.asarray(canvas.resize((width, height), Image.Resampling.BOX), np.float32) / 255).astype(np.float32)


def _paint(photo: Photo, weight: npt.NDArray[np.float32], other: Photo) -> tuple[Photo, Region]:
    """Lay another photo over this one by weights."""
    return photo + weight * (other - photo), weight > _EDGE


def _tint(photo: Photo, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Draw a change of brightness, alike in all channels or with a colour, of barely visible to full strength."""
    strength = _log_uniform(rng, 0.06, 1.2) * (1 if rng.random() < 0.5 else -1)
    colour = np.ones(len(photo)) if rng.random() < 0.5 else rng.uniform(0, 1, len(photo))
    return (strength * colour).astype(np.float32)[:, None, None]


def _patch(photo: Photo, rng: np.random.Generator, *, thin: bool) -> tuple[slice, slice]:
    """Draw a rectangle within the photo around a drawn centre; a thin one for scars."""
    height, width = photo.shape[1:]
    shortest = min(height, width)
    if thin:
        sides = [rng.uniform(2, max(3, shortest / 16)), _log_uniform(rng, 8, max(9, shortest / 3))]
    else:
        sides = [_log_uniform(rng, 4, max(5, shortest / 3)) for _ in range(2)]
    rng.shuffle(sides)
    tall, wide = (min(max(2, round(side)), limit) for side, limit in zip(sides, (height, width), strict=True))
    row, column = _centre(photo, rng)
    top = int(np.clip(round(row - tall / 2), 0, height - tall))
    left = int(np.clip(round(column - wide / 2), 0, width - wide))
    return slice(top, top + tall), slice(left, left + wide)


# -- kinds ------------------------------------------------------------------------------------------------------------


def _speck(photo: Photo, donor: Photo, rng: np.random.Generator) -> tuple[Photo, Region]:
    """Small dots, darker or lighter."""
    changed, region = photo.copy(), np.zeros(photo.shape[1:], bool)
    for _ in range(int(rng.integers(1, 4))):
        weight = _blob(photo, rng, _log_uniform(rng, 0.8, 4))
        changed = changed + weight * _tint(photo, rng)
        region |= weight > _EDGE
    return changed, region


def _stain(photo: Photo, donor: Photo, rng: np.random.Generator) -> tuple[Photo, Region]:
    """A spot of other brightness or colour; the texture shows through."""
    weight = _blob(photo, rng, _size(photo, rng))
    return photo + weight * _tint(photo, rng), weight > _EDGE


def _cover(photo: Photo, donor: Photo, rng: np.random.Generator) -> tuple[Photo, Region]:
    """A spot of one colour that hides what is below, such as paint or dirt."""
    weight = _blob(photo, rng, _size(photo, rng))
    colour = photo.mean((1, 2), keepdims=True) + _tint(photo, rng)
    return _paint(photo, weight, np.broadcast_to(colour, photo.shape))


def _scratch(photo: Photo, donor: Photo, rng: np.random.Generator) -> tuple[Photo, Region]:
    """A thin line, lighter or darker, sometimes with a shadow on the other side."""
    weight = _stroke(photo, rng)
    tint = _tint(photo, rng)
    changed = photo + weight * tint
    if rng.random() < 0.3:
        shadow = np.roll(weight, (1, 1), (0, 1)) * (1 - weight)
        return changed - shadow * tint, np.maximum(weight, shadow) > _EDGE
    return changed, weight > _EDGE


def _foreign_texture(photo: Photo, donor: Photo, rng: np.random.Generator) -> tuple[Photo, Region]:
    """A texture that is none of the photos', under a mask of smooth noise (DRAEM)."""
    shape = photo.shape[1:]
    coarse = smooth_field(shape, _log_uniform(rng, 2, 16), rng)
    fine = smooth_field(shape, _log_uniform(rng, 1, 4), rng)
    field = coarse + rng.uniform(0, 1) * fine
    if rng.random() < 0.3:
        field = np.sin(rng.uniform(1, 4) * field)
    other = photo.mean((1, 2), keepdims=True) + _tint(photo, rng) + rng.uniform(0.05, 0.5) * field
    mask = smooth_field(shape, _log_uniform(rng, 6, 48), rng)
    near = _distance(photo, rng, _size(photo, rng, low=6)) < 1
    weight = ((mask > rng.uniform(-0.5, 1)) & near).astype(np.float32)
    opacity = rng.uniform(0.3, 1)
    return _paint(photo, weight * opacity, other.astype(np.float32))[0], weight > 0


def _foreign_patch(photo: Photo, donor: Photo, rng: np.random.Generator) -> tuple[Photo, Region]:
    """A piece of another photo, or of another place, blended in at a soft edge (NSA's aim with a plain blend)."""
    source = donor if rng.random() < 0.5 else photo
    shift = rng.integers(4, max(5, min(photo.shape[1:]) // 2), 2) * rng.choice((-1, 1), 2)
    other = np.roll(source, tuple(shift), (1, 2))
    if rng.random() < 0.3:
        other = other[:, ::-1]
    return _paint(photo, _blob(photo, rng, _size(photo, rng, low=3)), np.ascontiguousarray(other))


def _scar(photo: Photo, donor: Photo, rng: np.random.Generator) -> tuple[Photo, Region]:
    """A thin rectangle cut from elsewhere, turned and pasted (CutPaste-Scar), with its tone moved a little."""
    rows, columns = _patch(photo, rng, thin=True)
    other = np.roll(donor, tuple(rng.integers(0, photo.shape[1:])), (1, 2)) + 0.5 * _tint(photo, rng)
    weight = np.zeros(photo.shape[1:], np.float32)
    weight[rows, columns] = 1
    centre = np.array([(rows.start + rows.stop) / 2, (columns.start + columns.stop) / 2])
    angle = rng.uniform(0, math.pi)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    weight = ndimage.affine_transform(weight, turn, centre - turn @ centre, order=1)
    return _paint(photo, weight, other)


def _turned_patch(photo: Photo, donor: Photo, rng: np.random.Generator) -> tuple[Photo, Region]:
    """A square of the photo, mirrored or turned in its place: all there, in the wrong order."""
    rows, columns = _patch(photo, rng, thin=False)
    side = min(rows.stop - rows.start, columns.stop - columns.start)
    rows, columns = slice(rows.start, rows.start + side), slice(columns.start, columns.start + side)
    changed, region = photo.copy(), np.zeros(photo.shape[1:], bool)
    piece = np.rot90(photo[:, rows, columns], int(rng.integers(1, 4)), (1, 2))
    changed[:, rows, columns] = piece[:, :, ::-1] if rng.random() < 0.3 else piece
    region[rows, columns] = True
    return changed, region


def _warp(photo: Photo, donor: Photo, rng: np.random.Generator) -> tuple[Photo, Region]:
    """A place that is bent, swollen or shrunk: a wrong shape of the right material."""
    height, width = photo.shape[1:]
    radius = _size(photo, rng, low=4, share=0.3)
    weight = np.exp(-(_distance(photo, rng, radius) ** 2))
    amount = _log_uniform(rng, 1.5, max(2.0, 0.6 * radius))
    angle = rng.uniform(0, 2 * math.pi)
    bend = [amount * math.sin(angle) * weight, amount * math.cos(angle) * weight]
    if rng.random() < 0.5:
        bend = [amount * weight * smooth_field((height, width), radius, rng) for _ in range(2)]
    grid = np.mgrid[:height, :width].astype(np.float32)
    places = [axis + move for axis, move in zip(grid, bend, strict=True)]
    changed = np.stack([ndimage.map_coordinates(band, places, order=1, mode="reflect") for band in photo])
    return changed, weight > _EDGE


def _missing(photo: Photo, donor: Photo, rng: np.random.Generator) -> tuple[Photo, Region]:
    """A place without what is there: filled smoothly from its rim, such as a part that broke off."""
    weight = _blob(photo, rng, _size(photo, rng, low=3))
    outside = (1 - weight).clip(0, 1)
    radius = max(2.0, math.sqrt(float((weight > 0.5).sum())) / 1.5)
    total = ndimage.gaussian_filter(outside, radius) + 1e-3
    filled = np.stack([ndimage.gaussian_filter(band * outside, radius) / total for band in photo])
    grain = noise_level(photo) * rng.standard_normal(photo.shape)
    return _paint(photo, weight, (filled + grain).astype(np.float32))


def _blur(photo: Photo, donor: Photo, rng: np.random.Generator) -> tuple[Photo, Region]:
    """A place out of focus or worn smooth."""
    amount = _log_uniform(rng, 1, 6)
    blurred = np.stack([ndimage.gaussian_filter(band, amount) for band in photo])
    return _paint(photo, _blob(photo, rng, _size(photo, rng, low=4)), blurred)


def _roughness(photo: Photo, donor: Photo, rng: np.random.Generator) -> tuple[Photo, Region]:
    """A place that is rough: grain of some size."""
    strength = _log_uniform(rng, 0.05, 0.5)
    grain = smooth_field(photo.shape[1:], _log_uniform(rng, 1, 4), rng)
    weight = _blob(photo, rng, _size(photo, rng, low=4))
    return photo + strength * weight * grain, weight > _EDGE


def _dent(photo: Photo, donor: Photo, rng: np.random.Generator) -> tuple[Photo, Region]:
    """Light on one side and shade on the other, as a dent or a bump has them."""
    radius = _size(photo, rng, low=3)
    height, width = photo.shape[1:]
    row, column = _centre(photo, rng)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle = rng.uniform(0, 2 * math.pi)
    along = ((x - column) * math.cos(angle) + (y - row) * math.sin(angle)) / radius
    weight = np.exp(-((x - column) ** 2 + (y - row) ** 2) / (2 * (radius / 1.5) ** 2))
    strength = _log_uniform(rng, 0.1, 1)
    return photo + (strength * along * weight).astype(np.float32), weight > _EDGE


DEFECTS: dict[str, Defect] = {
    "speck": _speck,
    "stain": _stain,
    "cover": _cover,
    "scratch": _scratch,
    "foreign texture": _foreign_texture,
    "foreign patch": _foreign_patch,
    "scar": _scar,
    "turned patch": _turned_patch,
    "warp": _warp,
    "missing": _missing,
    "blur": _blur,
    "roughness": _roughness,
    "dent": _dent,
}
"""Kinds of made defects by name."""


# -- harmless changes -------------------------------------------------------------------------------------------------


def _exposure(photo: Photo, rng: np.random.Generator) -> Photo:
    return photo + np.float32(rng.normal(0, 0.06))


def _contrast(photo: Photo, rng: np.random.Generator) -> Photo:
    mean = photo.mean()
    return np.asarray(mean + (photo - mean) * math.exp(rng.normal(0, 0.1)), np.float32)


def _side_light(photo: Photo, rng: np.random.Generator) -> Photo:
    """Light that falls off smoothly across the photo."""
    height, width = photo.shape[1:]
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None]
    angle = rng.uniform(0, 2 * math.pi)
    slope = rng.normal(0, 0.05) * (x * math.cos(angle) + y * math.sin(angle))
    return photo + slope.astype(np.float32)


def _shift(photo: Photo, rng: np.random.Generator) -> Photo:
    """A part of a pixel up to two, as a camera moves."""
    move = rng.uniform(-2, 2, 2)
    return np.stack([ndimage.shift(band, move, order=1, mode="reflect") for band in photo])


def _sensor_noise(photo: Photo, rng: np.random.Generator) -> Photo:
    return photo + np.float32(_log_uniform(rng, 0.003, 0.03)) * rng.standard_normal(photo.shape, np.float32)


def _focus(photo: Photo, rng: np.random.Generator) -> Photo:
    amount = rng.uniform(0.2, 0.7)
    return np.stack([ndimage.gaussian_filter(band, amount) for band in photo])


def _compression(photo: Photo, rng: np.random.Generator) -> Photo:
    """JPEG of quality 75 to 95; bands of photos that are neither gray nor RGB one by one."""
    quality = int(rng.integers(75, 96))
    pixels = ((photo + 1) * 127.5).round().clip(0, 255).astype(np.uint8)
    groups = [pixels.transpose(1, 2, 0)] if len(pixels) == 3 else list(pixels)
    found = []
    for group in groups:
        file = io.BytesIO()
        Image.fromarray(group).save(file, "JPEG", quality=quality)
        found.append(np.asarray(Image.open(file)))
    stacked = found[0].transpose(2, 0, 1) if len(pixels) == 3 else np.stack(found)
    return stacked.astype(np.float32) / 127.5 - 1


HARMLESS: dict[str, Change] = {
    "exposure": _exposure,
    "contrast": _contrast,
    "light from a side": _side_light,
    "shift": _shift,
    "focus": _focus,
    "sensor noise": _sensor_noise,
    "compression": _compression,
}
"""Changes of whole photos that are no defects, by name, in the order in which they happen to a photo."""
