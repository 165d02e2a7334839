"""What was decided while a run's images were read is said once for each kind, with its count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from denoising_ebm.datasets.images import load_images, stream_images
from pictures import noise


def lines(source: Path, **options: Any) -> list[str]:
    stream = stream_images(source, chunk=2, **{"image_size": 32, "channels": 3, "convert": True, **options})
    for _ in stream:
        pass
    return stream.remarks()


def save(path: Path, values: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)


@pytest.mark.parametrize(("bits", "levels"), [(8, 255), (10, 1020), (12, 4080), (15, 32640)])
def test_16_bit_files_of_fewer_bits_are_told_over_all_of_the_run(tmp_path: Path, bits: int, levels: int) -> None:
    gray = noise(0, channels=1)
    gray.flat[:2] = 0, 255
    for i in range(5):
        save(tmp_path / f"{i}.png", gray.astype(np.uint16) * (levels // 255) // (i + 1))
    save(tmp_path / "x.png", gray)
    note = f"5 of 5 16-bit images use levels up to {levels} of 65535 only; --range {2**bits - 1} scales them"
    assert lines(tmp_path) == [note]
    stored = load_images(tmp_path).stored
    assert [one and one.notes for one in stored[:2]] == [
        (f"16 bits with levels up to {levels}",),
        (f"16 bits with levels up to {levels // 2}",),
    ]
    assert lines(tmp_path, value_range=(0, 2**bits - 1)) == []
    # Beside one that is brighter they may be dark: said of what would fit into 12 bits.
    save(tmp_path / "y.png", gray.astype(np.uint16) * 257)
    num = sum(levels // (i + 1) < 4096 for i in range(5))
    top = max((levels // (i + 1) for i in range(5) if levels // (i + 1) < 4096), default=0)
    white = 2 ** max(8, top.bit_length()) - 1
    note = (
        f"{num} of 6 16-bit images use levels up to {top} only, others up to 65535: if the former have fewer bits, read"
    )
    assert lines(tmp_path) == ([f"{note} them by themselves with --range {white}"] if num else [])


def test_a_range_that_cuts_or_does_nothing_is_told(tmp_path: Path) -> None:
    save(tmp_path / "a.png", noise(0))
    assert lines(tmp_path, value_range=(0, 4095)) == ["--range changes nothing: no image has more than 8 bits"]
    save(tmp_path / "b.png", np.full((32, 32), 5000, np.uint16))
    assert lines(tmp_path, value_range=(0, 4095)) == ["1 of 2 images: levels outside of 0 to 4095 cut off"]


def test_frames_and_transparency_are_told_with_their_counts(tmp_path: Path) -> None:
    for i, num in enumerate((2, 5, 5)):
        pages = [Image.fromarray(noise(seed)) for seed in range(num)]
        pages[0].save(tmp_path / f"{i}.tif", save_all=True, append_images=pages[1:])
    clear = np.concatenate([noise(0), noise(1, channels=1)[..., None]], -1)
    for i in range(2):
        save(tmp_path / f"x{i}.png", clear)
    found = lines(tmp_path)
    assert found == [
        "3 of 5 images hold several frames or pages (2 to 5), of which the first is read; --frames all reads all",
        "2 of 5 images: transparent: laid over white; --background says over what",
    ]
    assert lines(tmp_path, frames="all") == [
        "2 of 14 images: transparent: laid over white; --background says over what"
    ]


def test_images_that_are_not_square(tmp_path: Path) -> None:
    """At least half of one must be seen, unless an option says how."""
    wide = noise(2, 32, 64)
    save(tmp_path / "a.png", wide)
    save(tmp_path / "b.png", noise(3, 48, 32))
    save(tmp_path / "c.png", noise(4, 32, 32))
    half = load_images(tmp_path, image_size=32, resize="box")
    assert np.array_equal(half.pixels[0].permute(1, 2, 0), wide[:, 16:48])
    assert [one and (round(one.seen, 3), one.scale) for one in half.stored] == [(0.5, 1.0), (0.667, 1.0), (1.0, 1.0)]
    note = "2 of 3 images are not square: their central square is looked at, on average 58% of the area, at least 50%"
    assert lines(tmp_path, resize="box") == [f"{note}; --aspect pad or stretch shows all of it"]
    assert lines(tmp_path, resize="box", aspect="crop") == [note]

    save(tmp_path / "a.png", noise(2, 32, 96))
    reason = "is 96x32, of which the central square shows only 33%; --aspect pad, stretch or crop says how"
    with pytest.raises(ValueError, match=f"a.png: {reason}"):
        load_images(tmp_path, image_size=32, resize="box")
    fit: dict[str, Any] = {"image_size": 32, "channels": 3, "resize": "box", "skip_unfit": True}
    assert [lost.name for lost in load_images(tmp_path, **fit).unreadable] == ["a.png"]
    cropped = load_images(tmp_path, **fit, aspect="crop")
    assert np.array_equal(cropped.pixels[0].permute(1, 2, 0), noise(2, 32, 96)[:, 32:64])
    assert cropped.stored[0] and cropped.stored[0].notes == ("central square of 96x32",)


def test_stretched_and_padded_images_show_all(tmp_path: Path) -> None:
    wide = np.repeat(np.repeat(noise(2, 8, 16), 2, 0), 3, 1)  # 48 x 16
    save(tmp_path / "a.png", wide)
    options: dict[str, Any] = {"image_size": 16, "resize": "box"}
    stretched = load_images(tmp_path, **options, aspect="stretch")
    assert np.array_equal(stretched.pixels[0].permute(1, 2, 0), wide[:, ::3])
    (stored,) = stretched.stored
    assert stored and (stored.seen, stored.notes) == (1.0, ()) and stored.scale == pytest.approx((48 * 16) ** 0.5 / 16)
    for background, level in (("white", 255), ("black", 0)):
        padded = load_images(tmp_path, **options, aspect="pad", background=background)
        shown = padded.pixels[0].permute(1, 2, 0).numpy()
        expected = Image.fromarray(wide).resize((16, 5), Image.Resampling.BOX)
        assert np.array_equal(shown[5:10], np.asarray(expected))
        assert (shown[:5] == level).all() and (shown[10:] == level).all()
        assert padded.stored[0] and (padded.stored[0].seen, padded.stored[0].scale) == (1.0, 3.0)
    with pytest.raises(ValueError, match="aspect must be one of crop, stretch, pad, got 'squeeze'"):
        load_images(tmp_path, **options, aspect="squeeze")


def test_a_defect_at_the_side_is_seen_or_the_image_refused(tmp_path: Path) -> None:
    normal, defect = noise(5, 32, 96) // 8 + 100, noise(5, 32, 96) // 8 + 100
    defect[:, :32] = noise(6, 32, 32)
    save(tmp_path / "normal.png", normal)
    save(tmp_path / "defect.png", defect)
    options: dict[str, Any] = {"image_size": 32, "channels": 3, "resize": "lanczos", "skip_unfit": True}
    assert len(load_images(tmp_path, **options)) == 0
    for aspect in ("pad", "stretch"):
        one, other = load_images(tmp_path, **options, aspect=aspect).pixels.float()
        assert float((one - other).abs().max()) > 50


def test_a_crop_that_is_asked_for_is_counted_as_seen(tmp_path: Path) -> None:
    save(tmp_path / "a.png", noise(0, 218, 178))
    images = load_images(tmp_path, center_crop=140, image_size=64, resize="lanczos")
    (stored,) = images.stored
    assert stored and stored.seen == pytest.approx(140**2 / (218 * 178)) and stored.notes == ()
    assert stored.scale == pytest.approx(140 / 64)


def test_enlarged_images_are_told(tmp_path: Path) -> None:
    for side in (1, 4, 31, 32, 64):
        save(tmp_path / f"{side}.png", noise(side, side, side))
    assert lines(tmp_path, resize="lanczos") == [
        "3 of 5 images are smaller than the model's and were enlarged, the smallest from 1x1"
    ]
    stored = load_images(tmp_path, image_size=32, resize="lanczos").stored
    assert [one and one.notes for one in stored[:2]] == [("enlarged from 1x1",), ("enlarged from 31x31",)]


def test_a_limit_that_takes_few_classes_is_told(tmp_path: Path) -> None:
    for i in range(12):
        save(tmp_path / "abc"[i // 4] / f"{i}.png", noise(i))
    assert lines(tmp_path, limit=3) == ["the first 3 are of 1 of 3 classes; --sample draws from all"]
    assert lines(tmp_path, limit=6) == ["the first 6 are of 2 of 3 classes; --sample draws from all"]
    assert lines(tmp_path, limit=9) == [] == lines(tmp_path, limit=12)
    assert lines(tmp_path, sample=3, generator=torch.Generator().manual_seed(0)) == []
