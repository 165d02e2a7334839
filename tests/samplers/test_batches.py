"""What an image becomes depends on its own draws, not on the batch: to the bit where the energy's arithmetic does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from chains import DATA
from denoising_ebm import DenoisingEBM, to_uint8
from denoising_ebm.config import PixelMethod, PixelSampler, SamplingConfig, SemanticChain
from denoising_ebm.energies import Energy, SemanticEnergy, TextureEnergy, draw_noise
from denoising_ebm.samplers import METHODS, sample_pixels, two_stage, ula
from denoising_ebm.utils.seeds import ImageNoise

NUM = 12


def in_batches(draw: Callable[[ImageNoise], Tensor], size: int, seed: int = 3) -> Tensor:
    parts = [range(first, min(first + size, NUM)) for first in range(0, NUM, size)]
    return torch.cat([draw(ImageNoise.of(seed, part)) for part in parts])


@pytest.mark.parametrize("inner_noise", [False, True])
@pytest.mark.parametrize("name", list(METHODS))
def test_methods_draw_images_one_by_one(name: PixelMethod, inner_noise: bool) -> None:
    energy = TextureEnergy(DATA.denoise, inner_noise=inner_noise)
    sampler = PixelSampler(name, steps=8, sigma_max=2.0, sigma_min=0.05)

    def draw(noise: ImageNoise) -> Tensor:
        x = 2.0 * draw_noise((len(noise), 1, 4, 4), noise, torch.zeros(()))
        return sample_pixels(energy, x, sampler, generator=noise)

    whole = in_batches(draw, NUM)
    assert len(whole.flatten(1).unique(dim=0)) == NUM
    for size in (1, 4, 5, 6):
        assert torch.equal(in_batches(draw, size), whole), size
    assert not torch.equal(in_batches(draw, NUM, seed=4), whole)


def test_mala_decides_for_each_chain() -> None:
    """Steps so long that many are rejected: the draws that decide are each chain's own too."""
    accepted: list[float] = []
    sampler = PixelSampler("mala", steps=12, sigma_max=1.0, sigma_min=0.999, step_size=2.2)

    def draw(noise: ImageNoise) -> Tensor:
        x = draw_noise((len(noise), 4), noise, torch.zeros(()))
        see = accepted.append
        return sample_pixels(Energy(DATA.energy), x, sampler, generator=noise, callback=lambda s: see(s.acceptance))  # type: ignore[arg-type]

    whole = in_batches(draw, NUM)
    assert 0.05 < sum(accepted) / len(accepted) < 0.95
    for size in (1, 5):
        assert torch.equal(in_batches(draw, size), whole)


def test_langevin_at_one_level() -> None:
    def draw(noise: ImageNoise) -> Tensor:
        x = draw_noise((len(noise), 3), noise, torch.zeros(()))
        return ula(DATA.energy, x, 1.0, step_size=0.3, num_steps=5, generator=noise)

    assert torch.equal(in_batches(draw, 5), in_batches(draw, NUM))


@pytest.mark.parametrize("inner_noise", [False, True])
def test_both_stages(inner_noise: bool) -> None:
    pixel = PixelSampler("ancestral", steps=6, sigma_max=2.0)
    config = SamplingConfig(semantic=SemanticChain(steps=4), pixel=pixel, noise_init=True)

    def decode(z: Tensor) -> Tensor:
        return z.repeat(1, 4).unflatten(1, (1, 4, 4))

    semantic = SemanticEnergy(decode, DATA.denoise, inner_noise=inner_noise, prior=1.0)
    texture = TextureEnergy(DATA.denoise, inner_noise=inner_noise)

    def draw(noise: ImageNoise) -> Tensor:
        z = draw_noise((len(noise), 4), noise, torch.zeros(()))
        sample = two_stage(semantic, decode, texture, DATA.denoise, z, config, generator=noise)
        return torch.cat([sample.latents, sample.semantic.flatten(1), sample.images.flatten(1)], dim=1)

    whole = in_batches(draw, NUM)
    for size in (1, 4, 5, 6):
        assert torch.equal(in_batches(draw, size), whole), size
    assert not torch.equal(in_batches(draw, NUM, seed=4), whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10-small"])
def test_six_images_are_the_first_six_of_twelve(name: str) -> None:
    """Of trained networks, whose sums run in another order in other batches: to 1e-4, a hundredth of a level of 255."""
    model = DenoisingEBM.from_pretrained(name)
    twelve = model.sample(12, seed=1, steps=6)
    for size in (1, 4, 6):
        six = model.sample(6, seed=1, steps=6, batch_size=size)
        for kind in ("images", "semantic", "latents"):
            torch.testing.assert_close(getattr(six, kind), getattr(twelve, kind)[:6], atol=1e-4, rtol=0)
        assert int((to_uint8(six.images).int() - to_uint8(twelve.images[:6]).int()).abs().max()) <= 1


@pytest.mark.parametrize("sampler", list(METHODS))
def test_images_of_a_trained_model_by_every_method(sampler: PixelMethod) -> None:
    model = DenoisingEBM.from_pretrained("fashion-mnist")
    five = model.sample(5, seed=1, sampler=sampler, steps=4).images
    three = model.sample(3, seed=1, sampler=sampler, steps=4, start=1).images
    torch.testing.assert_close(three, five[1:4], atol=1e-4, rtol=0)
