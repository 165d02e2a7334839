from __future__ import annotations

import io
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import datasets
import denoising_ebm
from denoising_ebm.datasets.images import ImageSet, check_png_names, image_hashes, load_images, to_float, to_uint8

DATA = Path(denoising_ebm.__file__).parent / "assets" / "datasets"
# Measured on the official idx files: sums of the values and of their squares over the 28x28 originals of the sample.
FASHION = {
    "train": {"sum": 567829224, "squares": 104029751584, "per_class": 1000},
    "test": {"sum": 114424186, "squares": 21016096912, "per_class": 200},
}


def noise(seed: int, height: int = 32, width: int = 32, channels: int = 3) -> np.ndarray:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return values[..., 0] if channels == 1 else values


def smooth(width: int, height: int) -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([rows * 2, columns, (rows * columns) % 256], -1).astype(np.uint8))


def encoded(array: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, format=kind, **({"lossless": True} if kind == "WEBP" else {}))
    return file.getvalue()


def write_parquet(path: Path, images: list[bytes], column: str = "image") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: [{"bytes": image, "path": None} for image in images]}), path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three RGB files, one in a subfolder, and one that is no image."""
    (tmp_path / "photos" / "z").mkdir(parents=True)
    for name, seed in (("b.png", 1), ("a.png", 0), ("z/c.png", 2)):
        Image.fromarray(noise(seed)).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    return tmp_path / "photos"


def test_every_value_survives_float_and_back() -> None:
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    x = to_float(values)
    assert x.dtype == torch.float32
    assert (x.min().item(), x.max().item()) == (-1.0, 1.0)
    assert torch.equal(to_uint8(x), values)
    assert torch.equal(to_uint8(x.double()), values)


def test_to_uint8_clamps_and_rounds() -> None:
    x = torch.tensor([-7.0, 7.0, 100.4 / 127.5 - 1, 100.6 / 127.5 - 1])
    assert to_uint8(x).tolist() == [0, 255, 100, 101]


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_bundled_sample_is_the_original(split: str) -> None:
    images = load_images("fashion-mnist", split=split, image_size=32, channels=1, strict=True)
    expected = FASHION[split]
    assert images.pixels.shape == (10 * expected["per_class"], 1, 32, 32)
    assert images.names[-1] == f"{split}.parquet#{len(images) - 1}"
    inner = images.pixels[:, :, 2:30, 2:30].to(torch.int64)
    assert inner.sum().item() == images.pixels.sum().item() == expected["sum"]  # the border is zero
    assert (inner**2).sum().item() == expected["squares"]
    table = pq.read_table(DATA / "fashion-mnist" / f"{split}.parquet")
    assert np.bincount(table["label"].to_numpy()).tolist() == [expected["per_class"]] * 10


def test_the_bundled_sample_looks_like_the_whole_set() -> None:
    # Mean and standard deviation of all 60,000 training images, 28x28, in 0..255.
    inner = load_images("fashion-mnist").pixels[:, :, 2:30, 2:30].double()
    error_of_mean = inner.mean((1, 2, 3)).std().item() / 100
    assert inner.mean().item() == pytest.approx(72.94035, abs=4 * error_of_mean)
    assert inner.std().item() == pytest.approx(90.02118, abs=1.0)


def test_no_training_image_is_in_the_test_part() -> None:
    train, test = ({p.numpy().tobytes() for p in load_images("fashion-mnist", split=s).pixels} for s in FASHION)
    assert len(train) == 10_000
    assert len(test) == 2_000
    assert not train & test


def test_the_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    pixels = load_images("digits", split="test").pixels
    original = torch.from_numpy(load_digits().images)
    assert pixels.shape == (1797, 1, 32, 32)
    assert pixels[:, :, 2:30, 2:30].sum() == pixels.sum()
    small = torch.nn.functional.interpolate(pixels[:, :, 2:30, 2:30].double(), (8, 8), mode="area")[:, 0]
    correlation = torch.corrcoef(torch.stack([small.flatten(), original.flatten()]))[0, 1]
    assert correlation > 0.97
    table = pq.read_table(DATA / "digits" / "test.parquet")
    assert np.array_equal(table["label"].to_numpy(), load_digits().target)


def test_folder_parquet_and_single_file_agree(folder: Path, tmp_path: Path) -> None:
    expected = np.stack([noise(seed).transpose(2, 0, 1) for seed in range(3)])
    images = load_images(folder)
    assert images.names == ("a.png", "b.png", "z/c.png")
    assert np.array_equal(images.pixels.numpy(), expected)

    shards = tmp_path / "shards"
    write_parquet(shards / "train-00000-of-00002.parquet", [encoded(noise(0), "PNG"), encoded(noise(1), "WEBP")])
    write_parquet(shards / "train-00001-of-00002.parquet", [encoded(noise(2), "BMP")])
    write_parquet(shards / "test.parquet", [encoded(noise(3), "PNG")])
    sharded = load_images(shards)
    assert sharded.names == (
        "train-00000-of-00002.parquet#0",
        "train-00000-of-00002.parquet#1",
        "train-00001-of-00002.parquet#0",
    )
    assert np.array_equal(sharded.pixels.numpy(), expected)

    one = load_images(shards / "train-00001-of-00002.parquet", split="test")
    assert one.names == ("train-00001-of-00002.parquet#0",)
    file = load_images(str(folder / "z" / "c.png"))
    assert file.names == ("c.png",)
    assert torch.equal(one.pixels, file.pixels)
    assert np.array_equal(file.pixels[0].numpy(), expected[2])


def test_special_characters_and_hidden_folders_in_a_path(tmp_path: Path) -> None:
    for name in ("a [1]* b", ".hidden"):
        write_parquet(tmp_path / name / "train.parquet", [encoded(noise(0), "PNG")])
        assert np.array_equal(load_images(tmp_path / name).pixels[0].numpy(), noise(0).transpose(2, 0, 1))


def test_binary_column_is_read(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [encoded(noise(0), "PNG")]}), tmp_path / "x.parquet")
    assert np.array_equal(load_images(tmp_path).pixels[0].numpy(), noise(0).transpose(2, 0, 1))


def test_nothing_is_left_in_the_cache_or_the_progress_settings(folder: Path, tmp_path: Path) -> None:
    write_parquet(tmp_path / "p" / "train.parquet", [encoded(noise(0), "PNG")] * 2)
    datasets.enable_progress_bars()
    load_images(tmp_path / "p", limit=1)
    assert not datasets.utils.are_progress_bars_disabled()
    before = sorted(Path(datasets.config.HF_DATASETS_CACHE).glob("*"))
    load_images(tmp_path / "p")
    assert sorted(Path(datasets.config.HF_DATASETS_CACHE).glob("*")) == before


def test_subfolders_named_as_splits_are_splits(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for split, seed in (("train", 5), ("test", 6)):
        (folder / split / "cat").mkdir(parents=True)
        Image.fromarray(noise(seed)).save(folder / split / "cat" / "x.png")
    images = load_images(folder, split="test")
    assert images.names == ("test/cat/x.png",)
    assert np.array_equal(images.pixels[0].numpy(), noise(6).transpose(2, 0, 1))
    with pytest.raises(FileNotFoundError, match=r"photos: no split 'validation'; splits found: test, train$"):
        load_images(folder, split="validation")


def test_limit_decodes_no_more(folder: Path) -> None:
    (folder / "b.png").write_bytes(b"damaged")
    assert load_images(folder, limit=1, strict=True).names == ("a.png",)
    assert load_images(folder, limit=2).names == ("a.png", "z/c.png")


@pytest.mark.parametrize("kind", ["files", "parquet"])
def test_a_sample_is_a_draw_without_replacement(folder: Path, tmp_path: Path, kind: str) -> None:
    """Of the undecoded images, in its order; those not drawn are not decoded."""
    source = folder
    if kind == "parquet":
        source = tmp_path / "p"
        for part in range(2):
            write_parquet(source / f"train-{part}.parquet", [encoded(noise(3 * part + i), "PNG") for i in range(3)])
    images = load_images(source)
    for seed in range(4):
        for limit in (None, 2):
            chosen = torch.randperm(limit or len(images), generator=torch.Generator().manual_seed(seed))[:2]
            found = load_images(source, sample=2, limit=limit, generator=torch.Generator().manual_seed(seed))
            expected = images.take(chosen)
            assert found.names == expected.names and torch.equal(found.pixels, expected.pixels)
    assert sorted(load_images(source, sample=100, generator=torch.Generator()).names) == sorted(images.names)


def test_unreadable_images_of_a_sample_are_replaced_by_further_draws(folder: Path) -> None:
    (folder / "b.png").write_bytes(b"damaged")
    found = []
    for seed in range(8):
        drawn = torch.randperm(3, generator=torch.Generator().manual_seed(seed)).tolist()
        images = load_images(folder, sample=1, generator=torch.Generator().manual_seed(seed))
        assert images.names == (next(("a.png", "b.png", "z/c.png")[i] for i in drawn if i != 1),)
        # One that is not drawn is not decoded.
        assert [image.name for image in images.unreadable] == ["b.png"] * (drawn[0] == 1)
        found.append(drawn[0] == 1)
    assert len(set(found)) == 2


def test_a_set_is_held_once_while_it_is_read(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", [encoded(np.full((64, 64, 3), 9, np.uint8), "PNG")] * 500)
    load_images(tmp_path / "x.parquet", limit=1)  # what is imported on the way does not count
    tracemalloc.start()
    try:
        images = load_images(tmp_path / "x.parquet")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert images.pixels.numel() == 500 * 3 * 64 * 64
    assert peak < 1.3 * images.pixels.numel()


def test_take_keeps_names_and_pixels_together(folder: Path) -> None:
    images = load_images(folder)
    for chosen in (images.take([2, 0]), images.take(torch.tensor([2, 0]))):
        assert chosen.names == ("z/c.png", "a.png")
        assert torch.equal(chosen.pixels, images.pixels[[2, 0]])


@pytest.mark.parametrize("name", ["bilinear", "bicubic", "lanczos", "box"])
def test_resize_is_pillows(tmp_path: Path, name: str) -> None:
    picture = smooth(90, 61)
    picture.save(tmp_path / "x.png")
    # 61 of 90 columns: 14 are cut on the left.
    expected = picture.crop((14, 0, 75, 61)).resize((16, 16), Image.Resampling[name.upper()])
    found = load_images(tmp_path / "x.png", image_size=16, resize=name).pixels[0]
    assert np.array_equal(found.permute(1, 2, 0).numpy(), np.asarray(expected))


def test_preparation_of_celeba(tmp_path: Path) -> None:
    picture = smooth(178, 218)
    picture.save(tmp_path / "x.png")
    expected = picture.crop((19, 39, 159, 179)).resize((64, 64), Image.Resampling.LANCZOS)
    found = load_images(tmp_path, center_crop=140, image_size=64, resize="lanczos").pixels[0]
    assert np.array_equal(found.permute(1, 2, 0).numpy(), np.asarray(expected))
    cropped = load_images(tmp_path, center_crop=140).pixels[0]
    assert np.array_equal(cropped.permute(1, 2, 0).numpy(), np.asarray(picture.crop((19, 39, 159, 179))))


def test_images_of_the_right_size_are_not_resampled(folder: Path) -> None:
    assert torch.equal(load_images(folder, image_size=32, resize="bicubic").pixels, load_images(folder).pixels)


def test_pixel_modes(tmp_path: Path) -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)

    def read(image: Image.Image, suffix: str = "png", **options: Any) -> torch.Tensor:
        image.save(tmp_path / f"x.{suffix}")
        return load_images(tmp_path / f"x.{suffix}", **options).pixels[0]

    gray = Image.fromarray(ramp)
    assert np.array_equal(read(gray), ramp[None])
    assert np.array_equal(read(Image.fromarray(ramp.astype(np.uint16) * 257)), ramp[None])
    (tmp_path / "x.pgm").write_bytes(b"P5 16 16 65535\n" + (ramp.astype(">u2") * 257).tobytes())
    assert np.array_equal(load_images(tmp_path / "x.pgm").pixels[0], ramp[None])
    assert np.array_equal(read(gray.point(lambda v: 255 * (v > 99), "1")), 255 * (ramp[None] > 99))
    half = gray.copy()
    half.putalpha(Image.fromarray(np.where(ramp > 99, 255, 0).astype(np.uint8)))
    assert np.array_equal(read(half), np.where(ramp > 99, ramp, 0)[None])
    color = Image.fromarray(np.stack([ramp, ramp.T, 255 - ramp], -1))
    transparent = color.copy()
    transparent.putalpha(0)
    assert np.array_equal(read(color).permute(1, 2, 0), np.asarray(color))
    assert read(transparent).shape == (3, 16, 16)
    assert read(transparent).max() == 0
    palette = color.quantize(16)
    assert np.array_equal(read(palette).permute(1, 2, 0), np.asarray(palette.convert("RGB")))
    cmyk = read(color.convert("CMYK"), "tif").permute(1, 2, 0)
    assert np.array_equal(cmyk, np.asarray(color.convert("CMYK").convert("RGB")))


def test_rotation_written_by_cameras_is_applied(tmp_path: Path) -> None:
    picture = smooth(20, 20)
    exif = picture.getexif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    picture.save(tmp_path / "x.png", exif=exif)
    found = load_images(tmp_path).pixels[0].permute(1, 2, 0).numpy()
    assert np.array_equal(found, np.rot90(np.asarray(picture), -1))


def test_gray_webp_and_palette_serve_both_channel_counts(tmp_path: Path) -> None:
    gray = noise(0, channels=1)
    for suffix in ("webp", "gif"):
        Image.fromarray(gray).save(tmp_path / f"x.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
        assert np.array_equal(load_images(tmp_path / f"x.{suffix}", channels=1).pixels[0], gray[None])
        assert np.array_equal(load_images(tmp_path / f"x.{suffix}", channels=3).pixels[0], np.stack([gray] * 3))
        assert load_images(tmp_path / f"x.{suffix}").pixels.shape[1] == 1


def test_gray_beside_color_becomes_rgb_unless_told(folder: Path) -> None:
    gray = noise(9, channels=1)
    Image.fromarray(gray).save(folder / "b.png")
    images = load_images(folder)
    assert np.array_equal(images.pixels[1].numpy(), np.stack([gray] * 3))
    with pytest.raises(ValueError, match=r"photos/b\.png: the image has 1 channel\(s\), the model takes 3; --convert"):
        load_images(folder, channels=3)
    with pytest.raises(ValueError, match=r"photos/a\.png: the image has 3 channel\(s\), the model takes 1; --convert"):
        load_images(folder, channels=1)


def test_convert_brings_gray_and_colour_to_what_is_asked(folder: Path) -> None:
    Image.fromarray(noise(9, channels=1)).save(folder / "b.png")
    to_rgb = load_images(folder, channels=3, convert=True)
    assert np.array_equal(to_rgb.pixels[1].numpy(), np.stack([noise(9, channels=1)] * 3))
    to_gray = load_images(folder, channels=1, convert=True)
    red, green, blue = to_rgb.pixels[0].double()
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    assert float((to_gray.pixels[0, 0].double() - luma).abs().max()) <= 1
    assert np.array_equal(to_gray.pixels[1, 0].numpy(), noise(9, channels=1))


def test_unfit_images_can_be_left_out_like_unreadable_ones(folder: Path) -> None:
    Image.fromarray(noise(4, 40, 40)).save(folder / "b.png")
    (folder / "c.png").write_bytes(b"damaged")
    images = load_images(folder, image_size=32, channels=3, skip_unfit=True)
    assert images.names == ("a.png", "z/c.png")
    assert [(image.name, image.place) for image in images.unreadable] == [("b.png", 1), ("c.png", 1)]
    assert images.unreadable[0].reason == "is 40x40, expected 32x32; --resize brings it there"
    nothing = load_images(folder, image_size=32, channels=1, skip_unfit=True)
    assert len(nothing) == 0 and len(nothing.unreadable) == 4 and nothing.pixels.shape == (0, 1, 32, 32)
    with pytest.raises(ValueError, match="skip_unfit needs an image_size and channels"):
        load_images(folder, image_size=32, skip_unfit=True)


def test_images_that_are_cropped_already_stay_as_they_are(tmp_path: Path) -> None:
    Image.fromarray(noise(1, 16, 16)).save(tmp_path / "a.png")
    smooth(48, 40).save(tmp_path / "b.png")
    images = load_images(tmp_path, image_size=16, channels=3, resize="box", center_crop=32)
    assert np.array_equal(images.pixels[0].numpy(), noise(1, 16, 16).transpose(2, 0, 1))
    expected = smooth(48, 40).crop((8, 4, 40, 36)).resize((16, 16), Image.Resampling.BOX)
    assert np.array_equal(images.pixels[1].numpy(), np.asarray(expected).transpose(2, 0, 1))


def test_hashes_tell_images_apart(generator: torch.Generator) -> None:
    pixels = torch.randint(0, 256, (50, 3, 8, 8), generator=generator, dtype=torch.uint8)
    hashes = image_hashes(pixels)
    assert len(hashes.unique()) == 50 and torch.equal(image_hashes(pixels.flip(0)), hashes.flip(0))
    pixels[3, 1, 2, 2] ^= 1
    assert (image_hashes(pixels) != hashes).nonzero().flatten().tolist() == [3]


def test_a_class_named_as_a_split_does_not_hide_the_others(tmp_path: Path) -> None:
    for kind, seed in (("bus", 0), ("car", 1), ("train", 2)):
        (tmp_path / kind).mkdir()
        Image.fromarray(noise(seed)).save(tmp_path / kind / "x.png")
    for split in ("train", "test"):
        with pytest.raises(ValueError, match=r"holds a folder train/, which names a split, beside images .*bus/x\.png"):
            load_images(tmp_path, split=split)
    images = load_images(tmp_path, split="all")
    assert images.names == ("bus/x.png", "car/x.png", "train/x.png")
    assert images.labels == ("bus", "car", "train")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("stored", ["folder", "parquet"])
def test_truncated_images_are_named_and_skipped(tmp_path: Path, kind: str, stored: str) -> None:
    whole = encoded(noise(0), "PNG")
    broken = encoded(noise(1), kind)
    broken = broken[: len(broken) // 2]
    if stored == "folder":
        (tmp_path / "a.png").write_bytes(whole)
        (tmp_path / f"b.{kind.lower()}").write_bytes(broken)
        (tmp_path / "c.png").write_bytes(b"")
        names = ("a.png", f"b.{kind.lower()}", "c.png")
    else:
        write_parquet(tmp_path / "train.parquet", [whole, broken, b""])
        names = ("train.parquet#0", "train.parquet#1", "train.parquet#2")
    images = load_images(tmp_path)
    assert np.array_equal(images.pixels.numpy(), noise(0).transpose(2, 0, 1)[None])
    assert images.names == names[:1]
    assert tuple(image.name for image in images.unreadable) == names[1:]
    assert all(image.reason and "\n" not in image.reason for image in images.unreadable)
    with pytest.raises(ValueError, match=f"{names[1]}: unreadable image: "):
        load_images(tmp_path, strict=True)


def test_pixels_without_a_range_are_unreadable(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match=r"none of 1 images can be read; x\.tif: pixels of mode F have no known range"):
        load_images(tmp_path)


def test_postscript_is_not_run(tmp_path: Path) -> None:
    Image.fromarray(noise(0)).save(tmp_path / "x.eps")
    (tmp_path / "x.eps").rename(tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"none of 1 images can be read; x\.png: cannot identify"):
        load_images(tmp_path)


def test_different_sizes_are_refused(folder: Path) -> None:
    Image.fromarray(noise(4, 40, 40)).save(folder / "b.png")
    with pytest.raises(ValueError, match=r"sizes differ: a\.png is 32x32, b\.png is 40x40; .*--resize"):
        load_images(folder)
    with pytest.raises(ValueError, match=r"photos/b\.png: is 40x40, expected 32x32; --resize"):
        load_images(folder, image_size=32)
    assert load_images(folder, image_size=32, resize="box").pixels.shape == (3, 3, 32, 32)


def test_oblong_and_small_images_are_refused(tmp_path: Path) -> None:
    smooth(48, 32).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"x\.png: is 48x32, not square; .*--resize"):
        load_images(tmp_path)
    with pytest.raises(ValueError, match=r"x\.png: is 48x32, smaller than the center crop of 40$"):
        load_images(tmp_path, center_crop=40)


@pytest.mark.parametrize("source", ["nowhere", "./nowhere", "a/b/c", "folder/x.png", "folder/x.parquet", ""])
def test_unknown_sources(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file or folder") as caught:
        load_images(source)
    assert "\n" not in str(caught.value)


def test_missing_splits_are_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-00000-of-00001.parquet", [encoded(noise(0), "PNG")])
    write_parquet(tmp_path / "extra.parquet", [encoded(noise(0), "PNG")])
    with pytest.raises(FileNotFoundError, match=r"no split 'test'; splits found: extra, train$"):
        load_images(tmp_path, split="test")
    with pytest.raises(FileNotFoundError, match=r"digits: no split 'train', only test$"):
        load_images("digits")


def test_one_parquet_file_of_any_name_serves_every_split(tmp_path: Path) -> None:
    write_parquet(tmp_path / "pictures-2.parquet", [encoded(noise(0), "PNG")])
    assert load_images(tmp_path, split="test").names == ("pictures-2.parquet#0",)


def test_unusable_folders_and_files(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty: holds no images .*\.png"):
        load_images(tmp_path / "empty")
    (folder / "train.parquet").write_bytes(b"PAR1 damaged")
    with pytest.raises(ValueError, match=r"holds both Parquet files \(train\.parquet\) and images \(a\.png\)"):
        load_images(folder)
    with pytest.raises(ValueError, match=r"train\.parquet: cannot be read as Parquet with images: "):
        load_images(folder / "train.parquet")
    pq.write_table(pa.table({"label": [1, 2]}), tmp_path / "labels.parquet")
    with pytest.raises(ValueError, match=r"labels\.parquet: .*no column 'image' among label$"):
        load_images(tmp_path / "labels.parquet")
    write_parquet(tmp_path / "none.parquet", [])
    with pytest.raises((FileNotFoundError, ValueError), match=r"none\.parquet"):
        load_images(tmp_path / "none.parquet")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 2}, "channels must be 1 or 3, got 2"),
        ({"image_size": 0}, "image_size must be >= 1, got 0"),
        ({"limit": 0}, "limit must be >= 1, got 0"),
        ({"sample": 0}, "sample must be >= 1, got 0"),
        ({"resize": "area", "image_size": 8}, "resize must be one of bilinear, bicubic, lanczos, box, got 'area'"),
        ({"resize": "box"}, "resize needs an image_size"),
    ],
)
def test_arguments_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_images("digits", split="test", **options)


def hub(answer: Callable[[], Any]) -> Callable[..., Any]:
    def load_dataset(name: str, *, split: str, streaming: bool) -> Any:
        assert (name, split) == ("owner/name", "test")
        rows = answer()
        return rows.to_iterable_dataset() if streaming else rows

    return load_dataset


def test_images_that_are_not_read_here_are_named_and_links_followed(tmp_path: Path) -> None:
    """In production a photograph without a row looks as if it had passed."""
    folder, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    elsewhere.mkdir()
    for place in (folder, elsewhere):
        place.mkdir(exist_ok=True)
        Image.new("L", (8, 8), 100).save(place / "a.png")
    (folder / "b.heic").write_bytes(b"no image that is read here")
    (folder / "c.png").symlink_to(tmp_path / "gone.png")
    (folder / "notes.txt").write_text("no image")
    (folder / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder)
    images = load_images(folder)
    assert images.names == ("a.png", "linked/a.png")
    assert [image.name for image in images.unreadable] == ["b.heic", "c.png"]
    assert "No such file" in images.unreadable[1].reason


def test_rows_of_paths_are_read_beside_their_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not from where the program happens to run, and nothing else on the machine or the net."""
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    for place, level in ((data, 10), (elsewhere, 200)):
        place.mkdir()
        Image.new("L", (8, 8), level).save(place / "a.png")
    paths = ["a.png", str(elsewhere / "a.png"), "../elsewhere/a.png", "http://localhost/a.png"]
    rows = [{"bytes": None, "path": path} for path in paths]
    pq.write_table(pa.table({"image": rows}), data / "images.parquet")
    monkeypatch.chdir(elsewhere)
    images = load_images(data / "images.parquet")
    assert images.names == ("images.parquet#0",) and images.pixels.unique().tolist() == [10]
    assert [image.reason for image in images.unreadable] == [
        f"the row names {path}, which is not beside its file" for path in paths[1:]
    ]


def test_pictures_that_would_share_a_file_are_refused() -> None:
    check_png_names(["a.jpg", "b.jpg.png", "x.parquet#1"])
    with pytest.raises(
        ValueError, match=r"a\.jpg and a\.jpg\.png would both have their picture in a\.jpg\.png; rename"
    ):
        check_png_names(["a.jpg", "a.jpg.png"])


def test_data_sets_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer() -> datasets.Dataset:
        rows = {"img": [{"bytes": encoded(noise(seed), "PNG"), "path": None} for seed in range(3)], "label": [0, 1, 2]}
        return datasets.Dataset.from_dict(rows).cast_column("img", datasets.Image())

    monkeypatch.setattr(datasets, "load_dataset", hub(answer))
    images = load_images("owner/name", split="test")
    assert images.names == ("test#0", "test#1", "test#2")
    assert np.array_equal(images.pixels.numpy(), np.stack([noise(seed).transpose(2, 0, 1) for seed in range(3)]))
    assert torch.equal(load_images("owner/name", split="test", limit=2).pixels, images.pixels[:2])


def test_a_stream_of_unknown_length_keeps_every_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the first RGB image comes after hundreds of gray ones."""
    levels = [i % 251 for i in range(700)]

    def answer() -> datasets.Dataset:
        rows = [encoded(np.full((2, 2), level, np.uint8), "PNG") for level in levels]
        rows[600] = encoded(np.full((2, 2, 3), (1, 2, 3), np.uint8), "PNG")
        table = {"image": [{"bytes": row, "path": None} for row in rows]}
        return datasets.Dataset.from_dict(table).cast_column("image", datasets.Image())

    monkeypatch.setattr(datasets, "load_dataset", hub(answer))
    expected = torch.tensor(levels)[:, None, None, None].expand(-1, 3, 2, 2).clone()
    expected[600] = torch.tensor([1, 2, 3])[:, None, None]
    assert torch.equal(load_images("owner/name", split="test", limit=650).pixels, expected[:650].to(torch.uint8))
    assert torch.equal(load_images("owner/name", split="test", limit=600).pixels, expected[:600, :1].to(torch.uint8))
    order = torch.randperm(600, generator=torch.Generator().manual_seed(3))[:5]
    drawn = load_images("owner/name", split="test", limit=600, sample=5, generator=torch.Generator().manual_seed(3))
    assert torch.equal(drawn.pixels, expected[order, :1].to(torch.uint8))


def test_labels_are_those_of_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the names of classes where a column has them, as they stand where not, by folders of image files."""
    table = pq.read_table(DATA / "fashion-mnist" / "test.parquet")
    names = datasets.load_dataset("parquet", data_files=str(DATA / "fashion-mnist" / "test.parquet"), split="train")
    classes = names.features["label"].names
    images = load_images("fashion-mnist", split="test", limit=50)
    assert images.labels == tuple(classes[i] for i in table["label"].to_pylist()[:50]) and len(set(images.labels)) > 5
    assert images.take([7, 3]).labels == (images.labels[7], images.labels[3])

    for path in ("train/cat/1.png", "train/cat/2.png", "train/dog/1.png", "test/a.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(encoded(noise(0), "PNG"))
    assert load_images(tmp_path, split="train").labels == ("cat", "cat", "dog")
    assert load_images(tmp_path, split="test").labels == (None,)
    assert load_images(tmp_path / "train" / "cat").labels == (None, None)

    def answer() -> datasets.Dataset:
        rows = {"image": [{"bytes": encoded(noise(seed), "PNG"), "path": None} for seed in range(3)]}
        rows |= {"fine_label": [1, -1, 0]}
        kind = datasets.ClassLabel(names=["ant", "bee"])
        return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).cast_column("fine_label", kind)

    monkeypatch.setattr(datasets, "load_dataset", hub(answer))
    assert load_images("owner/name", split="test").labels == ("bee", None, "ant")


def test_columns_that_hold_no_classes_are_not_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures beside pictures, as for segmentation, and measured numbers."""

    def answer(kind: str) -> datasets.Dataset:
        images = [{"bytes": encoded(noise(seed), "PNG"), "path": None} for seed in range(2)]
        rows = datasets.Dataset.from_dict({"image": images, "label": images if kind == "picture" else [0.5, 1.5]})
        rows = rows.cast_column("image", datasets.Image())
        return rows.cast_column("label", datasets.Image()) if kind == "picture" else rows

    for kind in ("picture", "number"):
        monkeypatch.setattr(datasets, "load_dataset", hub(lambda kind=kind: answer(kind)))
        assert load_images("owner/name", split="test").labels == (None, None)


def test_labels_do_not_move_when_an_image_is_left_out(tmp_path: Path) -> None:
    rows = [encoded(noise(0), "PNG"), b"damaged", encoded(noise(1), "PNG")]
    images = [{"bytes": row, "path": None} for row in rows]
    pq.write_table(pa.table({"image": images, "label": ["x", "y", None]}), tmp_path / "test.parquet")
    found = load_images(tmp_path, split="test")
    assert found.labels == ("x", None) and found.unreadable[0].name == "test.parquet#1"


def test_data_sets_of_the_hub_without_images_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", hub(lambda: datasets.Dataset.from_dict({"label": [0]})))
    with pytest.raises(ValueError, match=r"owner/name: .*no column 'image' among label$"):
        load_images("owner/name", split="test")


@pytest.mark.parametrize(("error", "kind"), [(ConnectionError, FileNotFoundError), (ValueError, ValueError)])
def test_failures_of_the_hub_are_one_line(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception], kind: type[Exception]
) -> None:
    def answer() -> Any:
        raise error("cannot reach it\nwith many details")

    monkeypatch.setattr(datasets, "load_dataset", hub(answer))
    with pytest.raises(kind, match=r"owner/name: .*not loaded from the Hugging Face Hub: cannot reach it$"):
        load_images("owner/name", split="test")


def test_image_set_checks_itself() -> None:
    with pytest.raises(ValueError, match="pixels must be uint8"):
        ImageSet(torch.zeros(1, 1, 2, 2), ("a",))
    with pytest.raises(ValueError, match="2 names"):
        ImageSet(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), ("a", "b"))
    with pytest.raises(ValueError, match="labels must be as many as names, got 2 and 1"):
        ImageSet(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), ("a",), labels=("x", "y"))


def test_import_is_light() -> None:
    code = "import sys, denoising_ebm.datasets.images; sys.exit(any(m in sys.modules for m in ('datasets', 'pyarrow')))"
    environment = {"PYTHONPATH": str(DATA.parents[2]), "PATH": ""}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
