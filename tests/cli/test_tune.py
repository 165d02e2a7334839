"""`debm tune`."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from denoising_ebm import load_images
from denoising_ebm.datasets.images import to_uint8
from denoising_ebm.hub import CONFIG_FILE, WEIGHTS_FILE
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.quality.evaluator import FidelityEvaluator


@pytest.mark.slow
def test_command_writes_the_choice_and_nothing_else(debm: Any, folder: Path, run: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(run / "model", model)
    options = ["--temperatures", "[0.9,0.2]", "--samples", "16", "--images", "40", "--batch-size", "8", "--seed", "2"]
    outcome = debm("tune", model, folder, *options, "--precision", "fp32")
    assert outcome.status == 0, outcome.err

    # The same by hand: 16 samples of seed 2, against 40 of the images drawn by that seed.
    draws = torch.Generator().manual_seed(2)
    evaluator = FidelityEvaluator(load_images(folder, image_size=32, channels=1, sample=40, generator=draws).pixels)
    expected = {}
    for temperature in (0.9, 0.2):
        reference = DenoisingEBM.from_pretrained(model)
        own = reference.config.sampling
        sampling = replace(own, pixel=replace(own.pixel, low_temperature=temperature))
        drawn = reference.sample(16, sampler=sampling, seed=2, batch_size=8).images
        expected[temperature] = evaluator.frechet_distance(to_uint8(drawn))
    best = min(expected, key=expected.__getitem__)
    assert outcome.out.startswith("Fréchet distance (FD) of 16 samples to 40 images")
    assert f"sampling.pixel.low_temperature 1 -> {best:g}" in outcome.err
    for temperature, distance in expected.items():
        chosen = " (chosen)" if temperature == best else ""
        assert f"| {temperature:g}{chosen} | {distance:.1f} |" in " ".join(outcome.out.split()), outcome.out

    old = json.loads((run / "model" / CONFIG_FILE).read_text())
    new = json.loads((model / CONFIG_FILE).read_text())
    assert new["config"]["sampling"]["pixel"].pop("low_temperature") == best
    assert new["sha256"].pop(CONFIG_FILE) != old["sha256"].pop(CONFIG_FILE)
    assert old["config"]["sampling"]["pixel"].pop("low_temperature") == 1 and old == new
    assert (model / WEIGHTS_FILE).read_bytes() == (run / "model" / WEIGHTS_FILE).read_bytes()


def test_command_copies_the_model_where_asked(debm: Any, folder: Path, run: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in (run / "model").iterdir()}
    options = ["--temperatures", "[0.2]", "--samples", "4", "--images", "10", "--out", tmp_path / "copy"]
    assert debm("tune", run, folder, *options, "--precision", "fp32").status == 0
    assert {path.name: path.read_bytes() for path in (run / "model").iterdir()} == before
    copied = DenoisingEBM.from_pretrained(tmp_path / "copy")
    assert copied.config.sampling.pixel.low_temperature == 0.2
    shown = " ".join(debm("info", tmp_path / "copy").out.split())
    assert "temperature 0.2 below sigma 0.25" in shown and "temperature" not in debm("info", run).out
    assert copied.fingerprint() == DenoisingEBM.from_pretrained(run).fingerprint()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--temperatures", "[-1]"], "--temperatures must be one or more numbers >= 0, got [-1.0]"),
        (["--temperatures", "[]"], "--temperatures must be one or more numbers >= 0, got []"),
        (["--samples", "1"], "--samples must be >= 2, got 1"),
        (["--images", "1"], "--images must be >= 2, got 1"),
    ],
)
def test_command_refuses(debm: Any, folder: Path, run: Path, options: list[str], message: str) -> None:
    assert debm("tune", run, folder, *options).error == message


def test_command_leaves_bundled_models_alone(debm: Any) -> None:
    message = "fashion-mnist: is part of the package; choose a folder for the tuned model with --out"
    assert debm("tune", "fashion-mnist", "fashion-mnist").error == message
