"""A model keeps how its images were prepared, and commands prepare new ones the same way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from command import TRAIN
from denoising_ebm import DenoisingEBM, load_images
from denoising_ebm.datasets.preprocessing import Preprocessing

RESIZED = ("--resize", "lanczos", "--center-crop", "24")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images of 36 x 36, of which a model of 32 x 32 sees the central 24 x 24, enlarged."""
    folder = tmp_path_factory.mktemp("large")
    for i, pixels in enumerate(load_images("fashion-mnist", limit=60).pixels):
        Image.fromarray(pixels[0].numpy()).resize((36, 36), Image.Resampling.BOX).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def run(large: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from denoising_ebm.cli import main

    out = tmp_path_factory.mktemp("runs") / "resized"
    assert main(["train", str(large), *TRAIN, *RESIZED, "--out", str(out), "--max-images", "320"]) == 0
    return out


def test_the_model_keeps_it_and_says_it(debm: Any, run: Path) -> None:
    model = DenoisingEBM.from_pretrained(run)
    assert model.preprocessing == Preprocessing(32, 1, resize="lanczos", center_crop=24)
    assert "resize lanczos, center_crop 24" in " ".join(debm("info", run).out.split())
    assert json.loads(debm("info", run, "--json").out)["preprocessing"]["center_crop"] == 24
    assert "| images prepared | resize lanczos, center_crop 24 |" in (run / "model" / "README.md").read_text()


def test_scores_are_those_of_images_prepared_the_same_way(debm: Any, run: Path, large: Path) -> None:
    without, given = (debm("score", run, large, *options) for options in ((), RESIZED))
    assert without.status == given.status == 0
    assert without.out == given.out and ",ok," in without.out
    assert "prepared in another way" not in without.err + given.err
    other = debm("score", run, large, "--resize", "box")
    assert other.status == 0 and other.out != without.out
    assert "--resize box: the model was trained on images with --resize lanczos" in other.err
    assert "no --center-crop: the model was trained on images with --center-crop 24" in other.err


def test_a_resumed_run_keeps_it(debm: Any, run: Path, large: Path) -> None:
    refused = debm("train", large, "--out", run, "--resume", "--max-images", 384, "--resize", "box")
    assert refused.error.startswith("--resize box: the run is on images with --resize lanczos; resume keeps how images")
    before = DenoisingEBM.from_pretrained(run)
    resumed = debm("train", large, "--out", run, "--resume", "--max-images", 384, "--precision", "fp32")
    assert resumed.status == 0, resumed.err
    after = DenoisingEBM.from_pretrained(run)
    assert after.preprocessing == before.preprocessing and after.metadata["images seen"] == 384
    saved = torch.load(run / "state.pt", weights_only=True)
    assert saved["preprocessing"]["resize"] == "lanczos"


def test_a_detector_is_fitted_to_images_prepared_the_same_way(
    debm: Any, run: Path, large: Path, tmp_path: Path
) -> None:
    result = debm("fit-detector", run, large, "--out", tmp_path, "--corrupted-images", 4)
    assert result.status == 0, result.err
    values = json.loads((tmp_path / "detector.json").read_text())["preprocessing"]
    assert (values["resize"], values["center_crop"]) == ("lanczos", 24)


def test_images_are_restored_prepared_the_same_way(debm: Any, run: Path, large: Path, tmp_path: Path) -> None:
    result = debm("restore", run, large, "--task", "denoise", "--sigma", "0.1", "--limit", 2, "--out", tmp_path / "out")
    assert result.status == 0, result.err
    with Image.open(next((tmp_path / "out").glob("*.png"))) as picture:
        assert picture.size == (32, 32)


def test_reproduce_reads_images_as_those_of_its_model(large: Path) -> None:
    from denoising_ebm.cli.reproduce import _read

    prepared = Preprocessing(32, 1, resize="lanczos", center_crop=24)
    train, test = _read(str(large), None, prepared=prepared)
    expected = load_images(large, image_size=32, resize="lanczos", center_crop=24)
    assert sorted(train.names + test.names) == sorted(expected.names)
    for part in (train, test):
        places = [expected.names.index(name) for name in part.names]
        assert torch.equal(part.pixels, expected.pixels[places])
    # What the options say goes first.
    assert _read(str(large), None, 16, prepared=prepared)[0].pixels.shape[2:] == (16, 16)
