"""`debm fit-detector`, `debm score` with a detector, `debm evaluate`, on real images."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image

from command import rows_of
from denoising_ebm import DenoisingEBM, load_images
from denoising_ebm.cli import main
from denoising_ebm.cli.common import load_detector
from denoising_ebm.datasets import decode as decoding
from denoising_ebm.ood.conformal import benjamini_hochberg
from denoising_ebm.ood.corruptions import corruptions
from denoising_ebm.ood.detector import Detector
from denoising_ebm.ood.metrics import auroc

FAST = ["--precision", "fp32", "--batch-size", "512"]


@pytest.fixture(scope="session")
def fitted(run: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of `run` with a detector, calibrated on 99 test images."""
    model = tmp_path_factory.mktemp("fitted") / "model"
    shutil.copytree(run / "model", model)
    assert (
        main(
            [
                "fit-detector",
                str(model),
                str(folder),
                "--images",
                "200",
                "--limit",
                "201",
                "--corrupted-images",
                "20",
                *FAST,
            ]
        )
        == 0
    )
    return model


def test_fit_detector_keeps_a_fifth_or_takes_calibration_images(
    debm: Any, run: Path, folder: Path, tmp_path: Path
) -> None:
    done = debm("fit-detector", run, folder, "--images", 100, "--corrupted-images", 5, "--out", tmp_path / "a", *FAST)
    assert done.status == 0 and "detector fitted on 72 images, calibrated on 20 images" in done.err
    assert "false-alarm rates down to 0.048 can be promised" in done.err
    options = ["--images", 50, "--calibration", "fashion-mnist", "--calibration-split", "test"]
    few = ["--calibration-images", 60, "--corrupted-images", 5, "--groups", "none"]
    done = debm("fit-detector", run, folder, *options, *few, "--out", tmp_path / "b", *FAST)
    assert "detector fitted on 45 images, calibrated on 60 images" in done.err
    done = debm("fit-detector", run, folder, *options, "--calibration-images", 0, "--out", tmp_path / "b", *FAST)
    assert "--calibration-images must be >= 1, got 0" in done.error
    done = debm("fit-detector", run, folder, *options, "--corrupted-images", 0, "--out", tmp_path / "b", *FAST)
    assert "--corrupted-images must be >= 1, got 0" in done.error
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["detector.json", "detector.safetensors"]


def test_fit_detector_and_tune_decode_no_more_than_they_use(
    debm: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, read_bytes = [], decoding.read_bytes
    monkeypatch.setattr(decoding, "read_bytes", lambda value: count.append(1) or read_bytes(value))
    options = ["--images", 30, "--corrupted-images", 5, "--calibration", "fashion-mnist", "--calibration-images", 20]
    assert debm("fit-detector", run, "fashion-mnist", *options, "--out", tmp_path / "a", *FAST).status == 0
    assert len(count) == 30 + (30 + 20)
    count.clear()
    options = ["--images", 20, "--samples", 2, "--temperatures", "[1]"]
    assert debm("tune", run, "fashion-mnist", *options, "--out", tmp_path / "b").status == 0
    assert len(count) == 20


@pytest.mark.slow
def test_calibration_images_must_be_others(debm: Any, run: Path, folder: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(folder.glob("0[0-5]?.png")):
        shutil.copy(path, few)
    out = ["--corrupted-images", 5, "--groups", "none", "--out", tmp_path / "out", *FAST]
    error = debm("fit-detector", run, few, "--calibration", few, *out).error
    assert error == f"{few}: its images are all among those of {few} that are fitted to"
    assert not (tmp_path / "out").exists()
    some = ["--images", 20, "--calibration", few]
    done = debm("fit-detector", run, few, *some, *out)
    assert "20 images that are fitted to as well are left out" in done.err and "calibrated on 40 images" in done.err
    known = debm("evaluate", run, "--in", few, "--detector", tmp_path / "out", "--ood", "constant", *FAST)
    assert "fitted to or calibrated on 60 of these 60 images" in known.err
    new = ["--in", "fashion-mnist", "--limit", 20, "--ood", "constant"]
    assert "fitted to" not in debm("evaluate", run, *new, "--detector", tmp_path / "out", *FAST).err
    alone = debm("fit-detector", run, few, "--images", 40, *out)
    assert f"a fifth of the images drawn from {few} is held out for calibration" in alone.err


def test_images_are_prepared_as_those_of_fitting(debm: Any, run: Path, folder: Path, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.mkdir()
    for i in range(40):
        Image.open(folder / f"{i:03d}.png").resize((48, 64), Image.Resampling.BICUBIC).save(large / f"{i:02d}.png")
    options = ["--resize", "lanczos", "--center-crop", 44, "--corrupted-images", 5, "--out", tmp_path / "out"]
    assert debm("fit-detector", run, large, *options, *FAST).status == 0
    score = ["score", run, large, "--detector", tmp_path / "out", *FAST]
    plain, said, other = debm(*score), debm(*score, *options[:4]), debm(*score, "--resize", "box")
    assert plain.status == 0 and plain.out == said.out and rows_of(plain.out)[0]["resize"] == "lanczos"
    assert "--resize" not in plain.err + said.err
    assert (
        "--resize box: the detector was fitted to images with --resize lanczos; images prepared in another way"
        in other.err
    )


def test_score_with_a_detector(debm: Any, fitted: Path, folder: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for i in range(250, 290):
        shutil.copy(folder / f"{i}.png", mixed)
    shutil.copy(folder / "cut.png", mixed / "252a.png")
    noise = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    Image.fromarray(noise).save(mixed / "260a.png")
    out = tmp_path / "scores.csv"
    done = debm("score", fitted, mixed, "--fpr", 0.1, "--out", out, *FAST)
    assert done.status == 0, done.err
    rows = rows_of(out.read_text())
    assert [row["name"] for row in rows] == sorted(path.name for path in mixed.iterdir())
    by_name = {row["name"]: row for row in rows}
    unread = {"name": "252a.png", "status": "unreadable", "reason": by_name["252a.png"]["reason"]}
    assert by_name["252a.png"] == dict.fromkeys(rows[0], "") | unread and unread["reason"]
    assert by_name["260a.png"]["flagged"] == "true"
    assert float(by_name["260a.png"]["p_value"]) == pytest.approx(1 / 41, rel=1e-3)
    readable = [row for row in rows if row["status"] == "ok"]
    assert sum(row["flagged"] == "true" for row in readable) == int(re.findall(r"(\d+) flagged", done.err)[0])
    assert all((float(row["p_value"]) <= 0.1) == (row["flagged"] == "true") for row in readable)
    assert all((row["nearest_corruption"] in corruptions(1)) == (row["flagged"] == "true") for row in readable)

    detector = Detector.from_pretrained(fitted)
    images = load_images(mixed)
    scores = detector.score(images.pixels)
    np.testing.assert_allclose([float(row["score"]) for row in readable], scores.numpy(), rtol=1e-3, atol=2e-3)
    np.testing.assert_allclose(
        [float(row["p_value"]) for row in readable], detector.p_values(scores).numpy(), atol=1 / 40
    )

    parts = debm("score", fitted, mixed, "--fdr", 0.2, "--out", tmp_path / "scores.parquet", *FAST)
    assert parts.status == 0
    table = parquet.read_table(tmp_path / "scores.parquet").to_pylist()
    assert [row["name"] for row in table] == [row["name"] for row in rows]
    flags = benjamini_hochberg(detector.p_values(scores), 0.2).tolist()
    assert [row["flagged"] for row in table if row["status"] == "ok"] == flags
    assert [row["flagged"] for row in table].count(None) == 1
    assert "with 40 calibration images: either none or at least 5 are flagged" in parts.err
    # With enough of them it does flag: the noise, many times.
    for i in range(8):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (32, 32), dtype=np.uint8)).save(mixed / f"n{i}.png")
    many = {row["name"]: row["flagged"] for row in rows_of(debm("score", fitted, mixed, "--fdr", 0.2, *FAST).out)}
    assert all(many[f"n{i}.png"] == "true" for i in range(8)) and list(many.values()).count("true") < 20


def test_pictures_do_not_take_the_place_of_images(debm: Any, fitted: Path, folder: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    shutil.copy(folder / "000.png", photos)
    before = (photos / "000.png").read_bytes()
    for out in (photos, photos / "maps"):
        message = f"{out}: lies in the folder of the images, {photos}; give another one"
        assert f"--maps {message}" in debm("score", fitted, photos, "--maps", out, *FAST).error
        options = ["--task", "denoise", "--sigma", 0.1, "--out", out]
        assert f"--out {message}" in debm("restore", fitted, photos, *options).error
    assert (photos / "000.png").read_bytes() == before and len(list(photos.iterdir())) == 1
    # Beside a single file there is room for a folder of its own.
    done = debm("score", fitted, photos / "000.png", "--maps", photos / "maps", *FAST)
    assert done.status == 0 and (photos / "maps" / "000.png").is_file()


def test_what_cannot_be_written_is_told_before_the_work(
    debm: Any, fitted: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("work was done first")

    monkeypatch.setattr(Detector, "projections", never)
    monkeypatch.setattr(Detector, "fit", never)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.csv").mkdir()
    below = tmp_path / "file" / "x"
    assert "cannot be written: " in debm("score", fitted, folder, "--out", f"{below}.csv", *FAST).error
    assert "is a folder, not a file" in debm("score", fitted, folder, "--out", tmp_path / "folder.csv", *FAST).error
    assert "cannot be written: " in debm("score", fitted, folder, "--maps", below, *FAST).error
    assert "cannot be written: " in debm("fit-detector", fitted, folder, "--out", below, *FAST).error
    monkeypatch.setattr(Detector, "score", never)
    sets = ["--in", folder, "--ood", "constant"]
    assert "cannot be written: " in debm("evaluate", fitted, *sets, "--out", tmp_path / "file", *FAST).error


def test_names_that_are_not_unicode(debm: Any, fitted: Path, folder: Path, tmp_path: Path) -> None:
    """As old archives leave them: no score is lost for a name, and it is the same in every table."""
    old = tmp_path / "old"
    old.mkdir()
    for name in (b"caf\xe9.png", b"=1+1.png", b"two\nlines\x1b[31m.png", b"n" * 246 + b".png", b"o" * 251 + b".png"):
        shutil.copy(folder / "000.png", old / os.fsdecode(name))
    shutil.copy(folder / "text.png", old / os.fsdecode(b"@\xff.png"))
    for out in ("a.csv", "a.parquet", "a.jsonl"):
        page = ["--report", tmp_path / "page.html", "--maps", tmp_path / "maps"]
        done = debm("score", fitted, old, "--out", tmp_path / out, *page, *FAST)
        assert done.status == 0 and "\x1b" not in done.err, done.err
        assert f"{old}: 1 unreadable or unfit image left out, first @\\xff.png: " in done.err
    names = ["=1+1.png", "@\\xff.png", "caf\\xe9.png", f"{'n' * 246}.png", f"{'o' * 251}.png", "two\nlines\x1b[31m.png"]
    assert parquet.read_table(tmp_path / "a.parquet")["name"].to_pylist() == names
    assert [json.loads(line)["name"] for line in (tmp_path / "a.jsonl").read_text().splitlines()] == names
    text = (tmp_path / "a.csv").read_text(encoding="utf-8")
    guarded = [f"'{name}" if name[0] in "=@" else name for name in names]
    assert [row["name"] for row in rows_of(text)] == guarded and text.startswith("name,status,")
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "caf\\xe9.png" in html and "two\\nlines\\x1b[31m.png" in html and "\x1b" not in html
    assert len(list((tmp_path / "maps").iterdir())) == 5
    command = [sys.executable, "-m", "denoising_ebm", "score", fitted, old, *FAST]
    printed = subprocess.run(command, capture_output=True, check=True)
    assert [row["name"] for row in rows_of(printed.stdout.decode())] == guarded


def test_a_bundled_name_that_stands_here_too_is_asked_about(
    debm: Any, fitted: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    assert (
        "digits is both a bundled dataset and a local path; use ./digits for the path"
        in debm("score", fitted, "digits", "--limit", 2, *FAST).error
    )
    rows = rows_of(debm("score", fitted, "./digits", "--limit", 2, *FAST).out)
    assert [row["name"] for row in rows] == ["000.png", "001.png"]


def test_maps_and_page(debm: Any, fitted: Path, folder: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    for name in ("000.png", "001.png", "text.png"):
        shutil.copy(folder / name, small)
    page = tmp_path / "page.html"
    done = debm("score", fitted, small, "--maps", tmp_path / "maps", "--report", page, "--fpr", 0.05, *FAST)
    assert done.status == 0 and "2 maps, strongest colours at a z-score of 3 per pixel" in done.err
    from matplotlib import colormaps

    detector = Detector.from_pretrained(fitted)
    maps = detector.maps(load_images(small).pixels).numpy()
    for i in range(2):
        picture = np.asarray(Image.open(tmp_path / "maps" / f"00{i}.png"))[::2, ::2].astype(int)
        colours = colormaps["RdBu_r"]((maps[i] / 3 + 1) / 2, bytes=True)[..., :3].astype(int)
        assert np.abs(picture[33:] - colours).max() <= 4
    text = page.read_text()
    assert "text.png" in text and "2 scored, 1 unreadable" in text and "at most 0.05 of normal images" in text
    assert text.count("data:image/png") == 2 and "fitted on 144 images" in text


def test_maps_of_large_images_from_tiles(debm: Any, fitted: Path, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.mkdir()
    pixels = load_images("fashion-mnist", split="test", limit=6).pixels[:, 0].numpy()
    sheet = np.concatenate([np.concatenate(list(pixels[:3]), 1), np.concatenate(list(pixels[3:]), 1)])
    Image.fromarray(sheet).save(large / "a.png")
    options = ["--resize", "box", "--maps", tmp_path / "maps", "--tiles", *FAST]
    done = debm("score", fitted, large, *options)
    assert done.status == 0 and rows_of(done.out)[0]["resize"] == "box"
    picture = np.asarray(Image.open(tmp_path / "maps" / "a.png"))[::2, ::2]
    assert picture.shape == (129, 96, 3)
    np.testing.assert_array_equal(picture[:64, :, 0], sheet)
    Image.fromarray(sheet[:20, :40]).save(large / "b.png")
    done = debm("score", fitted, large, *options)
    assert done.status == 0 and f"{large}/b.png: no map: images must be at least 32 x 32, got 20 x 40" in done.err
    assert "1 maps" in done.err


def test_page_of_energies_without_a_detector(debm: Any, run: Path, tmp_path: Path) -> None:
    done = debm("score", run, "fashion-mnist", "--limit", 5, "--report", tmp_path / "page.html", *FAST)
    assert done.status == 0
    assert "fit a detector" in (tmp_path / "page.html").read_text()


def test_what_score_refuses_about_detectors(debm: Any, fitted: Path, run: Path, folder: Path, tmp_path: Path) -> None:
    assert debm("score", run, folder, "--fpr", 0.1).error.endswith(
        "--fpr and --fdr need a detector; `debm fit-detector` makes it"
    )
    message = "a false-alarm rate of 0.01 needs at least 99 calibration images, there are 40"
    assert debm("score", fitted, folder, "--fpr", 0.01).error == message
    assert "detector.json: missing" in debm("score", fitted, folder, "--detector", tmp_path).error
    # Weights that were trained further.
    other = tmp_path / "other"
    shutil.copytree(fitted, other)
    model = DenoisingEBM.from_pretrained(fitted)
    with torch.no_grad():
        model.dae.unet.decoder.levels[0].parameters().__next__().add_(0.01)
    model.save_pretrained(other)
    error = debm("score", other, folder).error
    assert error.startswith(f"{other}/detector.json: fitted for other weights")
    # What is no file is no missing detector either.
    (other / "detector.json").unlink()
    os.mkfifo(other / "detector.json")
    assert debm("score", other, folder).error == f"{other}/detector.json: is a named pipe, not a file"
    (other / "detector.json").unlink()
    (other / "detector.json").symlink_to(tmp_path / "nothing")
    assert debm("score", other, folder).error == f"{other}/detector.json: no such file or directory"


def test_evaluate(debm: Any, fitted: Path, tmp_path: Path) -> None:
    options = ["--in", "fashion-mnist", "--limit", 60, "--ood", "digits=digits@test", "--ood", "uniform-noise"]
    done = debm("evaluate", fitted, *options, "--resamples", 20, "--out", tmp_path, *FAST)
    assert done.status == 0, done.err
    table = parquet.read_table(tmp_path / "scores.parquet").to_pandas()
    assert set(table["set"]) == {"normal", "digits", "uniform-noise"} and len(table) == 2 * 180
    with open(tmp_path / "results.csv") as file:
        rows = {(row["score"], row["set"]): row for row in rows_of(file.read())}
    assert len(rows) == 4
    for (score, name), row in rows.items():
        part = table[table["score"] == score]
        values = {key: part[part["set"] == key]["value"].to_numpy() for key in ("normal", name)}
        assert float(row["auroc"]) == pytest.approx(auroc(values["normal"], values[name]), abs=1e-5)
        assert float(row["auroc_low"]) <= float(row["auroc"]) <= float(row["auroc_high"])
    # A network of 640 training images, and a detector of 144.
    assert float(rows["detector", "uniform-noise"]["auroc"]) > 0.9
    # Scores of the command are those of the detector, energies those of the model.
    normal = load_images("fashion-mnist", split="test", limit=60).pixels
    found = table[(table["score"] == "detector") & (table["set"] == "normal")]["value"].to_numpy()
    np.testing.assert_allclose(found, Detector.from_pretrained(fitted).score(normal).numpy(), rtol=1e-3, atol=2e-3)
    assert "| detector | digits | 60 |" in done.out and "| 0.05 |" in done.out
    page = (tmp_path / "index.html").read_text()
    assert "False alarms" in page and page.count("data:image/png") == 4


def test_evaluate_refuses_what_is_not_there(debm: Any, run: Path, tmp_path: Path) -> None:
    start = ["evaluate", run, "--in", "fashion-mnist", "--limit", 5, "--ood"]
    assert debm(*start, "foxes").error.startswith("--ood: foxes is neither NAME=DATA nor one of all, interpolation")
    assert debm(*start, "a=digits", "--ood", "a=digits").error == "--ood: a is given twice"
    assert "nowhere: no such file" in debm(*start, "a=nowhere").error
    assert debm(*start, "a=digits@train").error == "digits: no split 'train', only test"
    assert debm(*start, "digits=digits", "--resamples", 1).error == "--resamples must be >= 2, got 1"
    assert debm(*start, "digits=digits", "--batch-size", 0).error == "--batch-size must be >= 1, got 0"


def test_evaluate_without_a_detector_measures_the_energy(debm: Any, run: Path) -> None:
    done = debm("evaluate", run, "--in", "fashion-mnist", "--limit", 20, "--ood", "all", "--resamples", 2, *FAST)
    assert done.status == 0 and "has no detector" in done.err
    assert done.out.count("energy at sigma 0.05 |") == 16


def test_a_detector_in_a_precision_that_is_slow_here_says_so(
    fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def auto_is(precision: str) -> None:
        chosen = lambda wanted, _: precision if wanted == "auto" else wanted  # noqa: E731
        monkeypatch.setattr("denoising_ebm.utils.device.choose_precision", chosen)

    shutil.copytree(fitted, tmp_path / "model")
    path = tmp_path / "model" / "detector.json"
    values = json.loads(path.read_text()) | {"precision": "bf16"}
    del values["sha256"]["detector.json"]  # changed on purpose
    path.write_text(json.dumps(values))
    for folder, fast, told in ((path.parent, "fp32", True), (path.parent, "bf16", False), (fitted, "fp32", False)):
        auto_is(fast)
        load_detector(str(folder), None, DenoisingEBM.from_pretrained(folder))
        assert ("was fitted in bf16, which is slow on this device" in capsys.readouterr().err) == told


@pytest.fixture(scope="module")
def compressed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty of the images, new to the detector, as JPEG."""
    out = tmp_path_factory.mktemp("compressed")
    for i in range(250, 290):
        Image.open(folder / f"{i}.png").save(out / f"{i}.jpg", quality=75)
    return out


def test_images_that_were_stored_otherwise_are_told(
    debm: Any, fitted: Path, folder: Path, compressed: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    done = debm("score", fitted, compressed, "--out", tmp_path / "a.csv", "--report", page, *FAST)
    told = "40 of 40 images are JPEG of quality about 75; the detector saw 200 PNG: its false-alarm rate need not hold"
    assert [told in line for line in done.err.splitlines()].count(True) == 1 and "--harmless jpeg" in done.err
    assert "40 of 40 images are JPEG of quality about 75" in page.read_text()
    assert (
        "the detector saw" not in debm("score", fitted, folder, "--limit", 20, "--out", tmp_path / "b.csv", *FAST).err
    )
    sets = ["--in", folder, "--limit", 40, "--ood", f"copy={compressed}", "--ood", "blur", "--resamples", 2]
    done = debm("evaluate", fitted, *sets, "--out", tmp_path / "page", *FAST)
    told = (
        "the sets were stored in different ways (normal: 40 PNG, at their own size; copy: 40 JPEG of quality about 75)"
    )
    assert [told in line for line in done.err.splitlines()].count(True) == 1 and "blur:" not in done.err
    assert told in (tmp_path / "page" / "index.html").read_text()
    done = debm("evaluate", fitted, *sets[:4], "--ood", "blur", "--resamples", 2, *FAST)
    assert done.status == 0 and "stored in different ways" not in done.err


def test_frames_of_few_scenes_promise_nothing_they_cannot_keep(
    debm: Any, run: Path, folder: Path, tmp_path: Path
) -> None:
    frames, generator = tmp_path / "frames", np.random.default_rng(0)
    frames.mkdir()
    for scene in range(6):
        pixels = np.asarray(Image.open(folder / f"{scene:03d}.png")).astype(float)
        for i in range(10):
            frame = np.roll(pixels, generator.integers(-1, 2), axis=1) + generator.normal(0, 2, pixels.shape)
            Image.fromarray(frame.round().clip(0, 255).astype(np.uint8)).save(frames / f"scene{scene}_{i:03d}.png")
    few = ["--corrupted-images", 2, *FAST]
    done = debm("fit-detector", run, frames, "--out", tmp_path / "a", *few)
    assert done.status == 0
    assert (
        "60 images are not alone in their group (by near copies and names of files): 5 groups to fit to, 1 for"
        in done.err
    )
    assert "no rate below 0.5 is: give images of more groups" in done.err
    assert "false-alarm rates down to 0.5 can be promised on average; with so few" in done.err
    refused = debm("score", run, frames, "--detector", tmp_path / "a", "--fpr", 0.05, *FAST)
    assert refused.error == "a false-alarm rate of 0.05 needs at least 19 calibration groups, there are 1"
    by_pattern = debm("fit-detector", run, frames, "--groups", r"^(scene\d+)_", "--out", tmp_path / "b", *few)
    assert "not alone in their group (by pattern): 5 groups to fit to, 1 for calibration" in by_pattern.err
    alone = debm("fit-detector", run, frames, "--groups", "none", "--out", tmp_path / "c", *few)
    assert "group" not in alone.err and "rates down to 0.077 can be promised" in alone.err
    wrong = debm("fit-detector", run, frames, "--groups", "scene", "--out", tmp_path / "d", *few)
    assert "nor a pattern with one group in parentheses" in wrong.error and not (tmp_path / "d").exists()
