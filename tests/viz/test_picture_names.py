"""Names of pictures: valid, and a place for each image."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from denoising_ebm.viz.picture_names import PictureNames


def test_each_picture_has_a_place_of_its_own() -> None:
    names = ["a/b.png", "a/b.jpg", "x.parquet#1", "Ü.PNG", "line\nend.png"]
    pictures = PictureNames()
    assert [pictures(name) for name in names] == ["a/b.png", "a/b.jpg.png", "x.parquet-1.png", "Ü.PNG", "line\nend.png"]
    # Names that differ only by what is replaced, or by what was added to another, and one that stands there twice.
    others = ["a/b.jpg.png", "x.parquet-1", "x.parquet#1.png", "x.parquet-1.png", "a/b.png", "a/b.png"]
    found = [pictures(name) for name in others]
    assert len({*found, "a/b.png", "a/b.jpg.png", "x.parquet-1.png"}) == len(others) + 3
    assert all(re.fullmatch(r"(a/b|a/b\.jpg|x\.parquet-1)-[0-9a-f]{10}\.png", name) for name in found)
    again = PictureNames()
    assert [again(name) for name in [*names, *others]][len(names) :] == found


@pytest.mark.parametrize("letter", ["a", "ä", "\udce4"], ids=["ascii", "two bytes", "not UTF-8"])
def test_long_names_have_pictures_too(letter: str, tmp_path: Path) -> None:
    """Names of 250 bytes are allowed, and `.png` comes after them."""
    pictures, stem = PictureNames(), letter * (250 // len(os.fsencode(letter)))
    for name in (f"{stem}.jpg", f"{stem}.jpeg", f"{stem}.png", f"{stem}#1", f"{stem}#12"):
        place = tmp_path / pictures(f"folder/{name}")
        assert len(os.fsencode(place.name)) <= 255 and place.name.endswith(".png")
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(b"")
    assert len(list((tmp_path / "folder").iterdir())) == 5
