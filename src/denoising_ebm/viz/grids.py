"""Sheets of images drawn pixel by pixel: samples, Markov chains, maps of energy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from denoising_ebm.datasets.images import to_uint8
from denoising_ebm.utils.io import write_atomically

PAPER = 255
INK = "#333333"
LABEL_HEIGHT = 20


def image_grid(images: Tensor, *, columns: int, scale: int = 2, padding: int = 1) -> Image.Image:
    """Images in rows of `columns`, left to right, each pixel drawn as a square of `scale` x `scale`.

    Args:
        images: Floats in [-1, 1], clamped to it; shape `(n, 1 or 3, h, w)`, n >= 1.
        columns: Images in a row, >= 1. Missing ones at the end are left white.
        scale: Edge of a drawn pixel, >= 1.
        padding: White pixels around and between images, before scaling, >= 0.

    Returns:
        A gray ("L") or "RGB" picture. Image i starts at pixel
        `scale * (padding + (i % columns) * (w + padding))` from the left, and likewise `i // columns` from the top.

    Raises:
        ValueError: If the shape or a number is out of range.
    """
    if images.ndim != 4 or len(images) == 0 or images.shape[1] not in (1, 3):
        raise ValueError(f"images must have shape (n >= 1, 1 or 3, h, w), got {tuple(images.shape)}")
    if columns < 1 or scale < 1 or padding < 0:
        raise ValueError(f"columns and scale must be >= 1, padding >= 0; got {columns}, {scale}, {padding}")
    pixels = _to_array(images)
    count, height, width, channels = pixels.shape
    rows = math.ceil(count / columns)
    sheet = np.full(
        (rows * (height + padding) + padding, columns * (width + padding) + padding, channels), PAPER, dtype=np.uint8
    )
    for i, image in enumerate(pixels):
        top = padding + (i // columns) * (height + padding)
        left = padding + (i % columns) * (width + padding)
        sheet[top : top + height, left : left + width] = image
    return _from_array(_enlarge(sheet, scale))


def to_picture(image: Tensor) -> Image.Image:
    """Return one image as a gray ("L") or "RGB" picture, pixel for pixel.

    Args:
        image: uint8, or floats in [-1, 1], which are clamped to it; shape `(1 or 3, h, w)`.

    Raises:
        ValueError: If the shape is another.
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"image must have shape (1 or 3, h, w), got {tuple(image.shape)}")
    return _from_array(_to_array(image[None])[0])


def save_picture(picture: Image.Image, path: str | Path) -> None:
    """Write a picture as PNG; the file appears complete or not at all. Missing folders are made."""
    write_atomically(Path(path), partial(picture.save, format="PNG"))


def save_grid(images: Tensor, path: str | Path, *, columns: int, scale: int = 2, padding: int = 1) -> None:
    """Write `image_grid` as PNG; the file appears complete or not at all. Missing folders are made.

    Args:
        images: As for `image_grid`.
        path: The file to write or replace.
        columns: As for `image_grid`.
        scale: As for `image_grid`.
        padding: As for `image_grid`.
    """
    save_picture(image_grid(images, columns=columns, scale=scale, padding=padding), path)


def trajectory_grid(
    states: Sequence[Tensor], labels: Sequence[str], *, scale: int = 2, padding: int = 1
) -> Image.Image:
    """States of Markov chains: a row for each chain, a column for each chain time, labels on top (paper, figure 5).

    Args:
        states: Images at each chain time, floats in [-1, 1], each of shape `(n, 1 or 3, h, w)`.
        labels: One for each chain time.
        scale: Edge of a drawn pixel, >= 1.
        padding: White pixels between images, before scaling, >= 0.

    Returns:
        The grid of `image_grid`, `n` rows by `len(states)` columns, below a band of 20 pixels with the labels.

    Raises:
        ValueError: If `states` is empty, or shapes or the number of labels do not agree.
    """
    if not states or len(labels) != len(states):
        raise ValueError(f"need one label for each of at least one state, got {len(states)} and {len(labels)}")
    if len({state.shape for state in states}) != 1:
        raise ValueError(f"states have different shapes: {sorted({tuple(state.shape) for state in states})}")
    times = len(states)
    chains = torch.stack([state.detach().float().cpu() for state in states], dim=1).flatten(0, 1)
    grid = image_grid(chains, columns=times, scale=scale, padding=padding)
    sheet = Image.new(grid.mode, (grid.width, grid.height + LABEL_HEIGHT), "white")
    sheet.paste(grid, (0, LABEL_HEIGHT))
    cell = scale * (states[0].shape[-1] + padding)
    for i, label in enumerate(labels):
        _draw_label(sheet, label, centre=scale * padding / 2 + cell * (i + 0.5), top=0, width=cell - 4)
    return sheet


def heat_overlay(
    image: Tensor, pixel_map: Tensor, *, limit: float, signed: bool = False, scale: int = 2
) -> Image.Image:
    """An image with its map below: energies from 0 (black) to `limit` (yellow), or signed values around 0 (white).

    Args:
        image: Floats in [-1, 1], shape `(1 or 3, h, w)`.
        pixel_map: Value of each pixel, shape `(h, w)`; values above `limit` are drawn as `limit`.
        limit: Value of the strongest colour, > 0. Maps are comparable only under the same limit.
        signed: Draw values from -`limit` (blue) over 0 (white) to `limit` (red), instead of none below 0.
        scale: Edge of a drawn pixel, >= 1.

    Returns:
        An "RGB" picture, `scale * w` wide and `scale * (2 h + 1)` high: image, a white line, map.

    Raises:
        ValueError: If shapes do not agree, the map is not finite, or `limit` is not positive.
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3) or pixel_map.shape != image.shape[1:]:
        raise ValueError(f"image {tuple(image.shape)} and pixel_map {tuple(pixel_map.shape)} do not fit")
    if not (math.isfinite(limit) and limit > 0):
        raise ValueError(f"limit must be finite and > 0, got {limit}")
    if not bool(torch.isfinite(pixel_map).all()):
        raise ValueError("pixel_map contains values that are not finite")
    pixels = np.broadcast_to(_to_array(image[None])[0], (*image.shape[1:], 3))
    shares = (pixel_map.detach().double().cpu().numpy() / limit).clip(-1 if signed else 0, 1)
    colours = _coloured(shares, signed)
    line = np.full((1, image.shape[2], 3), PAPER, dtype=np.uint8)
    return _from_array(_enlarge(np.concatenate([pixels, line, colours]), scale))


def heat_map_sheet(
    images: Tensor,
    maps: Tensor,
    labels: Sequence[str],
    *,
    limit: float | None = None,
    signed: bool = False,
    columns: int = 8,
    scale: int = 3,
) -> Image.Image:
    """Many `heat_overlay` on one sheet, under one limit, with a label each and a colour bar.

    Args:
        images: Floats in [-1, 1], shape `(n, 1 or 3, h, w)`.
        maps: Value of each pixel, shape `(n, h, w)`.
        labels: One for each image.
        limit: Value of the strongest colour; the 99.5 % quantile of all values (of their sizes if signed) if None.
        signed: As for `heat_overlay`.
        columns: Images in a row, >= 1.
        scale: Edge of a drawn pixel, >= 1.

    Returns:
        An "RGB" picture.

    Raises:
        ValueError: If the counts do not agree or are zero, or as for `heat_overlay`.
    """
    if not len(images) == len(maps) == len(labels) or len(images) == 0:
        raise ValueError(f"need as many images, maps and labels, got {len(images)}, {len(maps)}, {len(labels)}")
    if columns < 1:
        raise ValueError(f"columns must be >= 1, got {columns}")
    if limit is None:
        values = maps.detach().double().cpu().numpy()
        limit = float(np.quantile(np.abs(values) if signed else values, 0.995))
    tiles = [
        heat_overlay(image, values, limit=limit, signed=signed, scale=scale)
        for image, values in zip(images, maps, strict=True)
    ]
    columns = min(columns, len(tiles))
    gap = 8
    cell_width, cell_height = tiles[0].width + gap, tiles[0].height + LABEL_HEIGHT + gap
    rows = math.ceil(len(tiles) / columns)
    bar_band = 64
    sheet = Image.new("RGB", (columns * cell_width + bar_band, rows * cell_height), "white")
    for i, (tile, label) in enumerate(zip(tiles, labels, strict=True)):
        left, top = (i % columns) * cell_width, (i // columns) * cell_height
        _draw_label(sheet, label, centre=left + tile.width / 2, top=top, width=tile.width)
        sheet.paste(tile, (left, top + LABEL_HEIGHT))
    _draw_colour_bar(
        sheet, left=columns * cell_width, top=LABEL_HEIGHT, height=tiles[0].height, limit=limit, signed=signed
    )
    return sheet


def _to_array(images: Tensor) -> npt.NDArray[np.uint8]:
    """Return uint8 or float images `(n, c, h, w)` as uint8 `(n, h, w, c)`."""
    pixels = images if images.dtype == torch.uint8 else to_uint8(images.detach().float())
    array: npt.NDArray[np.uint8] = pixels.cpu().permute(0, 2, 3, 1).numpy()
    return array


def _enlarge(pixels: npt.NDArray[np.uint8], scale: int) -> npt.NDArray[np.uint8]:
    return pixels.repeat(scale, axis=0).repeat(scale, axis=1)


def _from_array(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _draw_label(sheet: Image.Image, text: str, *, centre: float, top: float, width: float) -> None:
    """Write one line into the label band, as large as fits the width."""
    for size in range(13, 6, -1):
        font = ImageFont.load_default(size)
        if font.getlength(text) <= width:
            break
    ImageDraw.Draw(sheet).text((centre, top + LABEL_HEIGHT / 2), text, fill=INK, font=font, anchor="mm")


def _draw_colour_bar(sheet: Image.Image, *, left: int, top: int, height: int, limit: float, signed: bool) -> None:
    levels = np.linspace(1, -1 if signed else 0, height)[:, None].repeat(10, axis=1)
    sheet.paste(Image.fromarray(_coloured(levels, signed)), (left, top))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    draw.text((left + 14, top), f"{limit:.3g}", fill=INK, font=font, anchor="lt")
    draw.text((left + 14, top + height), f"{-limit:.3g}" if signed else "0", fill=INK, font=font, anchor="ls")


def _coloured(shares: npt.NDArray[np.float64], signed: bool) -> npt.NDArray[np.uint8]:
    """Return RGB of values in [0, 1], or in [-1, 1] if signed."""
    colours = colormaps["RdBu_r"]((shares + 1) / 2, bytes=True) if signed else colormaps["inferno"](shares, bytes=True)
    rgb: npt.NDArray[np.uint8] = colours[..., :3]
    return rgb
