"""`debm restore`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from denoising_ebm import load_images, to_float, to_uint8
from denoising_ebm.restoration.metrics import psnr
from denoising_ebm.restoration.operators import blurred


def test_missing_scikit_image_is_told_before_any_work(
    debm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    options = ["--limit", 2, "--task", "denoise", "--sigma", 0.5, "--out", tmp_path / "out"]
    result = debm("restore", "fashion-mnist", "fashion-mnist", "--degrade", *options)
    assert "pip install 'denoising-ebm[eval]'" in result.error and not (tmp_path / "out").exists()


def test_command_restores_real_images(debm: Any, tmp_path: Path) -> None:
    common = ["fashion-mnist", "fashion-mnist", "--limit", 8, "--degrade", "--precision", "fp32"]
    result = debm(
        "restore", *common, "--task", "denoise", "--sigma", 0.5, "--out", tmp_path / "out", "--grid", tmp_path / "g.png"
    )
    assert result.status == 0, result.err
    degraded, restored = (float(line.split("PSNR")[1].split("dB")[0]) for line in result.out.splitlines()[1:])
    # Clipped to the range of pixels, noise of .5 leaves 12 to 15 dB; the bundled model brings back more than 6 dB.
    assert 12 < degraded < 15.5 and restored > degraded + 6
    files = sorted((tmp_path / "out").glob("*.png"))
    assert len(files) == 8
    for path, size in ((files[0], (32, 32)), (tmp_path / "g.png", (2 * (8 * 33 + 1), 2 * (3 * 33 + 1)))):
        with Image.open(path) as picture:
            assert picture.size == size

    mask = np.zeros((32, 32), dtype=np.uint8)
    mask[12:20, 12:20] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    options = ["--steps", 20, "--samples", 2, "--out", tmp_path / "filled"]
    result = debm("restore", *common, "--task", "inpaint", "--mask", tmp_path / "mask.png", *options)
    assert result.status == 0, result.err
    clean = load_images("fashion-mnist", split="test", limit=8).pixels
    filled = load_images(tmp_path / "filled").pixels
    hole = torch.from_numpy(mask > 0)
    assert torch.equal(filled[..., ~hole], clean[..., ~hole])
    black = (clean[..., hole].double() - 127.5).square().mean()  # a hole is 0 in data units: middle gray
    assert float((filled[..., hole].double() - clean[..., hole].double()).square().mean()) < 0.5 * float(black)


def test_rounding_of_files_is_not_enlarged(debm: Any, tmp_path: Path) -> None:
    """A blurred file without noise is sharpened, though its rounding to 256 levels is noise too."""
    clean = load_images("fashion-mnist", split="test", limit=4).pixels
    soft = to_uint8(blurred(1.5, 32).apply(to_float(clean)))
    (tmp_path / "soft").mkdir()
    for i, pixels in enumerate(soft):
        Image.fromarray(pixels[0].numpy()).save(tmp_path / "soft" / f"{i}.png")
    options = ["--task", "deblur", "--blur", 1.5, "--steps", 20, "--samples", 2, "--precision", "fp32"]
    result = debm("restore", "fashion-mnist", tmp_path / "soft", *options, "--out", tmp_path / "sharp")
    assert result.status == 0, result.err
    sharp = load_images(tmp_path / "sharp").pixels
    assert float(psnr(sharp, clean).mean()) > float(psnr(soft, clean).mean()) + 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "denoise"], "--task denoise needs --sigma"),
        (["--task", "inpaint"], "--task inpaint needs --mask"),
        (["--task", "deblur", "--sigma", "0.1"], "--task deblur needs --blur"),
        (["--task", "denoise", "--sigma", "0.1", "--blur", "2"], "--blur is for --task deblur"),
        (["--task", "denoise", "--sigma", "50"], "within the model's noise levels"),
        (["--task", "inpaint", "--mask", "nowhere.png"], "nowhere.png: no such file"),
        (["--task", "denoise", "--sigma", "0.1", "--batch-size", "0"], "--batch-size must be >= 1"),
        (["--task", "denoise", "--sigma", "0.1", "--out", ""], "nothing to write"),
    ],
)
def test_command_refuses(
    options: list[str], message: str, debm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = debm("restore", "fashion-mnist", "fashion-mnist", "--limit", 2, *options)
    assert message in result.error


def test_a_mask_of_another_size_is_refused(debm: Any, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(tmp_path / "mask.png")
    inpaint = ["fashion-mnist", "fashion-mnist", "--limit", 1, "--task", "inpaint", "--mask", tmp_path / "mask.png"]
    assert "the mask is 8x8, the images are 32x32" in debm("restore", *inpaint).error
    Image.fromarray(to_uint8(-torch.ones(32, 32)).numpy()).save(tmp_path / "mask.png")
    assert "mask.png: the mask must mark some pixels" in debm("restore", *inpaint).error
    inpaint[-1] = tmp_path
    assert f"{tmp_path}: is a folder; --mask takes one picture, for all images" in debm("restore", *inpaint).error


def test_finished_batches_are_kept(debm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def second_fails(model: Any, y: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        calls.append(len(y))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return y

    monkeypatch.setattr("denoising_ebm.restoration.posterior.restore", second_fails)
    options = ["--task", "denoise", "--sigma", 0.1, "--limit", 5, "--batch-size", 3, "--out", tmp_path / "out"]
    assert debm("restore", "fashion-mnist", "fashion-mnist", *options).status == 130
    clean = load_images("fashion-mnist", split="test", limit=3).pixels
    assert calls == [3, 2] and torch.equal(load_images(tmp_path / "out").pixels, clean)
