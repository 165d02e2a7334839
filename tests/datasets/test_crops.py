"""Random crops from a buffer of photos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from denoising_ebm.datasets import crops
from denoising_ebm.datasets.crops import CropSampler
from denoising_ebm.datasets.photos import PhotoSet, open_photos


def make(folder: Path, count: int, height: int = 10, width: int = 14) -> PhotoSet:
    """Photos whose red says which, whose green says the row and blue the column."""
    folder.mkdir()
    rows, columns = np.mgrid[:height, :width]
    for number in range(count):
        array = np.stack([np.full_like(rows, number), rows, columns], -1).astype(np.uint8)
        Image.fromarray(array).save(folder / f"{number:03}.png")
    return open_photos(folder)


def sampler(photos: PhotoSet, size: int = 4, seed: int = 0, **how: Any) -> CropSampler:
    return CropSampler(photos, size, generator=torch.Generator().manual_seed(seed), **how)


def levels(batch: torch.Tensor) -> torch.Tensor:
    return ((batch + 1) * 127.5).round().to(torch.int64)


def test_crops_are_parts_of_photos(tmp_path: Path) -> None:
    batch = levels(sampler(make(tmp_path / "x", 3)).draw(400))
    number, row, column = batch[:, 0, 0, 0], batch[:, 1, 0, 0], batch[:, 2, 0, 0]
    offsets = torch.arange(4)
    assert torch.equal(batch[:, 0], number[:, None, None].expand(-1, 4, 4))
    assert torch.equal(batch[:, 1], (row[:, None, None] + offsets[:, None]).expand(-1, 4, 4))
    assert torch.equal(batch[:, 2], (column[:, None, None] + offsets).expand(-1, 4, 4))
    # All places to the last, all photos.
    assert (set(number.tolist()), set(row.tolist()), set(column.tolist())) == ({0, 1, 2}, set(range(7)), set(range(11)))


def test_a_larger_set_passes_through_the_buffer(tmp_path: Path) -> None:
    photos = make(tmp_path / "x", 30)
    source = sampler(photos, held=5, crops_per_photo=2)
    counts = torch.zeros(30, dtype=torch.int64)
    for _ in range(12):
        counts += torch.bincount(levels(source.draw(5))[:, 0, 0, 0], minlength=30)
        assert source.num_held <= 5
    # 60 crops, two of each photo, but for those that are in the buffer still.
    assert counts.max() <= 4
    assert (counts == 0).sum() <= 5
    assert (counts == 2).sum() >= 20


def test_a_set_that_fits_is_read_once(tmp_path: Path) -> None:
    for held in (3, 64):
        photos = make(tmp_path / str(held), 3)
        source = sampler(photos, held=held, crops_per_photo=1)
        source.draw(3)
        for path in (tmp_path / str(held)).iterdir():
            path.unlink()
        assert levels(source.draw(100))[:, 0, 0, 0].unique().tolist() == [0, 1, 2]


def test_bytes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = make(tmp_path / "x", 12)
    monkeypatch.setattr(crops, "_MAX_BYTES", 3 * 3 * 10 * 14)
    source = sampler(photos)
    seen = set(levels(source.draw(200))[:, 0, 0, 0].tolist())
    assert source.num_held <= 3
    assert seen == set(range(12))
    monkeypatch.setattr(crops, "_MAX_BYTES", 1)
    assert sampler(photos).draw(2).shape == (2, 3, 4, 4)


def test_small_photos_are_padded_by_reflection(tmp_path: Path) -> None:
    photos = make(tmp_path / "x", 1, height=3, width=6)
    ((_, rows, columns),) = levels(sampler(photos, size=9).draw(1))
    assert rows[:, 0].tolist() == [1, 2, 1, 0, 1, 2, 1, 0, 1]
    assert columns[0].tolist() == [1, 0, 1, 2, 3, 4, 5, 4, 3]


def test_flips_are_those_told(tmp_path: Path) -> None:
    photos = make(tmp_path / "x", 1)
    for flips, count in (((), 1), (("horizontal",), 2), (("horizontal", "vertical", "transpose"), 8)):
        batch = levels(sampler(photos, flips=flips).draw(200))
        steps = {
            tuple((crop[1:, 1, 0] - crop[1:, 0, 0]).tolist() + (crop[1:, 0, 1] - crop[1:, 0, 0]).tolist())
            for crop in batch
        }
        assert len(steps) == count


def test_the_generator_decides(tmp_path: Path) -> None:
    photos = make(tmp_path / "x", 9)
    first, again, other = (sampler(photos, seed=seed, held=3, flips=("vertical",)).draw(20) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_unreadable_photos_are_passed_over(tmp_path: Path) -> None:
    photos = make(tmp_path / "x", 3)
    (tmp_path / "x/001.png").write_bytes(b"")
    source = sampler(photos, crops_per_photo=1)
    assert levels(source.draw(50))[:, 0, 0, 0].unique().tolist() == [0, 2]
    assert [one.name for one in photos.unreadable] == ["001.png"]
    with pytest.raises(ValueError, match="can be read"):
        sampler(photos.take([1])).draw(1)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"size": 0}, "size"),
        ({"held": 0}, "held"),
        ({"crops_per_photo": 0}, "crops_per_photo"),
        ({"flips": ("sideways",)}, "flips"),
        ({"channels": 1}, "the photos have 3 channels, the model takes 1"),
    ],
)
def test_arguments_out_of_range(tmp_path: Path, how: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampler(make(tmp_path / "x", 1), **how)
