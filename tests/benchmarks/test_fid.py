"""Samples as `benchmarks/fid.py` reads them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from denoising_ebm import to_float

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from fid import read_samples


@pytest.fixture
def pixels(generator: torch.Generator) -> Tensor:
    return torch.randint(0, 256, (5, 3, 8, 8), generator=generator, dtype=torch.uint8)


def test_every_way_of_storing_gives_the_same_images(pixels: Tensor, tmp_path: Path) -> None:
    last = pixels.permute(0, 2, 3, 1).contiguous()
    np.savez(tmp_path / "a.npz", arr_0=last.numpy())
    save_file({"images": pixels, "seed": torch.tensor([1])}, tmp_path / "b.safetensors")
    save_file({"images": last}, tmp_path / "c.safetensors")
    save_file({"images": to_float(pixels)}, tmp_path / "d.safetensors")
    (tmp_path / "png").mkdir()
    for i, image in enumerate(last):
        Image.fromarray(image.numpy()).save(tmp_path / "png" / f"{i}.png")
    for name in ("a.npz", "b.safetensors", "c.safetensors", "d.safetensors", "png"):
        assert torch.equal(read_samples(tmp_path / name), pixels), name


def test_files_without_images_are_named(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, 3, 4)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"a.safetensors: holds 0 tensors of four dimensions, not one"):
        read_samples(tmp_path / "a.safetensors")
    np.savez(tmp_path / "b.npz", np.zeros((2, 5, 8, 8), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"b.npz: holds torch.uint8 \(2, 8, 5, 8\), no images"):
        read_samples(tmp_path / "b.npz")
