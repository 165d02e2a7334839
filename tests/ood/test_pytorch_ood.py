"""Against the real package."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, TensorDataset

from support import randomise, tiny_config

# Its import pulls in torchvision, whose own import may warn.
pytest.importorskip("pytorch_ood", exc_type=ImportError)

from pytorch_ood import api
from pytorch_ood.benchmark import Benchmark
from pytorch_ood.metrics import OODMetrics

from denoising_ebm import DenoisingEBM, load_images
from denoising_ebm.ood.anomaly_maps import AnomalyMapConfig
from denoising_ebm.ood.corruptions import SYNTHETIC_OOD
from denoising_ebm.ood.detector import Detector
from denoising_ebm.ood.detector_config import DetectorConfig
from denoising_ebm.ood.features import FeatureConfig
from denoising_ebm.ood.metrics import aupr, auroc
from denoising_ebm.ood.pytorch_ood import DenoisingEBMDetector

CONFIG = DetectorConfig(
    FeatureConfig(sigmas=(0.2,), families=("energy", "noisy-energy")),
    blocks=(),
    num_corrupted=20,
    maps=AnomalyMapConfig(sigmas=(0.2,), num_noise_samples=1),
)


def images(start: int, stop: int) -> torch.Tensor:
    pixels = load_images("fashion-mnist", limit=stop).pixels[start:].float()
    return torch.nn.functional.avg_pool2d(pixels, 2).round().to(torch.uint8)


@pytest.fixture(scope="module")
def adapter() -> DenoisingEBMDetector:
    model = DenoisingEBM(tiny_config())
    randomise(model.dae)
    return DenoisingEBMDetector(Detector(model.eval(), CONFIG))


class Sets(Benchmark):
    """A benchmark of pytorch-ood on real images: labels >= 0 are normal, < 0 OOD."""

    ood_names = ("upside down", "constant")

    def __init__(self) -> None:
        self.train, self.test = images(0, 200), images(200, 260)
        generator = torch.Generator().manual_seed(0)
        self.ood = [self.test.flip(2), SYNTHETIC_OOD["constant"](self.test, generator)]

    def train_set(self) -> Dataset[Any]:
        return self._labelled(self.train, 0)

    def test_sets(self, known: bool = True, unknown: bool = True) -> list[Dataset[Any]]:
        normal, ood = self._labelled(self.test, 0), [self._labelled(pixels, -1) for pixels in self.ood]
        return [ConcatDataset([normal, o]) for o in ood] if known and unknown else ood if unknown else [normal]

    @staticmethod
    def _labelled(pixels: torch.Tensor, label: int) -> Dataset[Any]:
        return TensorDataset(pixels.float() / 255, torch.full((len(pixels),), label))


def test_needs_fitting_first(adapter: DenoisingEBMDetector) -> None:
    fresh = DenoisingEBMDetector(adapter.detector.model)
    assert isinstance(fresh, api.Detector) and fresh.requires_fit
    with pytest.raises(api.RequiresFittingException):
        fresh(torch.rand(2, 1, 16, 16))
    with pytest.raises(ValueError, match="low must be below high, got 1 and 0"):
        DenoisingEBMDetector(adapter.detector, low=1, high=0)


def test_in_a_benchmark_of_pytorch_ood(adapter: DenoisingEBMDetector) -> None:
    sets = Sets()
    adapter.fit(DataLoader(sets.train_set(), batch_size=50))
    rows = sets.evaluate(adapter, loader_kwargs={"batch_size": 32})
    normal = adapter.detector.score(sets.test)
    for row, name, pixels in zip(rows, sets.ood_names, sets.ood, strict=True):
        scores = adapter.detector.score(pixels)
        assert row["Dataset"] == name
        assert row["AUROC"] == pytest.approx(auroc(normal, scores), abs=2e-3)
        assert row["AUPR-OUT"] == pytest.approx(aupr(normal, scores), abs=2e-2)


def test_labelled_outliers_take_no_part_in_fitting(adapter: DenoisingEBMDetector) -> None:
    sets = Sets()
    mixed = ConcatDataset([sets.train_set(), Sets._labelled(sets.ood[1], -1)])
    first = adapter.fit(DataLoader(sets.train_set(), batch_size=64)).predict(sets.test.float() / 255)
    second = adapter.fit(DataLoader(mixed, batch_size=64)).predict(sets.test.float() / 255)
    torch.testing.assert_close(first, second)


def test_value_ranges(adapter: DenoisingEBMDetector) -> None:
    sets = Sets()
    adapter.fit(DataLoader(sets.train_set(), batch_size=64))
    expected = adapter.detector.score(sets.test).float()
    other = DenoisingEBMDetector(adapter.detector, low=-1, high=1)
    torch.testing.assert_close(adapter(sets.test.float() / 255), expected)
    torch.testing.assert_close(other(sets.test.float() / 127.5 - 1), expected)
    # A loader that standardises would else have most of its pixels cut off.
    with pytest.raises(
        ValueError, match=r"values from -1 to 0.937, outside of low=0 and high=1: leave out .* Normalize"
    ):
        adapter(sets.test.float() / 127.5 - 1)
    metrics = OODMetrics()
    metrics.update(torch.cat([expected, expected + 100]), torch.cat([torch.zeros(60), -torch.ones(60)]))
    assert metrics.compute()["AUROC"] == 1
