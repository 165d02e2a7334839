from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from denoising_ebm.viz.grids import heat_map_sheet, heat_overlay, image_grid, save_grid, to_picture, trajectory_grid


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


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_picture_of_bytes_and_of_floats(channels: int, mode: str):
    image = random_images(1, channels)[0]
    picture = to_picture(image)
    assert (picture.mode, picture.size) == (mode, (5, 4))
    np.testing.assert_array_equal(np.asarray(picture), expected_pixels(image, 1))
    pixels = torch.as_tensor(expected_pixels(image, 1).reshape(4, 5, channels)).permute(2, 0, 1)
    np.testing.assert_array_equal(np.asarray(to_picture(pixels)), np.asarray(picture))
    with pytest.raises(ValueError, match=r"shape \(1 or 3, h, w\), got \(2, 4, 5\)"):
        to_picture(torch.zeros(2, 4, 5))
