from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from denoising_ebm.viz.plots import (
    chain_energies,
    energy_histograms,
    heat_map_sheet,
    heat_overlay,
    image_grid,
    png_bytes,
    save_grid,
    training_curves,
    trajectory_grid,
)


def random_images(count: int, channels: int = 1, height: int = 4, width: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, channels, height, width, generator=generator) * 2 - 1


def expected_pixels(image: Tensor, scale: int) -> np.ndarray:
    levels = np.round((image.numpy() + 1) * 127.5).astype(np.uint8).transpose(1, 2, 0)
    return levels.repeat(scale, axis=0).repeat(scale, axis=1).squeeze()


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_grid_places_every_pixel(channels: int, mode: str):
    images = random_images(5, channels)
    scale, padding, columns = 3, 2, 3
    grid = image_grid(images, columns=columns, scale=scale, padding=padding)
    assert (grid.mode, grid.size) == (mode, (scale * (2 + 3 * (5 + 2)), scale * (2 + 2 * (4 + 2))))
    pixels = np.asarray(grid)
    covered = np.zeros(pixels.shape[:2], dtype=bool)
    for i, image in enumerate(images):
        top, left = scale * (padding + i // 3 * (4 + padding)), scale * (padding + i % 3 * (5 + padding))
        place = np.s_[top : top + 4 * scale, left : left + 5 * scale]
        np.testing.assert_array_equal(pixels[place], expected_pixels(image, scale))
        covered[place] = True
    assert (pixels[~covered] == 255).all()


def test_grid_clamps_and_rounds():
    image = torch.tensor([-3.0, -1.0, 0.0, 1.0, 7.0]).reshape(1, 1, 1, 5)
    assert np.asarray(image_grid(image, columns=1, scale=1, padding=0)).tolist() == [[0, 0, 128, 255, 255]]


def test_grid_refuses_bad_arguments():
    with pytest.raises(ValueError, match=r"got \(2, 4, 5\)"):
        image_grid(torch.zeros(2, 4, 5), columns=1)
    with pytest.raises(ValueError, match="columns and scale must be >= 1"):
        image_grid(random_images(1), columns=0)


def test_saved_grid_is_the_grid(tmp_path: Path):
    images, path = random_images(4), tmp_path / "samples" / "samples-000000128.png"
    save_grid(images, path, columns=2)
    with Image.open(path) as saved:
        np.testing.assert_array_equal(np.asarray(saved), np.asarray(image_grid(images, columns=2)))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_trajectory_has_chains_in_rows_and_times_in_columns():
    states = [random_images(2, seed=time) for time in range(3)]
    picture = trajectory_grid(states, ["z 0", "z 20", "x 60"], scale=4, padding=1)
    pixels = np.asarray(picture)
    band = picture.height - 4 * (1 + 2 * (4 + 1))
    for chain in range(2):
        for time in range(3):
            top, left = band + 4 * (1 + chain * 5), 4 * (1 + time * 6)
            np.testing.assert_array_equal(
                pixels[top : top + 16, left : left + 20], expected_pixels(states[time][chain], 4)
            )
    labels = pixels[:band]
    for time in range(3):
        assert labels[:, 24 * time : 24 * (time + 1)].min() < 200, "a label above every column"


def test_trajectory_refuses_disagreement():
    with pytest.raises(ValueError, match="one label for each"):
        trajectory_grid([random_images(1)], [])
    with pytest.raises(ValueError, match="different shapes"):
        trajectory_grid([random_images(1), random_images(2)], ["a", "b"])


def test_heat_overlay_colours_and_limit():
    image = random_images(1)[0]
    values = torch.linspace(0, 2, 20).reshape(4, 5)
    pixels = np.asarray(heat_overlay(image, values, limit=1.0, scale=2))
    assert pixels.shape == (2 * (4 + 1 + 4), 2 * 5, 3)
    np.testing.assert_array_equal(pixels[:8, :, 0], expected_pixels(image, 2))
    shares = np.minimum(values.numpy().astype(np.float64), 1).repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(pixels[10:], colormaps["inferno"](shares, bytes=True)[..., :3])
    signed = np.asarray(heat_overlay(image, values - 1, limit=1.0, signed=True, scale=2))
    shares = (values.numpy().astype(np.float64) / 2).repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(signed[10:], colormaps["RdBu_r"](shares, bytes=True)[..., :3])
    with pytest.raises(ValueError, match="limit must be finite and > 0"):
        heat_overlay(image, values, limit=0.0)
    with pytest.raises(ValueError, match="do not fit"):
        heat_overlay(image, values.T, limit=1.0)


def test_heat_map_sheet_contains_every_overlay():
    images, maps = random_images(3, channels=3, height=16, width=16), torch.rand(3, 16, 16)
    sheet = np.asarray(heat_map_sheet(images, maps, ["in", "digits", "noise"], limit=0.7, columns=2, scale=2))
    tiles = [np.asarray(heat_overlay(images[i], maps[i], limit=0.7, scale=2)) for i in range(3)]
    for i, tile in enumerate(tiles):
        top, left = 20 + (i // 2) * (66 + 20 + 8), (i % 2) * (32 + 8)
        np.testing.assert_array_equal(sheet[top : top + 66, left : left + 32], tile)


def test_signed_sheets_take_their_limit_from_sizes():
    images, maps = random_images(2, channels=3, height=16, width=16), -torch.rand(2, 16, 16)
    sheet = np.asarray(heat_map_sheet(images, maps, ["a", "b"], signed=True, scale=2))
    limit = float(np.quantile(-maps.double().numpy(), 0.995))
    tile = np.asarray(heat_overlay(images[0], maps[0], limit=limit, signed=True, scale=2))
    np.testing.assert_array_equal(sheet[20 : 20 + tile.shape[0], : tile.shape[1]], tile)
    # The colour bar goes from red above to blue below.
    bar = sheet[20 : 20 + tile.shape[0], 2 * (32 + 8) + 2].astype(int)
    assert bar[0, 0] > bar[0, 2] + 50 and bar[-1, 2] > bar[-1, 0] + 50


def test_curves_draw_only_what_was_recorded():
    records = [
        {"images_seen": 100 * step, "stage": "denoising", "loss": 1.0 / (step + 1), "grad_norm": 2.0}
        for step in range(5)
    ]
    figure = training_curves(records)
    assert [axis.get_ylabel() for axis in figure.axes] == ["loss", "gradient norm"]
    assert figure.axes[0].get_yscale() == "log"
    (line,) = figure.axes[0].lines
    np.testing.assert_allclose(line.get_xdata(), [0, 100, 200, 300, 400])
    np.testing.assert_allclose(line.get_ydata(), [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])


def test_curves_mark_the_next_phase_and_survive_negative_losses():
    records = [
        {"images_seen": 1, "stage": "denoising", "loss": 0.5, "loss_denoising": 0.5},
        {"images_seen": 2, "stage": "contrastive", "loss": -0.5, "energy_data": -1.0, "energy_chain": float("nan")},
        {"images_seen": 3, "stage": "contrastive", "loss": 0.1, "energy_data": -2.0, "energy_chain": 3.0},
    ]
    figure = training_curves(records)
    assert [axis.get_ylabel() for axis in figure.axes] == ["loss", "energy"]
    assert figure.axes[0].get_yscale() == "symlog"
    assert [text.get_text() for text in figure.axes[1].get_legend().get_texts()] == ["data", "chain ends"]
    assert list(figure.axes[1].lines[1].get_xdata()) == [3.0]
    assert list(figure.axes[1].lines[-1].get_xdata()) == [2, 2]
    assert [text.get_text().strip() for text in figure.axes[0].texts] == ["contrastive"]
    with pytest.raises(ValueError, match="no record has"):
        training_curves([{"images_seen": 1}])


def test_running_mean_of_many_values_is_centred():
    records = [{"images_seen": step, "loss": 10.0 + step} for step in range(400)]
    figure = training_curves(records)
    raw, mean = figure.axes[0].lines
    assert len(raw.get_xdata()) == 400
    # A straight line is its own running mean, half a step off for an even window.
    np.testing.assert_allclose(mean.get_ydata() - mean.get_xdata(), 10.5)


def test_histograms_share_bins_and_say_what_they_leave_out():
    rng = np.random.default_rng(0)
    energies = {"test": rng.normal(0, 1, 1000), "digits": rng.normal(2, 1, 500), "noise": np.full(100, 1e6)}
    figure = energy_histograms(energies, title="Energies", xlabel="energy at sigma = 0.1", bins=40)
    (axis,) = figure.axes
    stairs = [patch.get_data() for patch in axis.patches]
    assert len(stairs) == 3
    low, high = axis.get_xlim()
    # 99 % of test is within 2.58 of 0, of digits within 2.58 of 2.
    assert -3.5 < low < -2 and 4 < high < 6
    for data, values in zip(stairs, energies.values(), strict=True):
        np.testing.assert_allclose(data.edges, np.linspace(low, high, 41))
        assert data.values.sum() == pytest.approx(np.mean((values >= low) & (values <= high)))
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert labels == ["test (n = 1,000)", "digits (n = 500)", "noise (n = 100; 100% beyond the axis)"]
    with pytest.raises(ValueError, match="'odd' must be finite"):
        energy_histograms({"test": np.ones(3), "odd": np.array([np.inf])}, title="", xlabel="")


def test_histograms_of_equal_values_have_a_range():
    figure = energy_histograms({"test": np.full(5, 3.0)}, title="", xlabel="energy")
    low, high = figure.axes[0].get_xlim()
    assert low < 3 < high
    assert figure.axes[0].patches[0].get_data().values.sum() == 1.0


def test_png_bytes_decode_to_the_picture_and_repeat():
    picture = image_grid(random_images(2), columns=2)
    with Image.open(io.BytesIO(png_bytes(picture))) as decoded:
        np.testing.assert_array_equal(np.asarray(decoded), np.asarray(picture))
    records = [{"images_seen": 1, "loss": 2.0}, {"images_seen": 2, "loss": 1.0}]
    first, second = png_bytes(training_curves(records), dpi=50), png_bytes(training_curves(records), dpi=50)
    assert first == second
    with Image.open(io.BytesIO(first)) as decoded:
        assert decoded.size == (360, 120)


@pytest.mark.parametrize("top", [1.2, 2.1, 4.9, 900.0])
def test_logarithmic_axes_have_plain_numbers_whatever_they_span(top: float) -> None:
    """An axis with one label tells nothing; values may lie between two powers of ten."""
    energies = {"texture": [torch.tensor([700.0, 710.0]), torch.tensor([700.0 * top, 690.0])]}
    figure = chain_energies(energies)
    png_bytes(figure)
    (axis,) = figure.axes
    low, high = axis.get_ylim()
    shown = [label.get_text() for label in axis.get_yticklabels() if low <= label.get_position()[1] <= high]
    assert len(shown) >= 3 and all(re.fullmatch(r"[\d.]+(e\+\d+)?", text) for text in shown)
    lines = [line.get_ydata() for line in axis.get_lines()]
    np.testing.assert_allclose(lines[-1], [705.0, (700 * top + 690) / 2])
