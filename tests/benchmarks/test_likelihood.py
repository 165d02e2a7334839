"""The bookkeeping of `benchmarks/likelihood.py`; what it measures is tested in tests/likelihood."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from denoising_ebm.likelihood.immse import Estimate
from support import random_pixels


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "likelihood.py"
    spec = importlib.util.spec_from_file_location("benchmark_likelihood", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_interrupted_work_goes_on(benchmark: ModuleType, tmp_path: Path) -> None:
    asked: list[int] = []

    def compute(pixels: Tensor) -> dict[str, Estimate]:
        asked.append(len(pixels))
        means = pixels.double().mean((1, 2, 3))
        return {"mean": Estimate(means, means / 10)}

    pixels, args = random_pixels(10), argparse.Namespace(out=tmp_path, shard=4)
    found = benchmark.in_shards(pixels[:8], "energy", compute, {"seed": 0}, args)
    assert asked == [4, 4]
    assert benchmark.in_shards(pixels, "energy", compute, {"seed": 0}, args)["mean"][:8] == found["mean"]
    assert asked == [4, 4, 2]
    all_of_them = benchmark.in_shards(pixels, "energy", compute, {"seed": 0}, args)
    assert asked == [4, 4, 2]
    torch.testing.assert_close(torch.tensor(all_of_them["mean"]), pixels.double().mean((1, 2, 3)).float())
    assert all_of_them["variance of mean"] == pytest.approx([(x / 10) ** 2 for x in all_of_them["mean"]])
    benchmark.in_shards(pixels, "energy", compute, {"seed": 1}, args)  # other settings
    assert asked == [4, 4, 2, 4, 4, 2]


def test_summary(benchmark: ModuleType) -> None:
    energy, integral = torch.tensor([3.0, 4.0, 5.0, 8.0]), torch.tensor([3.0, 3.5, 5.5, 7.0])
    columns = {"energy": energy.tolist(), "integral": integral.tolist(), "bound": [1.0, 2.0, 3.0, 4.0]}
    columns |= {"variance of energy": [0.01] * 4, "variance of integral": [0.04] * 4, "variance of bound": [0.09] * 4}
    records = benchmark.summary(columns)
    assert records["energy"]["mean"] == 5 and records["bound"]["sd of the draws"] == pytest.approx(0.3)
    difference = records["energy - integral"]
    assert difference["mean"] == pytest.approx(0.25)
    assert difference["sd over images"] == pytest.approx(float((energy - integral).std()))
    assert difference["standard error"] == pytest.approx(float((energy - integral).std()) / 2)
    assert difference["sd of the draws"] == pytest.approx(0.05**0.5)
    assert difference["correlation"] == pytest.approx(float(torch.corrcoef(torch.stack([energy, integral]))[0, 1]))
