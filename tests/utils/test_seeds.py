from __future__ import annotations

import math

import pytest
import torch

from denoising_ebm.energies import draw_noise, draw_uniform
from denoising_ebm.utils.seeds import ImageNoise


def test_draws_of_an_image_depend_on_seed_and_index_alone() -> None:
    like = torch.zeros((), dtype=torch.float64)
    whole = ImageNoise.of(3, range(12))
    parts = [ImageNoise.of(3, images) for images in (range(5), [5], range(6, 12))]
    for _ in range(3):  # streams go on in step
        expected = draw_noise((12, 2, 5), whole, like)
        assert torch.equal(torch.cat([draw_noise((len(part), 2, 5), part, like) for part in parts]), expected)
        expected = draw_uniform((12,), whole, like)
        assert torch.equal(torch.cat([draw_uniform((len(part),), part, like) for part in parts]), expected)
    chains = ImageNoise.of(3, range(4), "restore", repeats=3)
    assert len(chains) == 12
    drawn = draw_noise((12, 7), chains, like).unflatten(0, (3, 4))
    alone = draw_noise((3, 7), ImageNoise.of(3, [2], "restore", repeats=3), like)
    assert torch.equal(drawn[:, 2], alone)


def test_streams_are_unrelated() -> None:
    """Of neighbouring seeds, images, chains and purposes: all draws differ, and none is correlated with another."""
    num, like = 2000, torch.zeros(())
    sources = [
        *(ImageNoise.of(seed, range(6)) for seed in range(4)),
        ImageNoise.of(0, range(6), "degrade"),
        ImageNoise.of(0, range(3), "restore", repeats=2),
    ]
    draws = torch.cat([draw_noise((6, num), source, like) for source in sources])
    correlations = torch.corrcoef(draws).fill_diagonal_(0)
    assert float(correlations.abs().max()) < 5 / math.sqrt(num)
    assert abs(float(draws.mean())) < 4.5 / math.sqrt(draws.numel())
    assert float(draws.var()) == pytest.approx(1, rel=4.5 * math.sqrt(2 / draws.numel()))


def test_streams_stay_what_they_are() -> None:
    """Images of a seed must be the same in the next version too."""
    noise = draw_noise((2, 3), ImageNoise.of(7, (0, 1000)), torch.zeros(()))
    expected = torch.tensor([[-1.016059, -2.178708, 0.968881], [-1.071761, 1.604546, -0.606023]])
    torch.testing.assert_close(noise, expected, atol=1e-6, rtol=0)


def test_a_source_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="random numbers for 2 images are asked for 3"):
        draw_noise((3, 4), ImageNoise.of(0, range(2)), torch.zeros(()))
