"""A folder of images that several tests read."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from pictures import noise


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three RGB files, one in a subfolder, and one that is no image."""
    (tmp_path / "photos" / "z").mkdir(parents=True)
    for name, seed in (("b.png", 1), ("a.png", 0), ("z/c.png", 2)):
        Image.fromarray(noise(seed)).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    return tmp_path / "photos"
