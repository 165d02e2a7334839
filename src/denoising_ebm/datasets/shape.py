"""From images of any size to squares of one size."""

from __future__ import annotations

import math
from typing import NamedTuple

from PIL import Image

from denoising_ebm.literals import Aspect, Resize

RESIZE: dict[Resize, Image.Resampling] = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}
"""Antialiasing filters by name."""

LEAST_SEEN = 0.5
"""Share of an image that its central square must show to stand for it unasked."""


class Fitted(NamedTuple):
    """A square image, and how it came from the stored one."""

    image: Image.Image
    seen: float  #: Share of the area that is left.
    scale: float  #: Pixels before for one of now, along a side.


def fit_shape(
    image: Image.Image,
    image_size: int | None,
    resize: Resize | None,
    center_crop: int | None,
    aspect: Aspect | None = None,
    border: tuple[int, int, int] = (255, 255, 255),
) -> Fitted:
    """Crop and resize to a square of `image_size`, or refuse.

    Args:
        image: In mode L or RGB.
        image_size: Height and width to bring it to.
        resize: The filter; None to refuse other sizes.
        center_crop: Side of the central square that is cut out first.
        aspect: What is done with an image that is not square; None for its central square, if that is at least half of it.
        border: Colour beside an image that is padded.

    Raises:
        ValueError: If it does not fit.
    """
    size = f"{image.width}x{image.height}"
    area = image.width * image.height
    if center_crop is not None:
        if min(image.size) < center_crop and image.size == (image_size, image_size):
            return Fitted(image, 1.0, 1.0)  # made already
        if min(image.size) < center_crop:
            raise ValueError(f"is {size}, smaller than the center crop of {center_crop}")
        image = _central_square(image, center_crop)
    if resize is not None and image_size is not None and image.size != (image_size, image_size):
        shortest, longest = min(image.size), max(image.size)
        target, filtered = (image_size, image_size), RESIZE[resize]
        if shortest < longest and aspect == "stretch":
            return Fitted(image.resize(target, filtered), 1.0, math.sqrt(area) / image_size)
        if shortest < longest and aspect == "pad":
            return Fitted(_padded(image, image_size, filtered, border), 1.0, longest / image_size)
        if shortest < LEAST_SEEN * longest and aspect is None:
            raise ValueError(
                f"is {size}, of which the central square shows only {shortest / longest:.0%}; --aspect pad, stretch or crop "
                "says how to bring it to a square"
            )
        square = _central_square(image, shortest).resize(target, filtered)
        return Fitted(square, shortest**2 / area, shortest / image_size)
    size = f"{image.width}x{image.height}"
    if image_size is not None and image.size != (image_size, image_size):
        raise ValueError(f"is {size}, expected {image_size}x{image_size}; --resize brings it there")
    if image.width != image.height:
        raise ValueError(f"is {size}, not square; give the image size and --resize to crop and resize it")
    return Fitted(image, image.width**2 / area, 1.0)


def _central_square(image: Image.Image, side: int) -> Image.Image:
    if image.size == (side, side):
        return image  # `crop` would copy it
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _padded(image: Image.Image, side: int, resampling: Image.Resampling, border: tuple[int, int, int]) -> Image.Image:
    """Return all of an image in the middle of a square."""
    longest = max(image.size)
    width, height = (max(1, round(length * side / longest)) for length in image.size)
    level = round(0.299 * border[0] + 0.587 * border[1] + 0.114 * border[2])
    square = Image.new(image.mode, (side, side), border if image.mode == "RGB" else level)
    square.paste(image.resize((width, height), resampling), ((side - width) // 2, (side - height) // 2))
    return square
