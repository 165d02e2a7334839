from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from denoising_ebm.datasets.images import content_hash
from denoising_ebm.quality import features as module
from denoising_ebm.quality.features import cache_folder, cached_features


class Counting:
    """Means of rows, and how many images they were asked for."""

    name = "means of rows"
    num_features = 8

    def __init__(self) -> None:
        self.images = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.images += len(images)
        return images.double().mean(dim=(1, 3))


@pytest.fixture
def images(generator: torch.Generator) -> Tensor:
    return torch.randint(0, 256, (40, 1, 8, 8), generator=generator, dtype=torch.uint8)


@pytest.fixture(autouse=True)
def shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD", 15)


def test_equal_content_is_measured_once(images: Tensor, tmp_path: Path) -> None:
    extractor, expected = Counting(), Counting()(images)
    for _ in range(2):
        found = cached_features(images.clone(), extractor, folder=tmp_path, batch_size=4)
        assert torch.equal(found, expected) and extractor.images == 40
    # Sets that begin alike share what they have in common, in whole files.
    assert torch.equal(cached_features(images[:32], extractor, folder=tmp_path), expected[:32])
    assert extractor.images == 40 + 2


def test_work_that_was_interrupted_goes_on(images: Tensor, tmp_path: Path) -> None:
    class Interrupted(Counting):
        def __call__(self, images: Tensor) -> Tensor:
            if self.images >= 30:
                raise KeyboardInterrupt
            return super().__call__(images)

    with pytest.raises(KeyboardInterrupt):
        cached_features(images, Interrupted(), folder=tmp_path)
    extractor = Counting()
    assert torch.equal(cached_features(images, extractor, folder=tmp_path), Counting()(images))
    assert extractor.images == 10


def test_other_content_is_measured_anew(images: Tensor, tmp_path: Path) -> None:
    extractor = Counting()
    cached_features(images, extractor, folder=tmp_path)
    changed = images.clone()
    changed[3, 0, 0, 0] ^= 1
    assert torch.equal(cached_features(changed, extractor, folder=tmp_path), Counting()(changed))
    assert extractor.images == 40 + 15
    extractor.name = "another network"
    cached_features(images, extractor, folder=tmp_path)
    assert extractor.images == 40 + 15 + 40
    # Equal bytes in another shape are other images.
    assert content_hash(images, "a") != content_hash(images.reshape(10, 4, 8, 8), "a")


@pytest.mark.parametrize("keep", [0, 50])
def test_a_damaged_file_is_replaced(keep: int, images: Tensor, tmp_path: Path) -> None:
    extractor = Counting()
    expected = cached_features(images[:15], extractor, folder=tmp_path)
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:keep])
    for _ in range(2):
        assert torch.equal(cached_features(images[:15], extractor, folder=tmp_path), expected)
        assert extractor.images == 30


def test_a_folder_that_cannot_be_written_costs_time_only(images: Tensor, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert torch.equal(cached_features(images, Counting(), folder=tmp_path / "file"), Counting()(images))


def test_refusals(images: Tensor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch_size must be > 0, got 0"):
        cached_features(images, Counting(), folder=tmp_path, batch_size=0)
    with pytest.raises(ValueError, match="must be uint8"):
        cached_features(images.float(), Counting(), folder=tmp_path)


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DENOISING_EBM_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("DENOISING_EBM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "denoising-ebm"
