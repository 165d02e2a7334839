"""`debm sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from denoising_ebm import DenoisingEBM
from denoising_ebm.samplers import ChainState


def grid_cells(path: Path, columns: int, count: int) -> np.ndarray[Any, Any]:
    """Cut a grid of 32x32 images, drawn at twice their size with one white pixel between them."""
    sheet = np.asarray(Image.open(path))[::2, ::2]
    corners = [(1 + 33 * (i // columns), 1 + 33 * (i % columns)) for i in range(count)]
    return np.stack([sheet[top : top + 32, left : left + 32] for top, left in corners])


def test_sample_writes_the_models_images(debm: Any, run: Path, tmp_path: Path) -> None:
    png, npz = tmp_path / "new" / "grid.png", tmp_path / "samples.npz"
    arguments = ["sample", run, "--n", 6, "--columns", 3, "--out", png, "--npz", npz, "--seed", 5]
    assert debm(*arguments, "--precision", "fp32").status == 0
    images = np.load(npz)["arr_0"]
    assert images.dtype == np.uint8 and images.shape == (6, 32, 32, 1)
    np.testing.assert_array_equal(grid_cells(png, 3, 6), images[..., 0])
    expected = DenoisingEBM.from_pretrained(run).sample(6, seed=5).images
    assert np.abs(images[:, :, :, 0] - (expected[:, 0].clamp(-1, 1).numpy() + 1) * 127.5).max() <= 0.51


@pytest.mark.parametrize("sampler", ["two-stage", "annealed-langevin", "mala", "heun"])
def test_seed_decides_the_images(debm: Any, run: Path, tmp_path: Path, sampler: str) -> None:
    def draw(*options: object) -> np.ndarray[Any, Any]:
        path = tmp_path / "samples.npz"
        common = ["--n", 4, "--steps", 4, "--sampler", sampler, "--out", "", "--npz", path, "--precision", "fp32"]
        assert debm("sample", run, *common, *options).status == 0
        images: np.ndarray[Any, Any] = np.load(path)["arr_0"].astype(int)
        return images

    first = draw("--seed", 1)
    np.testing.assert_array_equal(first, draw("--seed", 1))
    assert np.abs(first - draw("--seed", 2)).mean() > 1
    # Whatever the batch, their number and where they start: but for rounding, at most a level of 255.
    for options in (["--batch-size", 1], ["--batch-size", 3], ["--n", 9], ["--n", 9, "--batch-size", 6]):
        assert np.abs(draw("--seed", 1, *options)[:4] - first).max() <= 1, options
    assert np.abs(draw("--seed", 1, "--start", 2, "--n", 2) - first[2:]).max() <= 1


def test_semantic_and_trajectory_show_the_same_chains(debm: Any, run: Path, tmp_path: Path) -> None:
    npz, semantic, chains = tmp_path / "samples.npz", tmp_path / "semantic.png", tmp_path / "chains.png"
    options = ["--n", 3, "--columns", 2, "--precision", "fp32"]
    assert (
        debm("sample", run, *options, "--out", "", "--npz", npz, "--semantic", semantic, "--trajectory", chains).status
        == 0
    )
    images = np.load(npz)["arr_0"][..., 0]
    model = DenoisingEBM.from_pretrained(run)
    drawn = model.sample(3, seed=0)
    pairs = grid_cells(semantic, 4, 6)
    np.testing.assert_array_equal(pairs[1::2], images)
    assert drawn.semantic is not None
    expected = (drawn.semantic[:, 0].clamp(-1, 1).numpy() + 1) * 127.5
    assert np.abs(pairs[::2] - expected).max() <= 0.51
    # z 1, 5, 6; x 1, ..., 6; end: ten columns under a band of labels.
    sheet = np.asarray(Image.open(chains))[20:][::2, ::2]
    assert sheet.shape == (1 + 3 * 33, 1 + 10 * 33)
    np.testing.assert_array_equal(sheet[1:33, -33:-1], images[0])
    np.testing.assert_array_equal(sheet[1:33, 1 + 2 * 33 : 33 + 2 * 33], pairs[0])


def test_trajectory_of_a_small_batch(debm: Any, run: Path, tmp_path: Path) -> None:
    """The chains of the first batch are shown, however many images are drawn."""
    chains, options = tmp_path / "chains.png", ["--n", 9, "--batch-size", 4, "--precision", "fp32", "--out", ""]
    assert debm("sample", run, *options, "--trajectory", chains).status == 0
    sheet = np.asarray(Image.open(chains))[20:][::2, ::2]
    assert sheet.shape[0] == 1 + 4 * 33
    images = DenoisingEBM.from_pretrained(run).sample(4, seed=0).images
    end = (images[0, 0].clamp(-1, 1).numpy() + 1) * 127.5
    assert np.abs(sheet[1:33, -33:-1] - end).max() <= 0.51


def test_mala_says_how_many_proposals_it_accepted(
    debm: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, though auto is bf16 on many machines."""
    monkeypatch.setattr("denoising_ebm.model.choose_precision", lambda name, _: "bf16" if name == "auto" else name)
    monkeypatch.chdir(tmp_path)
    rates: list[float] = []

    def callback(state: ChainState) -> None:
        rates.append(state.acceptance or 0.0)

    DenoisingEBM.from_pretrained(run).sample(6, sampler="mala", steps=9, batch_size=4, callback=callback)
    mean, first, last = (sum(part) / len(part) for part in (rates, rates[:3], rates[-3:]))
    said = debm(
        "sample", run, "--sampler", "mala", "--n", 6, "--steps", 9, "--batch-size", 4, "--npz", "x.npz", "--out", ""
    )
    assert (
        f"debm: {mean:.0%} of the proposals of the first batch were accepted: {first:.0%} in the first third of the steps, "
        f"{last:.0%} in the last\n"
    ) in said.err
    assert "proposals" not in debm("sample", run, "--sampler", "heun", "--n", 1, "--steps", 2, "--npz", "x.npz").err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "/dev/null/grid.png"], "/dev/null/grid.png: cannot be written: "),
        (["--npz", "/dev/null/x.npz"], "/dev/null/x.npz: cannot be written: "),
        (["--n", "0"], "the number of images must be >= 1, got 0"),
        (["--steps", "0"], "steps must be >= 1, got 0"),
        (["--batch-size", "0"], "batch_size must be >= 1, got 0"),
        (["--start", "-1"], "--start must be >= 0, got -1"),
        (["--columns", "0"], "--columns must be >= 1, got 0"),
        (["--device", "abacus"], "unknown device 'abacus'"),
        (["--device", "meta"], "unknown device 'meta': use auto, cpu or cuda"),
    ],
)
def test_sample_refuses(debm: Any, run: Path, tmp_path: Path, options: list[str], message: str) -> None:
    assert message in debm("sample", run, "--out", tmp_path / "grid.png", *options).error
    assert not (tmp_path / "grid.png").exists()
