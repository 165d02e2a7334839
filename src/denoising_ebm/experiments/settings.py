"""How large a reproduction is: `tiny` to see that all of it runs, `small` for two cores, `full` as in the paper."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Literal

import yaml

from denoising_ebm.config import (
    Config,
    Drift,
    EnergyConfig,
    NetworkConfig,
    SamplerName,
    SamplingConfig,
    TrainingStage,
    from_dict,
    without_density,
)
from denoising_ebm.literals import Scale
from denoising_ebm.presets import preset
from denoising_ebm.samplers import METHODS

Variant = Literal["denoising", "contrastive", "score"]


@dataclass(frozen=True)
class Sizes:
    """Counts and budgets of a scale."""

    samples: int  #: Images drawn for a row of tables 1 and 2.
    ablation_samples: int  #: For a row of table 3 (1,000 in the paper).
    chain_samples: int  #: For a point of figure 5's curves.
    speed_samples: int  #: For a row of the speed table, one of which takes a thousand network evaluations an image.
    reference: int  #: Test images they are measured against, at most.
    seeds: int  #: Trainings of a row of table 3.
    ablation_budget: float  #: Share of the scale's budget that each of them gets.
    fit: int  #: Training images that the detector of table 4 is fitted on.
    scored: int  #: Images of each set of table 4.
    labelled: int  #: Labelled training images that the classifier of samples learns from.
    mala_steps: int  #: Noise levels of the Metropolis-adjusted sampler.
    chain_lengths: tuple[int, ...]  #: Noise levels T of figure 5's curves.
    heun_steps: tuple[int, ...]  #: Noise levels of Heun's method in the speed curve.
    ncsn_steps: int  #: Steps at each of the ten levels of NCSN's schedule (100 as published).
    train_images: int | None = None  #: Training images used, at most; None for all.


@cache
def sizes_of(scale: Scale) -> Sizes:
    """Return the counts and budgets of a scale, from `scales.yaml`."""
    source = resources.files("denoising_ebm").joinpath("experiments/scales.yaml").read_text(encoding="utf-8")
    return from_dict(Sizes, yaml.safe_load(source)[scale])


#: Noise ranges and numbers of levels of table 3, the paper's order.
ABLATIONS: dict[str, tuple[float, int]] = {
    "sigma from 3, S = 128": (3.0, 128),
    "sigma from 2, S = 128": (2.0, 128),
    "sigma from 1, S = 128": (1.0, 128),
    "sigma from 0.5, S = 128": (0.5, 128),
    "sigma from 1, S = 64": (1.0, 64),
    "sigma from 1, S = 256": (1.0, 256),
}


def base_config(scale: Scale, image_size: int, channels: int, minutes: float, seed: int) -> Config:
    """Return the configuration that all variants of a scale change.

    Args:
        scale: Which one.
        image_size: Height and width of the images.
        channels: 1 or 3.
        minutes: Of each training; 0 for the scale's own budget.
        seed: Of weights and draws.
    """
    name = {"tiny": "fashion-mnist", "small": "cifar10-small" if channels == 3 else "fashion-mnist", "full": "cifar10"}
    # The paper's tables are of its own energies.
    config = without_density(preset(name[scale]))
    network = replace(config.network, image_size=image_size, channels=channels)
    # Saved every ten minutes where it takes longer.
    training = replace(config.training, seed=seed, sample_minutes=0.0 if scale == "tiny" else 10.0)
    if scale == "tiny":
        network = NetworkConfig(
            image_size=image_size,
            channels=channels,
            widths=(16, 32, 32),
            attention=(),
            latent_dim=16,
            decoder_widths=(16, 32),
            embedding_dim=32,
        )
        training = replace(training, batch_size=64, max_images=2048, max_minutes=0.0, warmup_images=512, holdout=64)
        config = replace(config, sampling=with_steps(config.sampling, semantic=3, pixel=8))
    elif scale == "small":
        training = replace(training, max_images=10**9, max_minutes=10.0)
    if minutes:
        training = replace(training, max_images=10**9, max_minutes=minutes)
    return replace(config, network=network, training=training, stages=(TrainingStage("denoising"),))


def with_steps(sampling: SamplingConfig, *, semantic: int | None = None, pixel: int | None = None) -> SamplingConfig:
    """Return a sampler with other numbers of steps; None leaves one as it is."""
    stages = {"semantic": semantic, "pixel": pixel}
    changes = {
        name: replace(getattr(sampling, name), steps=steps) for name, steps in stages.items() if steps is not None
    }
    return replace(sampling, **changes)


def with_drift(sampling: SamplingConfig, drift: Drift) -> SamplingConfig:
    """Return a sampler with another drift in pixels."""
    return replace(sampling, pixel=replace(sampling.pixel, drift=drift))


def sampler_title(sampler: SamplerName, sampling: SamplingConfig) -> str:
    """Return what a sampler is called in tables and captions; `two-stage` is that of `sampling`."""
    if sampler == "two-stage":
        return f"{METHODS[sampling.pixel.method].title} from h(z)"
    return f"{METHODS[sampler].title} from noise"


def variant_config(base: Config, variant: Variant) -> Config:
    """Return the configuration of a training objective, at the budget of `base`."""
    if variant == "contrastive":
        # Maximum likelihood needs chains of the energy itself in training: the denoiser's drift is no gradient of it.
        stages = (TrainingStage("denoising", 0.6), TrainingStage("contrastive", 0.4))
        return replace(base, stages=stages, sampling=with_drift(base.sampling, "energy"))
    if variant == "score":
        return replace(
            base,
            network=replace(base.network, precondition="energy"),
            energy=EnergyConfig(inner_noise=False, denoiser="gradient"),
            training=replace(base.training, compile=False),
            stages=(TrainingStage("score"),),
            sampling=with_drift(base.sampling, "energy"),
        )
    return base


def ablation_config(base: Config, sigma_max: float, num_sigmas: int, seed: int, budget: float) -> Config:
    """Return the configuration of a row of table 3: the paper's grid of noise levels, from `sigma_max` down to 0.01.

    Args:
        base: The scale's configuration.
        sigma_max: Largest noise level.
        num_sigmas: Number of levels.
        seed: Of this training.
        budget: Share of the base's budget.
    """
    training, semantic, pixel = base.training, base.sampling.semantic, base.sampling.pixel
    return replace(
        base,
        noise=replace(base.noise, sigma_min=0.01, sigma_max=sigma_max, num_sigmas=num_sigmas, draw="grid"),
        sampling=replace(
            base.sampling,
            pixel=replace(pixel, sigma_max=min(sigma_max, pixel.sigma_max)),
            semantic=replace(semantic, sigma_max=min(sigma_max, semantic.sigma_max)),
        ),
        training=replace(
            training,
            seed=seed,
            max_minutes=budget * training.max_minutes,
            max_images=max(1, round(budget * training.max_images)),
            decoder_sigma_max=min(sigma_max, training.decoder_sigma_max),
        ),
    )
