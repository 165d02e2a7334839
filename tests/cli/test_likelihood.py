"""Bits per dimension in `debm score`, `debm evaluate` and `debm info`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest

from command import rows_of
from denoising_ebm import DenoisingEBM, load_images, to_float
from denoising_ebm.likelihood.immse import Quadrature
from denoising_ebm.ood.metrics import auroc
from denoising_ebm.training.calibration import normalise


@pytest.fixture(scope="module")
def dense(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of `run` with a density network, which is its denoiser as it would be before an energy stage."""
    old = DenoisingEBM.from_pretrained(run)
    model = DenoisingEBM(
        replace(old.config, energy=replace(old.config.energy, density=True)), preprocessing=old.preprocessing
    )
    model.load_state_dict(old.state_dict(), strict=False)
    assert model.density is not None
    model.density.dae.load_state_dict(old.dae.state_dict())
    images = to_float(load_images("fashion-mnist", limit=50).pixels)
    normalise(model, images, images_per_level=2)
    out = tmp_path_factory.mktemp("dense")
    model.save_pretrained(out)
    return out


def test_score_has_bits_per_dimension(debm: Any, dense: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.csv"
    done = debm("score", dense, folder, "--out", out, "--precision", "fp32", "--batch-size", 32)
    assert done.status == 0, done.err
    rows = rows_of(out.read_text())
    model, images = DenoisingEBM.from_pretrained(dense), load_images(folder)
    expected = model.bits_per_dim(images.pixels).value  # in other batches
    assert [row["name"] for row in rows[:300]] == list(images.names)
    np.testing.assert_allclose([float(row["bits_per_dim"]) for row in rows[:300]], expected.numpy(), atol=2e-3)
    assert {row["bits_per_dim"] for row in rows[300:]} == {""}  # of those that cannot be read


def test_models_without_a_density_network_have_none(debm: Any, run: Path, folder: Path) -> None:
    done = debm("score", run, folder, "--limit", 3, "--precision", "fp32")
    assert {row["bits_per_dim"] for row in rows_of(done.out)} == {""}


def test_evaluate_gives_bits_per_dimension_of_each_set(debm: Any, dense: Path, tmp_path: Path) -> None:
    options = ["--in", "fashion-mnist", "--limit", 40, "--ood", "constant", "--resamples", 2, "--precision", "fp32"]
    done = debm("evaluate", dense, *options, "--out", tmp_path)
    assert done.status == 0, done.err
    expected = DenoisingEBM.from_pretrained(dense).bits_per_dim(
        load_images("fashion-mnist", split="test", limit=40).pixels
    )
    table = parquet.read_table(tmp_path / "scores.parquet").to_pandas()
    bits = table[table["score"] == "bits per dimension"]
    found = {name: bits[bits["set"] == name]["value"].to_numpy() for name in ("normal", "constant")}
    np.testing.assert_allclose(found["normal"], expected.value.numpy(), atol=2e-3)
    for name, values in found.items():
        error = values.std(ddof=1) / len(values) ** 0.5
        assert f"| {name} | {len(values)} | {values.mean():.4f} | {error:.4f} |" in done.out
    with open(tmp_path / "results.csv") as file:
        row = next(row for row in rows_of(file.read()) if row["score"] == "bits per dimension")
    assert float(row["auroc"]) == pytest.approx(auroc(found["normal"], found["constant"]), abs=1e-5)
    assert "Likelihood" in (tmp_path / "index.html").read_text()
    without = debm("evaluate", dense, *options, "--likelihood", "none")
    assert "energy at sigma" in without.out and "bits per dimension" not in without.out


def test_evaluate_by_the_integral_where_there_is_no_density_network(
    debm: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--in", "fashion-mnist", "--limit", 4, "--ood", "constant", "--resamples", 2, "--precision", "fp32"]
    assert "bits per dimension" not in debm("evaluate", run, *options).out
    few = lambda sigma_data: Quadrature(2, 2, sigma_data)  # noqa: E731
    monkeypatch.setattr("denoising_ebm.model.Quadrature", few)
    done = debm("evaluate", run, *options, "--likelihood", "immse", "--out", tmp_path)
    assert done.status == 0 and "| normal | 4 |" in done.out
    assert "by the denoiser, integrated" in (tmp_path / "index.html").read_text()
    model, normal = DenoisingEBM.from_pretrained(run), load_images("fashion-mnist", split="test", limit=4).pixels
    table = parquet.read_table(tmp_path / "scores.parquet").to_pandas()
    found = table[(table["score"] == "bits per dimension") & (table["set"] == "normal")]["value"].to_numpy()
    np.testing.assert_allclose(found, model.bits_per_dim(normal, method="immse").value.numpy(), atol=1e-4)


def test_info_says_how_likelihoods_are_found(debm: Any, run: Path, dense: Path) -> None:
    def said(model: Path) -> str:
        return " ".join(debm("info", model).out.split())

    assert "by the density network, which is normalised" in said(dense)
    assert "no density network" in said(run)
    flags = [json.loads(debm("info", each, "--json").out)["normalised density"] for each in (dense, run)]
    assert flags == [True, False]
