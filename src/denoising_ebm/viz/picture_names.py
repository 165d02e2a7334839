"""A file for the picture that is made of each image: names that are valid, and no two of them equal."""

from __future__ import annotations

import hashlib
import os


class PictureNames:
    """Gives the picture that is made of each image a place of its own."""

    def __init__(self) -> None:
        self._taken: set[int] = set()  # hashes, which need less memory than names

    def __call__(self, name: str) -> str:
        """Return the relative path of the picture of the image `name` of an `ImageSet`, most often that name.

        A `.png` is kept and else added, `#` becomes `-`. A name that would be too long for a file (255 bytes), or is
        another image's already (`a.jpg` beside `a.jpg.png`), ends with a hash of the image's name.
        """
        plain = name.replace("#", "-").lstrip("/")
        folder, slash, file = plain.rpartition("/")
        stem, suffix = (file[:-4], file[-4:]) if file.lower().endswith(".png") else (file, ".png")
        picture, tries = f"{folder}{slash}{_shortened(stem, suffix)}", 0
        while hash(picture) in self._taken:
            digest = hashlib.blake2b(os.fsencode(f"{name}/{tries}"), digest_size=5).hexdigest()
            picture, tries = f"{folder}{slash}{_shortened(stem, f'-{digest}{suffix}')}", tries + 1
        self._taken.add(hash(picture))
        return picture


def _shortened(stem: str, suffix: str) -> str:
    """Return a file name of at most 255 bytes; a shortened one says by a hash what it is short for."""
    if len(os.fsencode(stem + suffix)) <= 255:
        return stem + suffix
    suffix = f"-{hashlib.blake2b(os.fsencode(stem), digest_size=5).hexdigest()}{suffix}"
    while len(os.fsencode(stem + suffix)) > 255:
        stem = stem[:-1]
    return stem + suffix
