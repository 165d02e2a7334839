from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from denoising_ebm import DenoisingEBM, to_float
from denoising_ebm.config import TrainingStage
from denoising_ebm.networks.whitening import Whitening
from denoising_ebm.training.batches import draw_batch
from denoising_ebm.training.objectives import Batch
from denoising_ebm.utils.seeds import hashed_generator
from runs import train
from support import random_pixels, randomise, tiny_config


def joined(batches: list[Batch]) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.cat([getattr(b, name) for b in batches]) for name in ("x0", "sigma", "noise"))  # type: ignore


def test_slices_make_up_the_batch() -> None:
    pixels, config = random_pixels(50), tiny_config(batch_size=12)
    whole = draw_batch(pixels, config, 7, 3)
    assert len(whole) == 1 and whole[0].step == 3
    slices = [draw_batch(pixels, config, 7, 3, rank=rank, world_size=3) for rank in range(3)]
    micro = replace(config, training=replace(config.training, micro_batch_size=5))
    for parts in ([batch for part in slices for batch in part], draw_batch(pixels, micro, 7, 3)):
        for a, b in zip(joined(whole), joined(parts), strict=True):
            assert torch.equal(a, b)
    assert [len(batch.x0) for batch in draw_batch(pixels, micro, 7, 3)] == [5, 5, 2]
    draws = [torch.rand(1, generator=s[0].generator).item() for s in slices]
    assert len(set(draws)) == 3  # every process has inner noise of its own
    with pytest.raises(ValueError, match=r"training\.batch_size must be divisible .* \(5\), got 12"):
        draw_batch(pixels, config, 0, 0, world_size=5)


def test_steps_and_seeds_decide_a_batch() -> None:
    pixels, config = random_pixels(50), tiny_config()
    same, again, later = (draw_batch(pixels, config, step, 0)[0] for step in (7, 7, 8))
    assert torch.equal(same.noise, again.noise) and not torch.equal(same.noise, later.noise)
    other = draw_batch(pixels, replace(config, training=replace(config.training, seed=1)), 7, 0)[0]
    assert not torch.equal(same.noise, other.noise)
    seeds = {
        hashed_generator(torch.device("cpu"), seed, step).initial_seed() for seed in range(30) for step in range(30)
    }
    assert len(seeds) == 900


@pytest.mark.parametrize("flip", [True, False])
def test_half_of_the_images_are_flipped(flip: bool) -> None:
    pixels = random_pixels(1)
    num = 4000
    batch = draw_batch(pixels, tiny_config(batch_size=num, flip=flip), 0, 0)[0]
    image = to_float(pixels[0])
    flipped = (batch.x0 == image.flip(2)).flatten(1).all(1)
    straight = (batch.x0 == image).flatten(1).all(1)
    assert bool((flipped ^ straight).all())
    expected = num / 2 if flip else 0
    assert abs(int(flipped.sum()) - expected) <= (5 * math.sqrt(num / 4) if flip else 0)


def test_every_image_is_drawn_evenly() -> None:
    pixels = torch.arange(8, dtype=torch.uint8).reshape(8, 1, 1, 1).expand(8, 1, 16, 16)
    batch = draw_batch(pixels, tiny_config(batch_size=8000), 0, 0)[0]
    counts = torch.bincount(((batch.x0[:, 0, 0, 0] + 1) * 127.5).round().long(), minlength=8)
    assert bool(((counts - 1000).abs() < 5 * math.sqrt(8000 / 8 * 7 / 8)).all())
    assert float(batch.noise.var()) == pytest.approx(1, rel=5 * math.sqrt(2 / batch.noise.numel()))
    torch.testing.assert_close(batch.noisy, batch.x0 + batch.sigma[:, None, None, None] * batch.noise)


@pytest.mark.parametrize("objective", ["denoising", "score"])
def test_micro_batches_have_the_gradient_of_one(
    objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to the code statistics, which move with every forward pass and are held here."""
    monkeypatch.setattr(Whitening, "update", lambda self, codes, keep=None: None)
    gradients: list[Tensor] = []

    def keep(optimizer: torch.optim.Optimizer, *rest: object) -> None:
        gradients.append(torch.cat([p.grad.flatten() for p in optimizer.param_groups[0]["params"]]))

    handle = register_optimizer_step_pre_hook(keep)
    for size in (0, 3, 1):
        config = tiny_config(TrainingStage(objective), max_images=8, micro_batch_size=size, clip_norm=0.0)  # type: ignore
        initial = DenoisingEBM(config)
        randomise(initial)
        train(random_pixels(20), config, tmp_path / str(size), initial=initial)
    handle.remove()
    one, *others = gradients
    assert len(others) == 2
    for other in others:
        assert float((other - one).norm() / one.norm()) < 1e-6
