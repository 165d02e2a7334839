"""Options on what pixels mean reach the images, are told once, and are kept by a detector."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from denoising_ebm.cli.options import TRAIN_IMAGES, ImageOptions
from denoising_ebm.datasets.preprocessing import Preprocessing
from pictures import noise


def scores(out: str) -> list[str]:
    return [row["score"] or row["energy"] for row in csv.DictReader(out.splitlines())]


@pytest.fixture
def deep(tmp_path: Path) -> tuple[Path, Path]:
    """The same three pictures in 8 bits, and in 12 bits of 16."""
    for name, factor, kind in (("8", 1, np.uint8), ("12", 16, np.uint16)):
        (tmp_path / name).mkdir()
        for i in range(3):
            values = noise(i, channels=1)
            values[0, 0] = 255
            Image.fromarray(values.astype(kind) * kind(factor)).save(tmp_path / name / f"{i}.png")
    return tmp_path / "8", tmp_path / "12"


def test_12_bits_score_as_8_with_their_range(debm: Any, run: Path, deep: tuple[Path, Path]) -> None:
    eight, twelve = deep
    expected = debm("score", run, eight)
    dark = debm("score", run, twelve)
    note = f"{twelve}: 3 of 3 16-bit images use levels up to 4080 of 65535 only; --range 4095 scales them"
    assert dark.err.replace("\n", " ").count(note) == 1 and scores(dark.out) != scores(expected.out)
    scaled = debm("score", run, twelve, "--range", 4095)
    assert scores(scaled.out) == scores(expected.out) and "--range" not in scaled.err
    assert debm("score", run, twelve, "--range", "9,1").error.startswith("value_range must be two finite numbers")
    assert debm("score", run, twelve, "--background", "blu").error.startswith("background must be white, black, ignore")


def test_a_seeded_draw_is_not_the_first_images(debm: Any, run: Path) -> None:
    first, again, other = (
        debm("score", run, "fashion-mnist", "--sample", 5, "--sample-seed", seed).out for seed in (1, 1, 2)
    )
    assert first == again != other and len(scores(first)) == 5
    limited = debm("score", run, "fashion-mnist", "--limit", 5)
    assert "debm: fashion-mnist: 5 of 2,000 images (split test)" in limited.err
    assert scores(limited.out) != scores(first)


def test_options_follow_what_was_prepared_before(capsys: pytest.CaptureFixture[str]) -> None:
    before = Preprocessing(32, 1, "lanczos", value_range=(0, 4095), background="black", frames="all", aspect="pad")
    same = ImageOptions().like(before)
    assert (same.resize, same.range, same.background, same.frames, same.aspect) == (
        "lanczos",
        "0,4095",
        "black",
        "all",
        "pad",
    )
    assert same.preprocessing_for(type("Network", (), {"image_size": 32, "channels": 1})()) == before  # type: ignore[arg-type]
    assert ImageOptions(range="4095").like(before).range == "4095"
    assert capsys.readouterr().err == ""
    other = ImageOptions(range="1023", background="white").like(before)
    assert (other.range, other.background) == ("1023", "white")
    told = " ".join(capsys.readouterr().err.split())
    assert "--range 0,1023: the detector was fitted to images with --range 0,4095" in told
    assert "--background white: the detector was fitted to images with --background black" in told
    with pytest.raises(ValueError, match="--frames first"):
        ImageOptions(frames="first").like(before, refuse=True)


def test_given_options_are_words_that_mean_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    options = replace(TRAIN_IMAGES, limit=9, center_crop=20, convert=True, range="0,1", sample=3, background="#102030")
    words = "--limit 9 --sample 3 --center-crop 20 --convert --range 0,1 --background #102030"
    assert options.given() == words.split() and TRAIN_IMAGES.given() == []
