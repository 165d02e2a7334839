from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import denoising_ebm
from denoising_ebm.datasets.images import (
    ImageSet,
    image_hashes,
    load_images,
    stream_images,
    to_float,
    to_uint8,
)
from pictures import encoded, noise, write_parquet

DATA = Path(denoising_ebm.__file__).parent / "assets" / "datasets"
# Measured on the official idx files: sums of the values and of their squares over the 28x28 originals of the sample.
FASHION = {
    "train": {"sum": 567829224, "squares": 104029751584, "per_class": 1000},
    "test": {"sum": 114424186, "squares": 21016096912, "per_class": 200},
}


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


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_a_stream_joined_is_the_set(tmp_path: Path, chunk: int) -> None:
    rows = [encoded(noise(seed), "PNG") for seed in range(6)]
    rows[1] = rows[2] = rows[5] = b"damaged"
    write_parquet(tmp_path / "x.parquet", rows)
    images = load_images(tmp_path / "x.parquet")
    assert images.names == ("x.parquet#0", "x.parquet#3", "x.parquet#4")
    assert [(lost.name, lost.place) for lost in images.unreadable] == [
        ("x.parquet#1", 1),
        ("x.parquet#2", 1),
        ("x.parquet#5", 3),
    ]
    chunks = list(stream_images(tmp_path / "x.parquet", chunk=chunk))
    assert all(max(len(part), len(part.unreadable)) == chunk for part in chunks[:-1])
    assert 0 < max(len(chunks[-1]), len(chunks[-1].unreadable)) <= chunk
    assert torch.equal(torch.cat([part.pixels for part in chunks if len(part)]), images.pixels)
    assert sum((part.names for part in chunks), ()) == images.names
    assert sum((part.stored for part in chunks), ()) == images.stored
    before = [sum(len(part) for part in chunks[:i]) for i in range(len(chunks))]
    places = [
        (lost.name, start + lost.place) for start, part in zip(before, chunks, strict=True) for lost in part.unreadable
    ]
    assert places == [(lost.name, lost.place) for lost in images.unreadable]


def test_take_keeps_names_and_pixels_together(folder: Path) -> None:
    images = load_images(folder)
    for chosen in (images.take([2, 0]), images.take(torch.tensor([2, 0]))):
        assert chosen.names == ("z/c.png", "a.png")
        assert torch.equal(chosen.pixels, images.pixels[[2, 0]])


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


def test_hashes_tell_images_apart(generator: torch.Generator) -> None:
    pixels = torch.randint(0, 256, (50, 3, 8, 8), generator=generator, dtype=torch.uint8)
    hashes = image_hashes(pixels)
    assert len(hashes.unique()) == 50 and torch.equal(image_hashes(pixels.flip(0)), hashes.flip(0))
    pixels[3, 1, 2, 2] ^= 1
    assert (image_hashes(pixels) != hashes).nonzero().flatten().tolist() == [3]


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
