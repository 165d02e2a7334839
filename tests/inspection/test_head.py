"""The head, what it reads and what it learns from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from denoising_ebm.config import Config, from_dict
from denoising_ebm.inspection.bank import PhotoBank, at_least
from denoising_ebm.inspection.evidence import evidence, tiled
from denoising_ebm.inspection.head import Head, HeadConfig, draw_crops, fit_head, loss
from denoising_ebm.model import DenoisingEBM

CONFIG = HeadConfig(sigmas=(0.1,), widths=(8, 8), crop=32, batch_size=4, max_crops=320)


@dataclass
class Plain:
    x: Tensor


def make_model(channels: int = 1) -> DenoisingEBM:
    network = {"image_size": 16, "channels": channels, "any_size": True, "widths": [8, 8], "attention": []}
    network |= {"latent_dim": 4, "decoder_widths": [8, 8], "embedding_dim": 8}
    torch.manual_seed(0)
    return DenoisingEBM(from_dict(Config, {"network": network}, where="test")).eval()


def photos(count: int, side: int = 40, channels: int = 1, seed: int = 0) -> list[Plain]:
    generator = torch.Generator().manual_seed(seed)
    return [Plain(0.05 * torch.randn(channels, side, side, generator=generator)) for _ in range(count)]


def test_evidence_is_the_photo_beside_its_residuals() -> None:
    model = make_model(2)
    x = torch.randn(1, 2, 20, 24, generator=torch.Generator().manual_seed(0))
    found = evidence(model, x, (0.1, 0.5))
    assert found.shape == (1, 6, 20, 24)
    torch.testing.assert_close(found[:, :2], x)
    with torch.no_grad():
        torch.testing.assert_close(found[:, 4:], (x - model.denoise(x, 0.5)) / 0.5)
        # Its half square is the energy per pixel without inner noise.
        energy = model.energy_map(x, 0.5)
    torch.testing.assert_close(0.5 * found[:, 4:].square().sum(1), energy)


def test_tiles_of_a_local_function_give_the_map_of_the_whole() -> None:
    def blurred(x: Tensor) -> Tensor:
        assert max(x.shape[2:]) <= 32 + 2 * 8
        return torch.nn.functional.avg_pool2d(x.mean(1, keepdim=True), 7, 1, 3, count_include_pad=False)[:, 0]

    x = torch.randn(3, 100, 131, generator=torch.Generator().manual_seed(0))
    whole = torch.nn.functional.avg_pool2d(x.mean(0)[None, None], 7, 1, 3, count_include_pad=False)[0, 0]
    torch.testing.assert_close(tiled(blurred, x, tile=32, margin=8), whole)


def test_a_bank_stays_within_its_bytes_and_holds_photos_as_they_are() -> None:
    rng = np.random.default_rng(0)
    small = photos(5, side=40)
    bank = PhotoBank.of(small, rng, least_side=16)
    held = {window.tobytes() for window in bank.windows}
    assert held == {photo.x.numpy().tobytes() for photo in small}
    # Of large photos windows, until it is full.
    bank = PhotoBank.of(photos(20, side=600), rng, least_side=16, max_bytes=3 * 4 * 512**2)
    assert len(bank) <= 4
    assert all(window.shape == (1, 512, 512) for window in bank.windows)


def test_photos_that_are_too_small_are_reflected() -> None:
    x = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    assert at_least(x, 4).tolist() == [[[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [0, 1, 2, 2]]]
    assert at_least(x, 2) is x


def test_crops_are_of_the_photos_with_and_without_turns() -> None:
    ramp = Plain(torch.arange(40.0)[None, :, None].expand(1, 40, 40) / 40)
    bank = PhotoBank.of([ramp], np.random.default_rng(0), least_side=16)
    rng = np.random.default_rng(1)
    straight = [bank.crop(16, rng, turns=False) for _ in range(8)]
    assert all(np.ptp(crop, axis=2).max() == 0 for crop in straight)
    assert len({float(crop[0, 0, 0]) for crop in straight}) > 3
    turned = [bank.crop(16, rng, turns=True) for _ in range(16)]
    assert any(np.ptp(crop, axis=1).max() == 0 for crop in turned)
    pixels = bank.crops(3, 16, rng, turns=False)
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels[:, :, :, 0], pixels[:, :, :, 9])


def test_the_loss_of_a_constant_logit_is_that_of_chance() -> None:
    masks = torch.zeros(2, 8, 8)
    masks[0, :2, :2] = 1
    # ln 2 for each pixel and for each crop; the four pixels of the defect weigh 1 + 20 / sqrt(4).
    weight = (2 * 64 + 4 * 10) / (2 * 64)
    expected = np.log(2) * (4 * weight + 0.3)
    assert float(loss(torch.zeros(2, 8, 8), masks)) == pytest.approx(expected, rel=1e-6)
    right = torch.where(masks > 0, 9.0, -9.0)
    assert float(loss(right, masks)) < 0.2 * expected


def test_half_of_the_crops_have_a_defect_and_masks_belong_to_them() -> None:
    bank = PhotoBank.of(photos(6), np.random.default_rng(0), least_side=32)
    config = HeadConfig(widths=(8, 8), crop=32, batch_size=40, harmless_chance=0.0)
    x, masks = draw_crops(bank, config, np.random.default_rng(0))
    assert x.shape == (40, 1, 32, 32)
    assert 8 <= int(masks.flatten(1).any(1).sum()) <= 26
    again, _ = draw_crops(bank, config, np.random.default_rng(0))
    assert torch.equal(x, again)


def test_a_head_learns_to_find_a_kind_of_defect() -> None:
    def square(photo: np.ndarray, donor: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        changed, region = photo.copy(), np.zeros(photo.shape[1:], bool)
        top, left = rng.integers(0, 24, 2)
        changed[:, top : top + 8, left : left + 8] += 0.6
        region[top : top + 8, left : left + 8] = True
        return changed, region

    bank = PhotoBank.of(photos(8), np.random.default_rng(0), least_side=32)
    model = make_model()
    seen: list[float] = []
    head = fit_head(model, bank, CONFIG, defects={"square": square}, progress=lambda share, loss: seen.append(loss))
    assert len(seen) == 80
    x = photos(1, side=48, seed=9)[0].x
    changed, region = square(x.numpy(), x.numpy(), np.random.default_rng(3))
    with torch.no_grad():
        logits = head(evidence(model, torch.from_numpy(changed)[None], CONFIG.sigmas))[0]
        normal = head(evidence(model, x[None], CONFIG.sigmas))[0]
    region = torch.from_numpy(region)
    assert float(logits[region].mean()) > float(logits[~region].mean()) + 2
    assert float(logits.max()) > float(normal.max()) + 1


def test_a_head_is_a_function_of_its_seed() -> None:
    bank = PhotoBank.of(photos(4), np.random.default_rng(0), least_side=32)
    config = HeadConfig(sigmas=(0.1,), widths=(8, 8), crop=32, batch_size=2, max_crops=6)
    first, second, other = (fit_head(make_model(), bank, config, seed=seed) for seed in (0, 0, 1))
    x = torch.randn(1, 2, 40, 33, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert first(x).shape == (1, 40, 33)
        assert torch.equal(first(x), second(x))
        assert not torch.equal(first(x), other(x))


def test_the_logit_of_a_place_near_the_border_is_as_free_as_one_in_the_middle() -> None:
    head = Head(1, (8, 8)).eval()
    x = torch.zeros(1, 1, 32, 32)
    with torch.no_grad():
        base = head(x)
        for row, column in ((0, 0), (0, 16), (31, 31), (16, 16)):
            changed = x.clone()
            changed[0, 0, row, column] = 5
            assert float((head(changed) - base).abs()[0, row, column]) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigmas": (0.0,)}, r"head.sigmas must be noise levels > 0, got \[0.0\]"),
        ({"crop": 100}, "head.crop must be a multiple of 32, got 100"),
        ({"batch_size": 0}, "head.batch_size must be >= 1, got 0"),
        ({"defect_share": 1.5}, r"head.defect_share must be within 0..1, got 1.5"),
        ({"widths": (8,)}, r"head.widths must be 2 to 7 numbers within 1..1024, got \[8\]"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HeadConfig(**change)  # type: ignore[arg-type]
