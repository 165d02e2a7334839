"""`debm inspect`: with a model that is there, and from photos to a page in one command."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from denoising_ebm.datasets.photos import open_photos
from denoising_ebm.inspection.head import HeadConfig
from denoising_ebm.inspection.inspector import Inspector, InspectorConfig
from denoising_ebm.inspection.training import photo_config, train_inspector
from denoising_ebm.presets import preset


def make_photos(folder: Path) -> Path:
    """Write gray photos of a grain in MVTec AD's layout, the defective ones with a light square."""
    rng = np.random.default_rng(0)

    def grain() -> np.ndarray:
        return (128 + 10 * rng.standard_normal((60, 72))).clip(0, 255).astype(np.uint8)

    for part, kind, count in (("train", "good", 44), ("test", "good", 4), ("test", "spot", 4)):
        (folder / part / kind).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels, mask = grain(), np.zeros((60, 72), np.uint8)
            if kind == "spot":
                mask[10 : 22 + i, 30:42] = 255
                pixels[mask > 0] = 240
                (folder / "ground_truth/spot").mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(folder / f"ground_truth/spot/{i}_mask.png")
            Image.fromarray(pixels).save(folder / part / kind / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was trained for seconds, on a network of the smallest size."""
    folder = tmp_path_factory.mktemp("run")
    small = {"image_size": 32, "widths": (8, 8, 8), "decoder_widths": (8, 8), "latent_dim": 8, "embedding_dim": 8}
    config = preset("photo")
    config = replace(config, network=replace(config.network, **small))
    config = photo_config(1, minutes=0, seed=0, base=config)
    config = replace(config, training=replace(config.training, max_images=1600, sample_minutes=0))
    head = HeadConfig(widths=(8, 16), crop=32, learning_rate=5e-3, max_crops=1200, max_minutes=5)
    normal = open_photos(photos, default_split="train", normal_only=True)
    config_of = InspectorConfig(head=head)
    train_inspector(normal, folder, config=config_of, model_config=config, precision="fp32", quiet=True)
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_defects_are_flagged_marked_and_repaired(debm: Any, photos: Path, run: Path, tmp_path: Path) -> None:
    done = debm("inspect", photos, "--model", run, "--rate", 0.1, "--out", tmp_path)
    assert done.status == 0, done.err
    rows = {row["name"]: row for row in rows_of(tmp_path / "photos.csv")}
    assert len(rows) == 8
    spots = [row for name, row in rows.items() if "spot" in name]
    assert [row["flagged"] for row in spots] == ["true"] * 4
    assert all(float(row["p_value"]) == 0.05 for row in spots)
    (everything,) = rows_of(tmp_path / "metrics.csv")
    assert everything["image_auroc"] == "1.0"
    assert float(everything["pixel_auroc"]) > 0.9
    assert "image auroc" in done.out
    for folder in ("masks", "maps", "overlays", "repaired", "difference"):
        assert (tmp_path / folder / "test/spot").is_dir()
    marked = np.asarray(Image.open(tmp_path / "masks/test/spot/0.png")) > 0
    true = np.asarray(Image.open(photos / "ground_truth/spot/0_mask.png")) > 0
    assert (marked & true).sum() > 0.5 * true.sum()
    repaired = np.asarray(Image.open(tmp_path / "repaired/test/spot/0.png").convert("L")).astype(int)
    assert repaired[true & marked].mean() < 190
    assert "4 of 8 photos flagged" in done.err or "5 of 8 photos flagged" in done.err


def test_a_photo_that_cannot_be_read_takes_nothing_from_the_others(
    debm: Any, photos: Path, run: Path, tmp_path: Path
) -> None:
    new = tmp_path / "new"
    new.mkdir()
    for name in ("a.png", "b.png"):
        (new / name).write_bytes((photos / "test/good/0.png").read_bytes())
    (new / "b.png").write_bytes((new / "b.png").read_bytes()[:300])
    Image.new("RGB", (40, 40), (200, 30, 30)).save(new / "c.png")
    done = debm("inspect", new, "--model", run, "--out", tmp_path / "out", "--maps", "none", "--no-repair")
    assert done.status == 0, done.err
    rows = rows_of(tmp_path / "out/photos.csv")
    assert [row["status"] for row in rows] == ["ok", "unreadable", "unreadable"]
    assert "cut off" in rows[1]["notes"]
    assert "has 3 channels" in rows[2]["notes"]
    assert "2 not judged" in done.err
    assert not (tmp_path / "out/maps").exists()


def test_the_inspector_is_read_as_it_was_written(run: Path, photos: Path) -> None:
    inspector = Inspector.from_pretrained(run)
    assert inspector.num_calibration == 19
    assert inspector.metadata["photos fitted to"] == 25
    assert inspector.config.aligned is False
    assert inspector.model.preprocessing is None


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ([], "give --model FOLDER, or --train to make one"),
        (["--model", "{run}", "--rate", "0.01"], "a false-alarm rate of 0.01 needs at least 99 calibration photos"),
        (["--model", "{run}", "--rate", "2"], "--rate must be in (0, 1), got 2"),
        (["--model", "{run}", "--normal", "x"], "--normal needs --train"),
        (["--model", "{run}", "--min-area", "0"], "--min-area must be >= 1, got 0"),
        (["--model", "fashion-mnist"], "inspector.json: missing; `debm inspect --train` makes it"),
        (["--train", "--minutes", "0"], "--minutes must be > 0, got 0"),
        (
            ["--train", "--rate", "0.01"],
            "a false-alarm rate of 0.01 needs at least 99 calibration photos, there are 19",
        ),
        (["--train", "--normal", "{photos}/test/good"], "needs at least 20 normal photos"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    debm: Any, photos: Path, run: Path, tmp_path: Path, options: list[str], error: str
) -> None:
    given = [option.format(run=run, photos=photos) for option in options]
    assert error in debm("inspect", photos, "--out", tmp_path / "out", *given).error


def test_evaluate_and_info_know_photographs(debm: Any, photos: Path, run: Path, tmp_path: Path) -> None:
    done = debm("evaluate", run, "--in", photos, "--rate", 0.1, "--resamples", 20)
    assert done.status == 0, done.err
    assert "image auroc               | 1.000" in done.out
    assert debm("evaluate", run, "--in", photos, "--ood", "blur").error.endswith("leave --ood out")
    assert "--ood is required for fashion-mnist" in debm("evaluate", "fashion-mnist", "--in", "fashion-mnist").error
    assert "good/ beside others" in debm("evaluate", run, "--in", photos / "test/spot").error
    shown = debm("info", run).out
    assert "networks take any size" in shown
    assert "inspector" in shown


def test_results_do_not_go_among_the_photos(debm: Any, photos: Path, run: Path) -> None:
    assert "lies in the folder of the images" in debm("inspect", photos, "--model", run, "--out", photos / "out").error


def test_photos_are_read_as_those_of_training(debm: Any, photos: Path, run: Path, tmp_path: Path) -> None:
    inspector = Inspector.from_pretrained(run)
    inspector.config = replace(inspector.config, value_range=(0.0, 4095.0))
    folder = tmp_path / "model"
    inspector.model.save_pretrained(folder)
    inspector.save(folder)
    (tmp_path / "new").mkdir()
    # The same levels, in the low twelve of sixteen bits.
    pixels = np.asarray(Image.open(photos / "test/spot/0.png")).astype(np.uint16) * 16
    Image.fromarray(pixels).save(tmp_path / "new/0.png")
    done = debm("inspect", tmp_path / "new", "--model", folder, "--rate", 0.1, "--out", tmp_path / "out", "--no-repair")
    assert done.status == 0, done.err
    (row,) = rows_of(tmp_path / "out/photos.csv")
    assert row["flagged"] == "true"
    assert Inspector.from_pretrained(folder).config.value_range == (0.0, 4095.0)


def test_a_damaged_photo_does_not_stop_training(debm: Any, photos: Path, tmp_path: Path) -> None:
    normal = tmp_path / "normal"
    normal.mkdir()
    for i in range(12):
        (normal / f"{i}.png").write_bytes((photos / f"train/good/{i}.png").read_bytes())
    (normal / "x.png").write_bytes((normal / "0.png").read_bytes()[:300])
    options = ["--train", "--normal", normal, "--rate", 0.2, "--out", tmp_path / "out"]
    done = debm("inspect", photos, *options)
    # It is left out and named; the others are too few, which is said before any training.
    assert "1 photo cannot be read: x.png" in done.err
    assert (
        "needs at least 20 normal photos, half of them for the promise (10 normal photos can promise rates"
        in done.error
    )
    assert done.error.endswith("got 12")


@pytest.mark.slow
def test_from_photos_to_a_page_in_one_command(debm: Any, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = debm("inspect", photos, "--train", "--minutes", 0.2, "--rate", 0.1, "--out", out, "--no-repair")
    assert done.status == 0, done.err
    assert "19 normal photos can promise rates from 0.05 on" in done.err
    assert len(rows_of(out / "photos.csv")) == 8
    again = debm("inspect", photos, "--model", out / "run", "--rate", 0.1, "--out", tmp_path / "b", "--no-repair")
    assert again.status == 0, again.err
    assert rows_of(out / "photos.csv") == rows_of(tmp_path / "b/photos.csv")
