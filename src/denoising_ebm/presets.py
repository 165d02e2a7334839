"""The presets of `debm train`: the paper's settings beside ones for a CPU and for one GPU."""

from __future__ import annotations

from dataclasses import replace

from denoising_ebm.config import (
    Config,
    ContrastiveConfig,
    EnergyConfig,
    NetworkConfig,
    NoiseConfig,
    PixelSampler,
    SamplingConfig,
    SemanticChain,
    TrainingConfig,
    TrainingStage,
)

# -- the paper (section 5): S = 128 levels from 1 to 0.01, L = 3, eta_1 = 0.1, eta_2 = 0.01, Adam 5e-5, flips p = 0.5.
# Widths, depth, latent size, batch and length are not in its text; those of `cifar10` below are used. Its step sizes are
# kept as numbers but read as dimensionless ones (step = eta sigma^2): with 1 / 2 sigma^2 in the energy, a fixed step of 0.01
# diverges at the smaller levels.

_PAPER_NETWORK = NetworkConfig(
    widths=(80, 160, 160, 160),
    blocks=2,
    attention=(16,),
    heads=4,
    latent_dim=128,
    decoder_widths=(64, 128, 160, 160),
    embedding_dim=256,
)
_PAPER = Config(
    network=_PAPER_NETWORK,
    noise=NoiseConfig(sigma_min=0.01, sigma_max=1.0, num_sigmas=128, draw="grid", weighting="uniform"),
    energy=EnergyConfig(inner_noise=True, denoiser="output"),
    sampling=SamplingConfig(
        semantic=SemanticChain(steps=35, step_size=0.1),
        pixel=PixelSampler("annealed-langevin", steps=100, step_size=0.01),
    ),
    contrastive=ContrastiveConfig(reconstruction_steps=3, semantic_steps=20, texture_steps=90),
    training=TrainingConfig(learning_rate=5e-5, flip=True, max_images=10_000_000),
    stages=(TrainingStage("contrastive"),),
)

# -- ours: a wider range of noise, EDM's draw and weights, and the steps that go with them.

_NOISE = NoiseConfig(sigma_min=0.01, sigma_max=10.0, num_sigmas=128, draw="lognormal", weighting="edm")
_SAMPLING = SamplingConfig(
    semantic=SemanticChain(steps=5, step_size=0.05, sigma_max=1.0, sigma_min=0.3, prior=1.0),
    pixel=PixelSampler("dpmpp-2m-sde", steps=16, sigma_max=4.0, schedule="karras", drift="denoiser"),
    noise_init=True,
)
_CONTRASTIVE = ContrastiveConfig(
    semantic_steps=5,
    texture_steps=15,
    positive_samples="noisy",
    chain_batch=32,
    weight=0.1,
    regularisation=0.01,
)
_TRAINING = TrainingConfig(
    # Small, since on a CPU more steps beat more images: in runs of minutes a lower error than larger batches
    # (benchmarks/RESULTS.md).
    batch_size=16,
    ema_decay=0.9995,
    log_every=100,
    learning_rate=1e-3,
    warmup_images=20_000,
    cooldown=0.3,
    decoder_loss_trains_encoder=True,
)
PRESETS: dict[str, Config] = {
    "fashion-mnist": Config(
        network=NetworkConfig(channels=1),
        noise=_NOISE,
        energy=EnergyConfig(inner_noise=False),
        sampling=_SAMPLING,
        contrastive=_CONTRASTIVE,
        training=replace(_TRAINING, max_minutes=7.0, max_images=2_000_000, sample_minutes=2.0),
        stages=(TrainingStage("denoising"),),
    ),
    "cifar10-small": Config(
        # Layers of h at full size and attention cost more images than they gave in equal minutes on a CPU
        # (benchmarks/RESULTS.md); wider than the best network there, for longer runs.
        network=NetworkConfig(widths=(48, 64, 128, 128), attention=(), decoder_widths=(48, 64, 64)),
        noise=_NOISE,
        energy=EnergyConfig(inner_noise=False),
        sampling=_SAMPLING,
        contrastive=_CONTRASTIVE,
        training=replace(_TRAINING, max_images=4_000_000),
        stages=(TrainingStage("denoising"),),
    ),
    "cifar10": Config(
        network=_PAPER_NETWORK,
        noise=_NOISE,
        energy=EnergyConfig(inner_noise=False),
        sampling=_SAMPLING,
        contrastive=replace(_CONTRASTIVE, semantic_steps=20, texture_steps=20, chain_batch=128),
        training=replace(_TRAINING, batch_size=512, log_every=50, warmup_images=100_000, compile=True),
        stages=(TrainingStage("denoising"),),
    ),
    "cifar10-paper": _PAPER,
    "svhn-paper": _PAPER,
    "celeba64-paper": replace(
        _PAPER,
        network=replace(
            _PAPER_NETWORK, image_size=64, widths=(64, 128, 160, 160, 160), decoder_widths=(32, 64, 128, 160, 160)
        ),
        sampling=replace(_PAPER.sampling, semantic=replace(_PAPER.sampling.semantic, steps=40)),
        contrastive=replace(_PAPER.contrastive, semantic_steps=40, texture_steps=100),
    ),
}


def preset(name: str) -> Config:
    """Return a preset.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: use one of {', '.join(PRESETS)}")
    return PRESETS[name]
