"""Masks in a folder go to their images by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from denoising_ebm.datasets.decode import Stored
from denoising_ebm.datasets.images import ImageSet
from denoising_ebm.datasets.preprocessing import Preprocessing
from denoising_ebm.restoration.mask_files import MaskFiles

AS_IS = Preprocessing(32, 1)


def images_named(*names: str) -> ImageSet:
    stored = (Stored("PNG", 32, 32),) * len(names)
    return ImageSet(torch.zeros(len(names), 1, 32, 32, dtype=torch.uint8), names, stored=stored)


def save_mask(path: Path, row: int) -> torch.Tensor:
    marked = np.zeros((32, 32), dtype=np.uint8)
    if row:
        marked[row : row + 4, 5:9] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(marked).save(path)
    return torch.from_numpy(marked > 0)


def test_masks_are_found_by_name(tmp_path: Path) -> None:
    root = tmp_path / "masks"
    first = save_mask(root / "crack" / "000_mask.png", 3)
    second = save_mask(root / "crack" / "001.png", 7)
    save_mask(root / "hole" / "000.bmp", 3)
    save_mask(root / "hole" / "001.png", 0)
    masks = MaskFiles(root, AS_IS)
    names = ("test/crack/000.png", "test/crack/001.jpg", "test/hole/000.png", "test/hole/001.png", "test/good/002.png")
    groups = list(masks.groups(images_named(*names)))
    assert [places for places, _ in groups] == [[0, 2], [1]]
    assert torch.equal(groups[0][1], first) and torch.equal(groups[1][1], second)
    assert masks.without == ["test/hole/001.png", "test/good/002.png"]
    assert masks.shares == pytest.approx([16 / 1024] * 3) and not masks.for_all


def test_an_image_beside_its_mask_is_none(tmp_path: Path) -> None:
    wanted = save_mask(tmp_path / "a_mask.png", 3)
    save_mask(tmp_path / "a.png", 20)
    ((_, hole),) = MaskFiles(tmp_path, AS_IS).groups(images_named("a.png"))
    assert torch.equal(hole, wanted)


def test_masks_that_could_be_of_several_images_are_refused(tmp_path: Path) -> None:
    save_mask(tmp_path / "flat" / "000.png", 3)
    with pytest.raises(ValueError, match=r"000.png: would be the mask of crack/000.png and of hole/000.png"):
        list(MaskFiles(tmp_path / "flat", AS_IS).groups(images_named("crack/000.png", "hole/000.png")))
    save_mask(tmp_path / "flat" / "000.bmp", 3)
    with pytest.raises(ValueError, match="would both be the mask of one image"):
        MaskFiles(tmp_path / "flat", AS_IS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no masks"):
        MaskFiles(tmp_path / "empty", AS_IS)
