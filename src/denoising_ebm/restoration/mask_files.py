"""The masks of images: one for all, or one for each in a folder, found by name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from torch import Tensor

from denoising_ebm.datasets.decode import Stored
from denoising_ebm.datasets.images import ImageSet
from denoising_ebm.datasets.listing import READ, list_folder
from denoising_ebm.datasets.preprocessing import Preprocessing
from denoising_ebm.literals import MaskMarks
from denoising_ebm.restoration.masks import missing_pixels, read_mask

#: Name of a mask beside that of its image, as in MVTec AD: `000_mask.png` of `000.png`.
_ENDINGS = ("_mask", "-mask", "_gt")


class MaskFiles:
    """The masks of images: one for all, or one for each in a folder, by name.

    A mask in a folder has the path of its image, with any suffix, or with `_mask` behind the name (MVTec AD); leading
    folders of the image's path may be missing.

    Args:
        path: A picture or a folder of pictures.
        preparation: What makes images of files.
        marks: As for `missing_pixels`.

    Attributes:
        without: Images of the sets so far for which there is no mask, or one that marks nothing.
        shares: Share of missing pixels in all others.
        soft: Largest share of a mask's pixels that are neither black nor white.

    Raises:
        ValueError: If there is no such file or folder, or two masks are those of one image.
    """

    def __init__(self, path: Path, preparation: Preprocessing, marks: MaskMarks | None = None) -> None:
        self._path, self._preparation, self._marks = path, preparation, marks
        self._files = _by_image(path) if path.is_dir() else {}
        self._one = None if path.is_dir() else read_mask(path)
        self._holes: dict[tuple[int, int] | None, Tensor] = {}
        self._users: dict[Path, str] = {}
        self.without: list[str] = []
        self.shares: list[float] = []
        self.soft = 0.0 if self._one is None else self._one.soft
        if self._one is None and not self._files:
            raise ValueError(f"{path}: holds no masks ({', '.join(sorted(READ))})")

    @property
    def for_all(self) -> bool:
        """Whether all images have one mask."""
        return self._one is not None

    def groups(self, images: ImageSet) -> Iterator[tuple[list[int], Tensor]]:
        """Yield the images of a set that lack the same pixels: their places, and those pixels, bool `(size, size)`.

        Raises:
            ValueError: If a mask cannot be read, does not fit, is that of several images of a folder, or marks too much.
        """
        found: dict[bytes, tuple[list[int], Tensor]] = {}
        for place, (name, stored) in enumerate(zip(images.names, images.stored, strict=True)):
            hole = self._hole_for_all(stored) if self.for_all else self._hole_of(name, stored)
            if hole is None:
                self.without.append(name)
                continue
            self.shares.append(float(hole.double().mean()))
            found.setdefault(hole.numpy().tobytes(), ([], hole))[0].append(place)
        yield from found.values()

    def _hole_for_all(self, stored: Stored | None) -> Tensor:
        assert self._one is not None
        size = None if stored is None else (stored.width, stored.height)
        if size not in self._holes:
            self._holes[size] = missing_pixels(self._one, self._preparation, stored, marks=self._marks)
        return self._holes[size]

    def _hole_of(self, name: str, stored: Stored | None) -> Tensor | None:
        parts = PurePosixPath(name.replace("#", "-")).parts
        stem = _without_suffix(parts[-1])
        paths = (self._files.get("/".join([*parts[start:-1], stem])) for start in range(len(parts)))
        path = next((path for path in paths if path is not None), None)
        if path is None:
            return None
        other = self._users.setdefault(path, name)
        if other != name:
            raise ValueError(
                f"{path}: would be the mask of {other} and of {name}; put masks in folders as the images are"
            )
        mask = read_mask(path)
        self.soft = max(self.soft, mask.soft)
        if not mask.marked.any() and self._marks != "known":
            return None  # of an image without defects, among others
        return missing_pixels(mask, self._preparation, stored, marks=self._marks)


def _by_image(folder: Path) -> dict[str, Path]:
    """Return the masks in a folder by the paths of their images, without suffixes."""
    plain: dict[str, Path] = {}
    named: dict[str, Path] = {}
    for file in list_folder(folder).images:
        path, stem = folder.joinpath(*file.parts), _without_suffix(file.parts[-1])
        ending = next((end for end in _ENDINGS if stem.lower().endswith(end) and len(stem) > len(end)), "")
        found, short = (named, stem[: -len(ending)]) if ending else (plain, stem)
        other = found.setdefault("/".join([*file.parts[:-1], short]), path)
        if other != path:
            raise ValueError(f"{other} and {path}: would both be the mask of one image; remove one")
    # `a_mask.png` beside `a.png`: the other is the image itself.
    return plain | named


def _without_suffix(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in READ else name
