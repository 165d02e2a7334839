"""Repair: only what is masked changes, and it joins what is around it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from denoising_ebm.config import Config, from_dict
from denoising_ebm.inspection.repair import LARGEST, _filled, left_out, repair
from denoising_ebm.inspection.run import _note_of_repair
from denoising_ebm.model import DenoisingEBM


class Stripes(DenoisingEBM):
    """A model that knows one photo: whatever it sees, it denoises towards horizontal stripes of period 8."""

    def denoise(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        rows = torch.arange(x.shape[2])
        return torch.where((rows % 8 < 4)[None, None, :, None], 0.5, -0.5).expand_as(x)


def make(any_size: bool = True) -> Stripes:
    network = {"image_size": 16, "channels": 1, "any_size": any_size, "widths": [8, 8], "attention": []}
    network |= {"latent_dim": 4, "decoder_widths": [8, 8], "embedding_dim": 8}
    return Stripes(from_dict(Config, {"network": network}, where="test")).eval()


def striped(height: int, width: int) -> Tensor:
    return make().denoise(torch.zeros(1, 1, height, width), 0.1)[0].clone()


def test_a_hole_is_filled_by_what_the_model_knows_and_nothing_else_changes() -> None:
    x = striped(64, 80)
    damaged = x.clone()
    damaged[:, 0:10, 40:52] = 1.0
    mask = torch.zeros(64, 80, dtype=torch.bool)
    mask[0:10, 40:52] = True
    # The window begins at row 0, so the stripes of the model are those of the photo.
    repaired = repair(make(), damaged, mask, steps=8, grow=0)
    assert torch.equal(repaired[:, ~mask], damaged[:, ~mask])
    inner = (slice(None), slice(0, 8), slice(43, 49))
    torch.testing.assert_close(repaired[inner], x[inner], atol=0.05, rtol=0)


def test_regions_are_enlarged_and_what_is_beyond_stays() -> None:
    x = striped(40, 40)
    mask = torch.zeros(40, 40, dtype=torch.bool)
    mask[20, 20] = True
    repaired = repair(make(), x + 0.25, mask, steps=4, grow=2)
    changed = (repaired != x + 0.25).any(0)
    assert changed.sum() == 13  # a diamond of radius 2
    assert changed[20, 20]


def test_the_largest_regions_are_repaired_first() -> None:
    mask = torch.zeros(200, 200, dtype=torch.bool)
    mask[10:12, 10:12] = True
    mask[150:160, 150:160] = True
    x = torch.zeros(1, 200, 200)
    repaired = repair(make(), x, mask, steps=3, grow=0, max_regions=1)
    assert bool((repaired[:, 150:160, 150:160] != 0).any())
    assert torch.equal(repaired[:, :100], x[:, :100])


def test_draws_are_a_function_of_the_seed() -> None:
    network = {"image_size": 16, "channels": 1, "any_size": True, "widths": [8, 8], "attention": []}
    network |= {"latent_dim": 4, "decoder_widths": [8, 8], "embedding_dim": 8}
    torch.manual_seed(0)
    model = DenoisingEBM(from_dict(Config, {"network": network}, where="test")).eval()
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[10:20, 10:20] = True
    x = torch.zeros(1, 32, 32)
    first, second, other = (repair(model, x, mask, steps=4, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_a_smooth_filling_is_a_mean_of_what_is_known() -> None:
    window = torch.zeros(2, 30, 30)
    window[0, :, 15:] = 1.0
    window[1] = 0.3
    missing = torch.zeros(30, 30, dtype=torch.bool)
    missing[10:20, 10:20] = True
    filled = torch.from_numpy(_filled(window.numpy(), missing.numpy()))
    assert torch.equal(filled[:, ~missing], window[:, ~missing])
    torch.testing.assert_close(filled[1], window[1], atol=1e-4, rtol=0)
    assert float(filled[0, 15, 10]) < 0.2 < 0.8 < float(filled[0, 15, 19])


def test_nothing_to_repair_and_what_cannot_be() -> None:
    x = torch.rand(1, 20, 20)
    none = torch.zeros(20, 20, dtype=torch.bool)
    assert torch.equal(repair(make(), x, none), x)
    with pytest.raises(ValueError, match=r"photo \(1, 20, 20\) and mask \(4, 4\) do not fit"):
        repair(make(), x, none[:4, :4])
    with pytest.raises(ValueError, match="the model takes images of one size only"):
        repair(make(any_size=False), x, none)


def test_what_is_left_out_is_what_stays() -> None:
    mask = torch.zeros(200, 200, dtype=torch.bool)
    mask[10:12, 10:12] = True
    mask[150:160, 150:160] = True
    left = left_out(mask, max_regions=1)
    assert int(left.sum()) == 4
    assert bool(left[10:12, 10:12].all())
    x = torch.full((1, 200, 200), 0.1)
    repaired = repair(make(), x, mask, steps=3, max_regions=1)
    assert torch.equal((repaired == x).all(0) & mask, left)
    assert not left_out(mask).any()
    assert _note_of_repair(mask) == ()


def test_a_photo_without_a_known_pixel_stays_as_it_is() -> None:
    x = torch.rand(1, 20, 20)
    mask = torch.ones(20, 20, dtype=torch.bool)
    assert torch.equal(repair(make(), x, mask, steps=3), x)
    assert _note_of_repair(mask) == (
        "400 pixels of 400 marked ones are not drawn anew: the 16 largest regions are, each within 512 x 512 pixels",
    )


def test_of_a_long_region_the_middle_is_drawn() -> None:
    length = LARGEST + 200
    mask = torch.zeros(40, length, dtype=torch.bool)
    mask[18:22] = True
    left = left_out(mask)
    assert left.any(0).nonzero().flatten().tolist() == [*range(100), *range(length - 100, length)]
