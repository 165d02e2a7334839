"""`debm score` without a detector; with one it is in test_detection."""

from __future__ import annotations

import errno
import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image

from command import rows_of
from denoising_ebm import DenoisingEBM, load_images, to_float
from denoising_ebm.cli import main
from denoising_ebm.cli.score import write_rows
from denoising_ebm.ood.table import Score


def test_score_writes_energies_and_percentiles(debm: Any, folder: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "scores.csv"
    done = debm("score", run, folder, "--out", out, "--precision", "fp32", "--batch-size", 64)
    assert done.status == 0 and f"{out}: 300 images scored, 2 unreadable" in done.err
    rows = rows_of(out.read_text())
    expected = [
        "name",
        "status",
        "score",
        "p_value",
        "flagged",
        "nearest_corruption",
        "energy",
        "percentile",
        "sigma",
        "resize",
    ]
    assert list(rows[0]) == [*expected, "reason", "seen", "notes", "map_max", "bits_per_dim"] and len(rows) == 302
    # In the order of the source: the damaged files come last here by their names.
    assert [(row["name"], row["energy"], row["status"]) for row in rows[300:]] == [
        ("cut.png", "", "unreadable"),
        ("text.png", "", "unreadable"),
    ]
    assert "debm: no p-values: the model has no detector; `debm fit-detector` makes one" in done.err
    assert {row["score"] + row["p_value"] + row["flagged"] for row in rows} == {""}
    model = DenoisingEBM.from_pretrained(run)
    images = load_images(folder)
    with torch.no_grad():
        energies = model.energy(to_float(images.pixels), 0.05)
    assert [row["name"] for row in rows[:300]] == list(images.names)
    np.testing.assert_allclose([float(row["energy"]) for row in rows[:300]], energies.numpy(), rtol=1e-4)
    reference = model.reference[1].numpy()
    for row in rows[:300]:
        below = 100 * np.mean(reference < np.float32(row["energy"]))
        assert float(row["percentile"]) == pytest.approx(below, abs=0.01)
        assert row["sigma"] == "0.05" and row["status"] == "ok"


def test_score_formats_agree(debm: Any, folder: Path, run: Path, tmp_path: Path) -> None:
    options = ["--limit", 5, "--sigma", 0.5, "--precision", "fp32"]
    for suffix in ("csv", "parquet", "jsonl"):
        assert debm("score", run, folder, *options, "--out", tmp_path / f"scores.{suffix}").status == 0
    printed = debm("score", run, folder, *options)
    assert printed.out == (tmp_path / "scores.csv").read_text()
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    table = parquet.read_table(tmp_path / "scores.parquet").to_pylist()
    for text, line, row in zip(rows_of(printed.out), lines, table, strict=True):
        assert text["name"] == line["name"] == row["name"]
        assert np.float32(text["energy"]) == np.float32(line["energy"]) == np.float32(row["energy"])
        assert float(text["percentile"]) == line["percentile"] == pytest.approx(row["percentile"], abs=1e-4)


def test_score_without_reference_level_leaves_percentiles_empty(debm: Any, folder: Path, run: Path) -> None:
    done = debm("score", run, folder, "--limit", 3, "--sigma", 0.3)
    assert {row["percentile"] for row in rows_of(done.out)} == {""}
    notes = [line for line in done.err.splitlines() if "no percentiles" in line]
    assert notes == ["debm: no percentiles: the model keeps them for 0.02, 0.05, 0.1, 0.2, 0.5, 1, not for sigma 0.3"]


def test_score_with_inner_noise_averages_the_models_draws(debm: Any, folder: Path, run: Path, tmp_path: Path) -> None:
    noisy = tmp_path / "noisy"
    shutil.copytree(run / "model", noisy)
    values = json.loads((noisy / "config.json").read_text())
    values["config"]["energy"]["inner_noise"] = True
    del values["sha256"]["config.json"]  # changed on purpose
    (noisy / "config.json").write_text(json.dumps(values))
    done = debm(
        "score",
        noisy,
        folder,
        "--limit",
        4,
        "--noise-samples",
        3,
        "--seed",
        9,
        "--batch-size",
        3,
        "--precision",
        "fp32",
    )
    model = DenoisingEBM.from_pretrained(noisy)
    pixels = to_float(load_images(folder, limit=4).pixels)
    with torch.no_grad():
        expected = model.energy(pixels, 0.05, model.scoring_noise(3, 9))
        plain = model.energy(pixels, 0.05)
    energies = [float(row["energy"]) for row in rows_of(done.out)]
    np.testing.assert_allclose(energies, expected.numpy(), rtol=1e-4)
    assert not np.allclose(energies, plain.numpy(), rtol=1e-3)


def test_maps_share_one_scale(debm: Any, folder: Path, run: Path, tmp_path: Path) -> None:
    from matplotlib import colormaps

    done = debm("score", run, folder, "--limit", 3, "--maps", tmp_path / "maps", "--precision", "fp32")
    assert done.status == 0
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["000.png", "001.png", "002.png"]
    pixels = load_images(folder, limit=3).pixels
    with torch.no_grad():
        model = DenoisingEBM.from_pretrained(run)
        maps = model.energy_map(to_float(pixels), 0.05, model.scoring_noise(4, 0)).numpy()
    limit = np.quantile(maps, 0.995)
    for i in range(3):
        picture = np.asarray(Image.open(tmp_path / "maps" / f"{i:03d}.png"))[::2, ::2].astype(int)
        np.testing.assert_array_equal(picture[:32, :, 0], pixels[i, 0].numpy())
        colours = colormaps["inferno"]((maps[i] / limit).clip(0, 1), bytes=True)[..., :3].astype(int)
        assert np.abs(picture[33:] - colours).max() <= 4
    assert float(re.findall(r"energy of (\S+) per pixel", done.err)[0]) == pytest.approx(limit, rel=0.01)


def test_score_refuses_unreadable_and_unfitting_images(debm: Any, folder: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.csv"
    out.write_text("old")
    assert "cut.png: unreadable image" in debm("score", run, folder, "--strict", "--out", out).error
    broken = tmp_path / "broken"
    broken.mkdir()
    shutil.copy(folder / "text.png", broken)
    assert debm("score", run, "digits", "--split", "all", "--out", out).error == "digits: no split 'all', only test"
    assert out.read_text() == "old"
    # A row for each file, whatever is wrong with it.
    error = debm("score", run, broken, "--out", out).error
    assert error.startswith(f"{broken}: none of 1 images can be read; text.png: cannot identify")
    (row,) = rows_of(out.read_text())
    assert (row["name"], row["status"]) == ("text.png", "unreadable") and row["reason"].startswith("cannot identify")


def test_images_that_do_not_fit_have_a_row_with_the_reason(debm: Any, folder: Path, run: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    shutil.copy(folder / "000.png", mixed / "a.png")
    Image.new("RGB", (32, 32), (255, 0, 0)).save(mixed / "b.png")
    Image.new("L", (48, 32)).save(mixed / "c.png")
    shutil.copy(folder / "001.png", mixed / "d.png")
    done = debm("score", run, mixed)
    assert done.status == 0 and "2 unreadable or unfit images left out, first b.png: the image has 3" in done.err
    rows = {row["name"]: row for row in rows_of(done.out)}
    assert [row["status"] for row in rows.values()] == ["ok", "unreadable", "unreadable", "ok"]
    assert rows["b.png"]["reason"] == "the image has 3 channels, the model takes 1; --convert brings it there"
    assert rows["c.png"]["reason"] == "is 48x32, expected 32x32; --resize brings it there"
    assert f"{mixed}/b.png: the image has 3 channels" in debm("score", run, mixed, "--strict").error
    converted = {row["name"]: row for row in rows_of(debm("score", run, mixed, "--convert", "--resize", "box").out)}
    assert {row["status"] for row in converted.values()} == {"ok"}
    for name in ("a.png", "d.png"):
        assert float(converted[name]["energy"]) == pytest.approx(float(rows[name]["energy"]), rel=1e-5)


def test_score_and_sample_survive_a_full_disk(
    debm: Any, folder: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, grid = tmp_path / "scores.csv", tmp_path / "grid.png"
    table.write_text("old table")
    grid.write_text("old grid")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("denoising_ebm.utils.io.os.fsync", full)
    assert debm("score", run, folder, "--limit", 2, "--out", table).error == f"{table}: no space left on device"
    assert debm("sample", run, "--n", 1, "--out", grid).error == f"{grid}: no space left on device"
    assert table.read_text() == "old table" and grid.read_text() == "old grid"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grid.png", "scores.csv"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_score_to_a_full_standard_output(folder: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["score", str(run), str(folder), "--limit", "2"]) == 2
        monkeypatch.undo()
        assert capfd.readouterr().err.splitlines()[-1] == "debm: error: no space left on device"
        full.flush()  # nothing is left that Python would try to write at its end


def test_a_terminal_gets_names_that_do_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, name in ((Terminal(), "a\\x1b[31m.png"), (io.StringIO(), "a\x1b[31m.png")):
        monkeypatch.setattr(sys, "stdout", stream)
        write_rows(iter([Score("a\x1b[31m.png", energy=1.5)]), None)
        assert stream.getvalue().splitlines()[1].split(",")[:2] == [name, "ok"]
