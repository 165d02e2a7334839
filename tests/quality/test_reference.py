from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from denoising_ebm.datasets.images import content_hash
from denoising_ebm.quality.frechet import feature_statistics, frechet_distance
from denoising_ebm.quality.reference import cache_folder, reference_statistics


class Counting:
    """Means of rows, and how often they were asked for."""

    name = "means of rows"
    num_features = 8

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.calls += 1
        return images.double().mean(dim=(1, 3))


@pytest.fixture
def images(generator: torch.Generator) -> Tensor:
    return torch.randint(0, 256, (40, 1, 8, 8), generator=generator, dtype=torch.uint8)


def test_equal_content_is_measured_once(images: Tensor, tmp_path: Path) -> None:
    extractor = Counting()
    first = reference_statistics(images, extractor, folder=tmp_path)
    again = reference_statistics(images.clone(), extractor, folder=tmp_path)
    assert extractor.calls == 1
    fresh = feature_statistics(images, Counting())
    for found in (first, again):
        assert torch.equal(found.mean, fresh.mean) and torch.equal(found.scatter, fresh.scatter)
        assert found.count == 40
    assert frechet_distance(first, again) == pytest.approx(0.0, abs=1e-9)


def test_other_content_is_measured_anew(images: Tensor, tmp_path: Path) -> None:
    extractor = Counting()
    reference_statistics(images, extractor, folder=tmp_path)
    changed = images.clone()
    changed[3, 0, 0, 0] ^= 1
    reference_statistics(changed, extractor, folder=tmp_path)
    extractor.name = "another network"
    reference_statistics(images, extractor, folder=tmp_path)
    assert extractor.calls == 3
    # Equal bytes in another shape are other images.
    assert content_hash(images, "a") != content_hash(images.reshape(10, 4, 8, 8), "a")


def test_a_damaged_file_is_replaced(images: Tensor, tmp_path: Path) -> None:
    extractor = Counting()
    expected = reference_statistics(images, extractor, folder=tmp_path)
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:50])
    found = reference_statistics(images, extractor, folder=tmp_path)
    assert extractor.calls == 2 and torch.equal(found.mean, expected.mean)
    assert reference_statistics(images, extractor, folder=tmp_path).count == 40 and extractor.calls == 2


def test_a_folder_that_cannot_be_written_costs_time_only(images: Tensor, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    found = reference_statistics(images, Counting(), folder=tmp_path / "file")
    assert torch.equal(found.mean, feature_statistics(images, Counting()).mean)


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DENOISING_EBM_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("DENOISING_EBM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "denoising-ebm"
