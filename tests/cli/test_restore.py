"""`debm restore`."""

from __future__ import annotations

import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from denoising_ebm import load_images, to_float, to_uint8
from denoising_ebm.cli.options import ImageOptions
from denoising_ebm.config import EnergyConfig
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.restoration.metrics import psnr
from denoising_ebm.restoration.operators import blurred, noisy
from denoising_ebm.training.calibration import normalise
from denoising_ebm.utils.lock import locked
from denoising_ebm.utils.seeds import ImageNoise
from support import random_pixels, randomise, tiny_config


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
        (["--task", "denoise", "--sigma", "2000/255"], "within the model's noise levels, 0.01 to 10, got 15.6863"),
        (["--task", "denoise", "--sigma", "25"], "25 gray levels are --sigma 25/255, which is 0.196 here (25/127.5)"),
        (["--task", "deblur", "--blur", "1", "--sigma", "5"], "5 gray levels are --sigma 5/255, which is 0.0392 here"),
        (["--task", "deblur", "--blur", "1", "--sigma", "2000/255"], "within the model's noise levels"),
        (
            ["--task", "denoise", "--sigma", "25/100"],
            "--sigma 25/100: expected a number >= 0 such as 0.2, gray levels",
        ),
        (["--task", "denoise", "--sigma", "nan"], "--sigma nan: expected a number >= 0"),
        (["--task", "denoise", "--sigma", "0.1", "--mask-marks", "known"], "--mask-marks needs --mask"),
        (["--task", "denoise", "--sigma", "0.1", "--unclipped"], "--unclipped needs --degrade"),
        (["--task", "inpaint", "--mask", "nowhere.png"], "nowhere.png: no such file or directory"),
        (["--task", "denoise", "--sigma", "0.1", "--batch-size", "0"], "--batch-size must be >= 1"),
        (["--task", "denoise", "--sigma", "0.1", "--out", ""], "nothing to write"),
        (
            ["--task", "deblur", "--blur", "1", "--sigma", "auto"],
            "--sigma auto is for --task denoise, got --task deblur",
        ),
        (["--task", "denoise", "--sigma", "auto", "--degrade"], "with --degrade give the noise to add"),
    ],
)
def test_command_refuses(
    options: list[str], message: str, debm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = debm("restore", "fashion-mnist", "fashion-mnist", "--limit", 2, *options)
    assert message in result.error


def save_mask(path: Path, inside: int = 255, outside: int = 0, size: int = 32) -> Path:
    mask = np.full((32, 32), outside, dtype=np.uint8)
    mask[10:20, 8:22] = inside
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).resize((size, size), Image.Resampling.NEAREST).save(path)
    return path


def test_masks_that_do_not_fit_are_refused(debm: Any, tmp_path: Path) -> None:
    common = ["fashion-mnist", "fashion-mnist", "--limit", 1, "--task", "inpaint", "--out", tmp_path / "out", "--mask"]
    path = save_mask(tmp_path / "mask.png", size=64)
    assert "the mask is 64x64, the images are 32x32; --resize" in debm("restore", *common, path).error
    path = save_mask(tmp_path / "mask.png", 0, 255)
    assert debm("restore", *common, path).error == (
        f"{path}: 86 % of the pixels would be filled in; give --mask-marks known if white (or what is drawn) marks the "
        "known ones, or --mask-marks missing if this is meant"
    )
    for level, share in ((0, 0), (255, 100)):
        path = save_mask(tmp_path / "mask.png", level, level)
        assert f"mask.png: the mask must mark some pixels as missing and leave some known; {share} %" in (
            debm("restore", *common, path).error
        )
    save_mask(tmp_path / "masks" / "elsewhere.png")
    assert "fashion-mnist: no image was restored" in debm("restore", *common, tmp_path / "masks").error
    strict = debm("restore", *common, tmp_path / "masks", "--strict").error
    assert strict == f"{tmp_path / 'masks'}: holds no mask for test.parquet#0"
    assert not (tmp_path / "out").exists()


def test_masks_of_all_kinds_fill_the_same_hole(debm: Any, tmp_path: Path) -> None:
    common = ["fashion-mnist", "fashion-mnist", "--limit", 2, "--task", "inpaint", "--steps", 2, "--samples", 1]
    common += ["--precision", "fp32", "--mask"]
    cases = {
        "white": (save_mask(tmp_path / "white.png"), []),
        "labels": (save_mask(tmp_path / "labels.png", 1), []),
        "black": (save_mask(tmp_path / "black.png", 0, 255), ["--mask-marks", "known"]),
        "large": (save_mask(tmp_path / "large.png", size=96), ["--resize", "bicubic"]),
    }
    filled = {}
    for name, (path, options) in cases.items():
        result = debm("restore", *common, path, *options, "--out", tmp_path / name)
        assert result.status == 0 and f"debm: {path}: 13.7 % of the pixels are filled in\n" in result.err
        filled[name] = load_images(tmp_path / name).pixels
        assert torch.equal(filled[name], filled["white"]), name
    clean = load_images("fashion-mnist", split="test", limit=2).pixels
    changed = (filled["white"] != clean).any(0)[0]
    assert bool(changed[10:20, 8:22].any()) and not bool(changed[:10].any() or changed[20:].any())


def test_each_image_has_its_own_mask(debm: Any, tmp_path: Path) -> None:
    pixels = load_images("fashion-mnist", split="test", limit=5).pixels
    for i, image in enumerate(pixels):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(image[0].numpy()).save(tmp_path / "images" / f"{i}.png")
    for i, rows in {0: (2, 6), 1: (10, 20), 3: (2, 6)}.items():
        mask = np.zeros((32, 32), dtype=np.uint8)
        mask[rows[0] : rows[1]] = 255
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(tmp_path / "masks" / f"{i}_mask.png")
    common = ["fashion-mnist", tmp_path / "images", "--task", "inpaint", "--mask", tmp_path / "masks", "--steps", 3]
    common += ["--samples", 2, "--precision", "fp32"]
    result = debm("restore", *common, "--batch-size", 2, "--out", tmp_path / "out")
    assert result.status == 0, result.err
    assert (
        f"{tmp_path / 'masks'}: 18.8 % of the pixels are filled in on average, 12.5 to 31.2 % of an image" in result.err
    )
    assert f"{tmp_path / 'masks'}: 2 images without a mask left out: 2.png, 4.png" in result.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.png", "1.png", "3.png"]
    filled = load_images(tmp_path / "out").pixels
    for image, number, rows in zip(filled, (0, 1, 3), ((2, 6), (10, 20), (2, 6)), strict=True):
        same = (image == pixels[number])[0].all(1)
        assert bool(same[: rows[0]].all() and same[rows[1] :].all()) and not bool(same[rows[0] : rows[1]].all())
    # One by one the images become the same.
    assert debm("restore", *common, "--batch-size", 1, "--out", tmp_path / "again").status == 0
    again = load_images(tmp_path / "again").pixels
    assert int((again.int() - filled.int()).abs().max()) <= 1


def test_figures_are_of_images_that_files_hold(debm: Any, tmp_path: Path) -> None:
    """The same as by files: degraded images written as PNG, and restored from there."""
    common = ["--task", "denoise", "--precision", "fp32", "--sigma", "64/255"]
    result = debm(
        "restore", "fashion-mnist", "fashion-mnist", "--limit", 6, "--degrade", *common, "--out", tmp_path / "a"
    )
    assert result.status == 0 and result.out.splitlines()[0] == "6 images, means over them, of 8-bit files"
    clean = load_images("fashion-mnist", split="test", limit=6).pixels
    noise = ImageNoise.of(0, range(6), "degrade")
    held = to_uint8(noisy(64 / 127.5).apply(to_float(clean), noise))
    (tmp_path / "noisy").mkdir()
    for i, image in enumerate(held):
        Image.fromarray(image[0].numpy()).save(tmp_path / "noisy" / f"{i}.png")
    again = debm("restore", "fashion-mnist", tmp_path / "noisy", *common, "--out", tmp_path / "b")
    assert "noise of 0.502 for images in [-1, 1]: 64 gray levels of 255" in again.err and "detail" not in again.err
    restored = load_images(tmp_path / "b").pixels
    assert torch.equal(load_images(tmp_path / "a").pixels, restored)
    for line, pixels in zip(result.out.splitlines()[1:], (held, restored), strict=True):
        assert f"PSNR {float(psnr(pixels, clean).mean()):6.2f} dB" in line
    # Noise that is not clipped says more.
    more = debm(
        "restore", "fashion-mnist", "fashion-mnist", "--limit", 6, "--degrade", "--unclipped", *common, "--out", ""
    )
    figures = [float(run.out.splitlines()[2].split("PSNR")[1].split("dB")[0]) for run in (result, more)]
    assert more.out.splitlines()[0] == "6 images, means over them, of unclipped noise" and figures[1] > figures[0] + 0.5


def test_noise_that_is_not_there_is_told(debm: Any, tmp_path: Path) -> None:
    options = ["--limit", 3, "--task", "denoise", "--sigma", "0.5", "--out", tmp_path / "out"]
    result = debm("restore", "fashion-mnist", "fashion-mnist", *options)
    assert result.status == 0 and "not of 0.5; detail will be smoothed away as noise" in result.err


def test_restoring_takes_the_memory_of_a_batch(debm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def seen(model: Any, y: torch.Tensor, *_: object, images: Any, **__: object) -> torch.Tensor:
        sizes.append(len(y))
        assert list(images) == list(range(sum(sizes[:-1]), sum(sizes)))
        return y

    chunks: list[int] = []
    real = ImageOptions.stream

    def stream(self: Any, source: Any, shape: Any, **options: Any) -> Any:
        chunks.append(options["chunk"])
        return real(self, source, shape, **options)

    monkeypatch.setattr("denoising_ebm.restoration.posterior.restore", seen)
    monkeypatch.setattr(ImageOptions, "stream", stream)
    options = ["--task", "denoise", "--sigma", 0.1, "--limit", 20, "--batch-size", 8, "--out", tmp_path / "out"]
    result = debm("restore", "fashion-mnist", "fashion-mnist", *options, "--grid", tmp_path / "grid.png")
    assert result.status == 0 and chunks == [8] and sizes == [8, 8, 4]
    assert torch.equal(
        load_images(tmp_path / "out").pixels.sum(), load_images("fashion-mnist", split="test", limit=20).pixels.sum()
    )
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.size == (2 * (16 * 33 + 1), 2 * (2 * 33 + 1))


def test_unreadable_images_are_left_out_and_counted(debm: Any, tmp_path: Path) -> None:
    pixels = load_images("fashion-mnist", split="test", limit=2).pixels
    (tmp_path / "images").mkdir()
    for name in "ab":
        (tmp_path / "images" / f"{name}.png").write_bytes(b"no image")
    for i, image in enumerate(pixels):
        Image.fromarray(image[0].numpy()).save(tmp_path / "images" / f"{i}c.png")
        Image.fromarray(image[0].numpy()).save(tmp_path / "images" / f"x{i}.png")
    options = ["--task", "denoise", "--sigma", "20/255", "--batch-size", 1, "--out", tmp_path / "out"]
    result = debm("restore", "fashion-mnist", tmp_path / "images", *options)
    assert result.status == 0 and "2 unreadable images left out, first a.png" in result.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0c.png", "1c.png", "x0.png", "x1.png"]


def test_the_folder_is_not_shared(debm: Any, tmp_path: Path) -> None:
    out, done, taken = tmp_path / "out", threading.Event(), threading.Event()

    def other() -> None:
        with locked(out, "debm restore"):
            taken.set()
            done.wait(60)

    thread = threading.Thread(target=other)
    thread.start()
    try:
        assert taken.wait(60)
        options = ["--limit", 1, "--task", "denoise", "--sigma", "20/255", "--out", out]
        assert "in use by debm restore" in debm("restore", "fashion-mnist", "fashion-mnist", *options).error
    finally:
        done.set()
        thread.join()


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


def test_noise_is_found_in_each_image(debm: Any, tmp_path: Path) -> None:
    """Each is denoised at its own level; energies of an untrained network have their smallest value somewhere, too."""
    model = DenoisingEBM(replace(tiny_config(), energy=EnergyConfig(inner_noise=False, density=True)))
    randomise(model)
    model.save_pretrained(tmp_path / "raw")
    common = ["--task", "denoise", "--sigma", "auto", "--precision", "fp32"]
    pixels = random_pixels(6)
    (tmp_path / "noisy").mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image[0].numpy()).save(tmp_path / "noisy" / f"{i}.png")
    result = debm("restore", tmp_path / "raw", tmp_path / "noisy", *common, "--out", tmp_path / "none")
    assert "not normalised" in result.error and not (tmp_path / "none").exists()

    normalise(model, to_float(random_pixels(20)), images_per_level=4)
    model.save_pretrained(tmp_path / "model")
    result = debm(
        "restore", tmp_path / "model", tmp_path / "noisy", *common, "--batch-size", 4, "--out", tmp_path / "o"
    )
    assert result.status == 0, result.err
    sigma = model.eval().noise_level(to_float(pixels)).sigma
    assert f"noise found: {float(sigma.quantile(0.5)):.3g} in the median image" in result.err
    restored = load_images(tmp_path / "o", image_size=16, channels=1).pixels
    with torch.no_grad():
        expected = to_uint8(model.denoise(to_float(pixels), sigma.float()))
    # Levels are rounded to 5 %.
    assert (restored.int() - expected.int()).abs().max() <= 12
    assert float((restored.float() - expected.float()).square().mean().sqrt()) < 3
