"""Masks of defects beside the photos that they belong to: which is whose, by the names, and what a mask marks."""

from __future__ import annotations

import io
import os
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from denoising_ebm.datasets import layouts
from denoising_ebm.datasets.decode import FORMATS, own_limits, reason_unreadable
from denoising_ebm.datasets.entries import read_bytes
from denoising_ebm.datasets.headers import UnreadableImageError
from denoising_ebm.datasets.listing import File
from denoising_ebm.datasets.pixels import read_array

_FEW_LEVELS = 16
"""Up to which the levels of a mask are labels; more come of smooth edges or of a lossy format."""


class Pairs(NamedTuple):
    """Whose the masks are."""

    masks: Mapping[str, tuple[str, ...]]  #: Of each image that has some, by the names of both.
    without_image: tuple[str, ...]  #: Masks that belong to no image.


_PARTS = frozenset(layouts.SPLITS.values())
_Key = tuple[tuple[str, ...], str]


def pair(images: Sequence[File], masks: Sequence[File], mask_folders: Collection[str]) -> Pairs:
    """Find the images that masks belong to, by kind and stem.

    The folders of a mask, without those named for masks and without words such as `images`, are those of its image; of
    parts both or neither may be named: `ground_truth/scratch/000_mask.png` is of `test/scratch/000.png`,
    `Masks/Anomaly/000.png` of `Images/Anomaly/000.JPG`. A folder named as an image holds several masks of it.

    Args:
        images: All images of a folder.
        masks: All masks of it.
        mask_folders: Names of the folders that hold masks.

    Raises:
        ValueError: If a mask would be that of several images.
    """
    with_part: dict[_Key, list[File]] = defaultdict(list)
    without_part: dict[_Key, list[File]] = defaultdict(list)
    beside: dict[tuple[str, ...], list[File]] = defaultdict(list)
    for image in images if masks else ():
        stem = _stem(image)
        folders = _folders(image.parts[:-1])
        with_part[folders, stem].append(image)
        without_part[_without_parts(folders), stem].append(image)
        beside[image.parts[:-1]].append(image)
    found: dict[str, list[str]] = defaultdict(list)
    orphans: list[str] = []
    for mask in masks:
        folders = _folders(mask.parts[:-1], mask_folders)
        owner = _image_of(mask, folders, with_part, without_part)
        if owner is None and len(beside.get(mask.parts[:-1], ())) == 1:
            owner = beside[mask.parts[:-1]][0]  # a folder for each picture: `image.png` and `mask.png`
        if owner is None:
            orphans.append(mask.name)
        else:
            found[owner.name].append(mask.name)
    return Pairs({name: tuple(names) for name, names in found.items()}, tuple(orphans))


def _image_of(
    mask: File,
    folders: tuple[str, ...],
    with_part: Mapping[_Key, list[File]],
    without_part: Mapping[_Key, list[File]],
) -> File | None:
    keys = [(folders, _stem(mask))]
    base = layouts.unmarked(os.path.splitext(mask.parts[-1])[0])
    if base is not None:
        keys.append((folders, base.lower()))
    if folders:
        keys.append((folders[:-1], folders[-1]))
    for key in keys:
        candidates = with_part.get(key) or without_part.get((_without_parts(key[0]), key[1]), [])
        if len(candidates) > 1:
            # Masks belong to what is tested: photos to learn from have the same numbers.
            candidates = [image for image in candidates if "train" not in map(layouts.split_named, image.parts[:-1])]
        if len(candidates) > 1:
            first, second = (image.name for image in candidates[:2])
            raise ValueError(f"{mask.name}: would be the mask of {first} and of {second}; name one folder of them")
        if candidates:
            return candidates[0]
    return None


def _folders(names: Sequence[str], mask_folders: Collection[str] = ()) -> tuple[str, ...]:
    """Return the folders that an image and its mask have in common, in lower case, and parts by their usual names."""
    folders = []
    for name in names:
        if split := layouts.split_named(name):
            folders.append(split)
        elif name not in mask_folders and not layouts.is_container(name):
            folders.append(name.lower())
    return tuple(folders)


def _without_parts(folders: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in folders if name not in _PARTS)


def _stem(file: File) -> str:
    return os.path.splitext(file.parts[-1])[0].lower()


def read_marks(path: Path, max_pixels: int) -> npt.NDArray[np.bool_]:
    """Return which pixels a mask marks, bool, shape `(height, width)`.

    Levels but zero mark defects; in a file of many levels, such as a JPEG, those above half of the largest. Of colour the
    largest channel counts, and opacity where the colours are one.

    Raises:
        ValueError: If it cannot be read; it names the file.
    """
    try:
        raw = read_bytes(str(path))
        if path.suffix.lower() == ".npy":
            return _array_marks(read_array(raw))
        with own_limits():
            opened = Image.open(io.BytesIO(raw), formats=FORMATS)
            if opened.width * opened.height > max_pixels:
                raise UnreadableImageError(f"is {opened.width}x{opened.height}, more than {max_pixels:,} pixels")
            has_loss = opened.format in ("JPEG", "WEBP")
            levels = np.asarray(_plain(opened))
    except Exception as error:  # Pillow's readers raise almost any type on damaged files
        raise ValueError(f"{path}: the mask {reason_unreadable(error)}") from None
    if levels.ndim == 3:
        levels = levels.max(2)
    few = not has_loss and len(np.unique(levels)) <= _FEW_LEVELS
    return np.asarray(levels != 0 if few else levels > levels.max() / 2)


def _array_marks(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    if values.ndim == 3 and 1 in values.shape:
        values = values.squeeze(values.shape.index(1))
    if values.ndim != 2 or values.dtype.kind not in "biuf":
        raise UnreadableImageError(f"is an array of {values.dtype} and shape {values.shape}, not (height, width)")
    return np.asarray(values != 0)


def _plain(opened: Image.Image) -> Image.Image:
    """Return a mask without palette and opacity."""
    if opened.has_transparency_data:
        rgba = opened.convert("RGBA")
        extremes = np.array(rgba.getextrema())
        return rgba.getchannel("A") if (extremes[:3, 0] == extremes[:3, 1]).all() else rgba.convert("RGB")
    return opened.convert("RGB") if opened.mode in ("P", "CMYK", "YCbCr", "HSV") else opened
