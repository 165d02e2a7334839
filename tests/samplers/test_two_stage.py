from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from chains import BIASED, DATA, ERROR, NUM, SIGMA, STEP, TAU, V
from denoising_ebm.config import PixelSampler, SamplingConfig, SemanticChain
from denoising_ebm.energies import Energy, SemanticEnergy, TextureEnergy
from denoising_ebm.noise import geometric_sigmas
from denoising_ebm.samplers import (
    ChainState,
    annealed_langevin,
    consistent_annealed_sampling,
    two_stage,
)

SAMPLING = SamplingConfig(
    semantic=SemanticChain(steps=60, step_size=STEP, sigma_max=SIGMA, sigma_min=SIGMA),
    pixel=PixelSampler("annealed-langevin", steps=0, step_size=STEP, sigma_max=SIGMA, sigma_min=SIGMA),
)


def decode(z: Tensor) -> Tensor:
    return 2 * z.reshape(len(z), 1, 1, -1)


def test_two_stages_have_their_variances(generator: torch.Generator) -> None:
    z = torch.randn(NUM, 1, generator=generator, dtype=torch.float64)
    semantic, texture = Energy(DATA.energy), Energy(DATA.energy)
    first = two_stage(semantic, decode, texture, DATA.denoise, z, SAMPLING, generator=generator)
    assert float(first.latents.var()) == pytest.approx(BIASED, rel=4.5 * ERROR)
    assert torch.equal(first.semantic, 2 * first.latents[:, None, None])
    assert torch.equal(first.images, first.semantic)  # no step in pixels, and no denoising either

    config = replace(SAMPLING, semantic=replace(SAMPLING.semantic, steps=0), pixel=replace(SAMPLING.pixel, steps=60))
    second = two_stage(semantic, decode, texture, DATA.denoise, z, config, generator=generator)
    assert torch.equal(second.latents, z)
    a = TAU**2 / V
    assert float(second.images.var()) == pytest.approx(a**2 * BIASED, rel=4.5 * ERROR)
    config = replace(config, pixel=replace(config.pixel, final_denoise=False))
    raw = two_stage(semantic, decode, texture, DATA.denoise, z, config, generator=generator)
    assert float(raw.images.var()) == pytest.approx(BIASED, rel=4.5 * ERROR)


def test_two_stages_on_the_semantic_energy(generator: torch.Generator) -> None:
    """h(z) = 2 z, r = a x: U^s = (1-a)^2 4 z^2 / 2 sigma^2 + prior z^2 / 2, steps in units of sigma / 2."""
    a, prior = TAU**2 / V, 0.5
    semantic = SemanticEnergy(decode, DATA.denoise, inner_noise=False, prior=prior, jacobian_norm=2.0)
    v = 1 / (4 * (1 - a) ** 2 / SIGMA**2 + prior)
    h = STEP * (SIGMA / 2) ** 2
    z = torch.randn(NUM, 1, generator=generator, dtype=torch.float64)
    texture = TextureEnergy(DATA.denoise, inner_noise=False)
    sample = two_stage(semantic, decode, texture, DATA.denoise, z, SAMPLING, generator=generator)
    assert float(sample.latents.var()) == pytest.approx(v / (1 - h / (2 * v)), rel=4.5 * ERROR)


@pytest.mark.parametrize("noise_init", [False, True])
def test_two_stages_are_their_parts(noise_init: bool) -> None:
    config = SamplingConfig(
        semantic=SemanticChain(steps=5, sigma_max=1.0, sigma_min=0.2, temperature=0.7),
        pixel=PixelSampler(
            "consistent-annealed", steps=7, step_size=0.3, sigma_max=0.8, sigma_min=0.1, temperature=0.7
        ),
        noise_init=noise_init,
    )
    z = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    states: list[ChainState] = []
    energies = Energy(DATA.energy), Energy(DATA.energy)
    sample = two_stage(
        energies[0],
        decode,
        energies[1],
        DATA.denoise,
        z,
        config,
        generator=torch.Generator().manual_seed(1),
        callback=states.append,
    )
    generator = torch.Generator().manual_seed(1)
    options = {"temperature": 0.7, "generator": generator}
    latents = annealed_langevin(DATA.energy, z, geometric_sigmas(1.0, 0.2, 5), step_size=0.1, **options)  # type: ignore[arg-type]
    x = decode(latents)
    if noise_init:
        x = x + 0.8 * torch.randn(x.shape, generator=generator)
    levels = geometric_sigmas(0.8, 0.1, 7)
    x = consistent_annealed_sampling(DATA.energy, x, levels, step_size=0.3, **options)  # type: ignore[arg-type]
    assert torch.equal(sample.latents, latents)
    assert torch.equal(sample.semantic, decode(latents))
    assert torch.equal(sample.images, DATA.denoise(x, 0.1))
    assert [state.stage for state in states] == ["semantic"] * 5 + ["texture"] * 7
