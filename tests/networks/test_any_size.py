"""Networks of any size: what a place gets depends on what is around it, and not on the size of the photo."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from denoising_ebm.config import Config, NetworkConfig, from_dict
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.networks.layers import PlaceNorm
from denoising_ebm.networks.unet import _window_means

NETWORK = {
    "image_size": 16,
    "channels": 2,
    "any_size": True,
    "patch": 2,
    "widths": [8, 16],
    "attention": [],
    "latent_dim": 4,
    "decoder_widths": [8, 8],
    "embedding_dim": 8,
}


def make_model() -> DenoisingEBM:
    generator = torch.Generator().manual_seed(0)
    model = DenoisingEBM(from_dict(Config, {"network": NETWORK}, where="test"))
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.3, generator=generator)
    return model.eval()


def test_a_place_sees_its_surroundings_alone() -> None:
    model = make_model()
    x = torch.randn(1, 2, 160, 48, generator=torch.Generator().manual_seed(1))
    changed = x.clone()
    changed[:, :, 120:] += 3
    with torch.no_grad():
        first, second = model.denoise(x, 0.2), model.denoise(changed, 0.2)
    assert torch.equal(first[:, :, :48], second[:, :, :48])
    assert not torch.allclose(first[:, :, 112:120], second[:, :, 112:120])


def test_a_photo_moved_by_the_stride_moves_its_output() -> None:
    model = make_model()
    x = torch.randn(1, 2, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole, part = model.denoise(x, 0.2), model.denoise(x[:, :, 4:, 8:], 0.2)
    torch.testing.assert_close(whole[:, :, 28:36, 32:40], part[:, :, 24:32, 24:32], rtol=1e-5, atol=1e-5)


def test_sides_that_do_not_suit_the_stride_are_reflected_and_cut_back() -> None:
    model = make_model()
    x = torch.randn(1, 2, 21, 34, generator=torch.Generator().manual_seed(2))
    reflected = nn.functional.pad(x, (0, 2, 0, 3), mode="reflect")
    with torch.no_grad():
        torch.testing.assert_close(model.denoise(x, 0.1), model.denoise(reflected, 0.1)[..., :21, :34])


def test_photos_smaller_than_a_window_have_a_code() -> None:
    model = make_model()
    with torch.no_grad():
        assert model.denoise(torch.zeros(1, 2, 3, 5), 0.1).shape == (1, 2, 3, 5)
        assert model.encode(torch.zeros(2, 2, 3, 5), 0.1).shape == (2, 4)


def test_codes_are_means_of_windows_within_the_photo() -> None:
    codes = torch.arange(5.0).reshape(1, 1, 1, 5).expand(1, 1, 3, 5)
    # Windows of three begin at 0, 1, 2; those of the outer places are moved inside.
    assert _window_means(codes, 3)[0, 0, 1].tolist() == [1, 1, 2, 3, 3]
    assert _window_means(codes[..., :2], 3)[0, 0, 0].tolist() == [0.5, 0.5]


def test_place_norm_has_unit_mean_square_at_every_place() -> None:
    x = 5 * torch.randn(2, 32, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(PlaceNorm(32)(x).square().mean(1), torch.ones(2, 4, 4), rtol=1e-4, atol=1e-4)


def test_the_gradient_of_its_energy_can_be_differentiated() -> None:
    model = make_model().double()
    x = torch.randn(1, 2, 16, 16, generator=torch.Generator().manual_seed(0)).double().requires_grad_(True)
    assert torch.autograd.gradgradcheck(lambda v: model.energy(v, 0.5), (x,), nondet_tol=1e-6, fast_mode=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention": [8]}, r"network.attention must be empty with network.any_size, got \[8\]"),
        ({"patch": 3}, "network.patch must be 1, 2, 4 or 8, got 3"),
        ({"image_size": 18}, "network.image_size must be divisible by 4 with 2 widths and patches of 2, got 18"),
        ({"channels": 17}, "network.channels must be within 1..16, got 17"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_dict(NetworkConfig, NETWORK | change, where="test")
