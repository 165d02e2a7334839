"""What a run is, as frozen dataclasses: checked on construction, read from and written to YAML and JSON.

`from_dict` checks names and types, and each dataclass its ranges. Their ends are far beyond any use: they keep a file of a
stranger's from asking for more memory or time than there is.

The defaults of every field are the paper's numbers where it gives one; the files in `presets/` say where they differ.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from denoising_ebm.utils.parsing import shown, shown_name

Precondition = Literal["edm", "energy", "none"]
Denoiser = Literal["output", "gradient"]
ObjectiveName = Literal["denoising", "contrastive", "score", "energy"]
Weighting = Literal["edm", "energy", "uniform"]
SigmaDraw = Literal["grid", "lognormal"]
PositiveSamples = Literal["clean", "noisy"]
ChainKind = Literal["short", "persistent"]
Schedule = Literal["geometric", "karras"]
Drift = Literal["energy", "denoiser", "density"]
DensityTarget = Literal["denoiser", "data"]
ContrastedEnergy = Literal["texture", "density"]
PixelMethod = Literal["annealed-langevin", "consistent-annealed", "ancestral", "dpmpp-2m-sde", "heun", "mala"]
#: The model's own two-stage sampler, or a method from noise.
SamplerName = Literal["two-stage", PixelMethod]

#: Most entries of any list.
MAX_ENTRIES = 1000
#: Most steps of a chain. The paper takes 135, NCSN a thousand; ten thousand are minutes of waiting for a single image.
MAX_STEPS = 10_000
#: Noise levels lie within, for images in [-1, 1]: beyond, squares leave what float32 holds.
MIN_SIGMA, MAX_SIGMA = 1e-8, 1e6
#: Weights, factors and step sizes are at most this.
MAX_FACTOR = 1e6

T = TypeVar("T")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _require_most(values: Any, where: str, most: float, *names: str) -> None:
    """Refuse fields, numbers or lists of them, that are above `most`."""
    for name in names:
        value = getattr(values, name)
        largest = max(value, default=0) if isinstance(value, tuple) else value
        _require(largest is None or largest <= most, f"{where}.{name} must be <= {most:,}, got {shown(value)}")


def _require_chain_within(chain: Any, where: str, *factors: str) -> None:
    """Refuse noise levels and numbers of steps that no chain could follow to its end."""
    _require(chain.sigma_min >= MIN_SIGMA, f"{where}.sigma_min must be >= {MIN_SIGMA:g}, got {chain.sigma_min}")
    _require_most(chain, where, MAX_STEPS, "steps")
    _require_most(chain, where, MAX_SIGMA, "sigma_max")
    _require_most(chain, where, MAX_FACTOR, *factors)


def _require_falling(sigma_max: float, sigma_min: float, where: str) -> None:
    _require(sigma_max >= sigma_min, f"{where}.sigma_max must be >= {where}.sigma_min ({sigma_min}), got {sigma_max}")


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of the networks f_alpha, g_beta (the U-Net) and h_gamma (the semantic decoder).

    Attributes:
        image_size: Height and width in pixels; divisible by patch 2^(len(widths) - 1).
        channels: 1 (gray), 3 (RGB), or up to 16 bands of photos.
        any_size: The U-Net takes images of any size, such as photos when trained on crops of `image_size`: features are
            normalised at every place by themselves, and the code is a mean over a window of `image_size` around it.
        patch: Side in pixels of the squares that the U-Net takes as one place (pixel unshuffle), a power of 2: with 2 its
            largest resolution has a quarter of the places, and costs a quarter.
        widths: Channels of the U-Net per resolution, full size first.
        blocks: Residual blocks per resolution and direction.
        attention: Resolutions in pixels that get self-attention.
        heads: Attention heads.
        latent_dim: Dimension of the semantic code z.
        decoder_widths: Channels of h_gamma per resolution, largest first. With fewer entries than `widths` it has no
            layers at the largest resolutions; its last layer makes squares of pixels.
        decoder_blocks: Residual blocks of h_gamma per resolution.
        embedding_dim: Width of the noise-level embedding.
        precondition: How the raw U-Net output becomes r(x, sigma).
        sigma_data: Standard deviation of the pixels in [-1, 1], used by the preconditioning.
    """

    image_size: int = 32
    channels: int = 3
    any_size: bool = False
    patch: int = 1
    widths: tuple[int, ...] = (32, 64, 96, 96)
    blocks: int = 1
    attention: tuple[int, ...] = (8,)
    heads: int = 2
    latent_dim: int = 64
    decoder_widths: tuple[int, ...] = (24, 48, 64, 64)
    decoder_blocks: int = 1
    embedding_dim: int = 128
    precondition: Precondition = "edm"
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        _require(1 <= self.channels <= 16, f"network.channels must be within 1..16, got {self.channels}")
        _require(self.patch in (1, 2, 4, 8), f"network.patch must be 1, 2, 4 or 8, got {self.patch}")
        _require(
            not (self.any_size and self.attention),
            f"network.attention must be empty with network.any_size, got {shown(list(self.attention))}",
        )
        _require(16 <= self.image_size <= 256, f"network.image_size must be within 16..256, got {self.image_size}")
        _require(2 <= len(self.widths) <= 9, f"network.widths needs 2 to 9 resolutions, got {shown(self.widths)}")
        _require(
            self.image_size % self.stride == 0,
            f"network.image_size must be divisible by {self.stride} with {len(self.widths)} widths"
            + (f" and patches of {self.patch}" if self.patch > 1 else "")
            + f", got {self.image_size}",
        )
        _require(
            1 <= len(self.decoder_widths) <= len(self.widths),
            f"network.decoder_widths must have 1 to {len(self.widths)} entries, as network.widths has, "
            f"got {len(self.decoder_widths)}",
        )
        for name in ("widths", "decoder_widths"):
            values = getattr(self, name)
            _require(
                all(w > 0 and w % 8 == 0 for w in values), f"network.{name} must be multiples of 8, got {shown(values)}"
            )
        sizes = self.resolutions
        _require(
            set(self.attention) <= set(sizes),
            f"network.attention must be among {sizes}, got {shown(list(self.attention))}",
        )
        for name in ("blocks", "decoder_blocks", "latent_dim", "embedding_dim", "heads"):
            _require(getattr(self, name) >= 1, f"network.{name} must be >= 1, got {getattr(self, name)}")
        for size, width in zip(sizes, self.widths, strict=True):
            _require(
                size not in self.attention or width % self.heads == 0,
                f"network.heads must divide the width {width} at {size} pixels, got {self.heads}",
            )
        _require(self.sigma_data > 0, f"network.sigma_data must be > 0, got {self.sigma_data}")
        _require_most(self, "network", MAX_SIGMA, "sigma_data")
        _require_most(self, "network", 4096, "widths", "decoder_widths", "latent_dim", "embedding_dim", "heads")
        _require_most(self, "network", 32, "blocks", "decoder_blocks")

    @property
    def stride(self) -> int:
        """Pixels a side that the U-Net's smallest resolution takes as one place."""
        return int(self.patch * 2 ** (len(self.widths) - 1))

    @property
    def resolutions(self) -> list[int]:
        """Places a side of images of `image_size` at each resolution of the U-Net, largest first."""
        return [self.image_size // self.patch // 2**i for i in range(len(self.widths))]


@dataclass(frozen=True)
class NoiseConfig:
    """The noise levels sigma and how training draws them (data in [-1, 1]).

    Attributes:
        sigma_min: Smallest level.
        sigma_max: Largest level.
        num_sigmas: S, the size of the geometric grid.
        draw: Training draw: uniform over the grid (paper), or clipped lognormal (EDM).
        p_mean: Mean of ln sigma in the lognormal draw.
        p_std: Standard deviation of ln sigma in the lognormal draw.
        weighting: Weight of the denoising loss: 1 (eq. 1), 1/(2 sigma^2), or EDM's 1/c_out^2.
    """

    sigma_min: float = 0.01
    sigma_max: float = 1.0
    num_sigmas: int = 128
    draw: SigmaDraw = "grid"
    p_mean: float = -1.2
    p_std: float = 1.2
    weighting: Weighting = "uniform"

    def __post_init__(self) -> None:
        _require(self.sigma_min > 0, f"noise.sigma_min must be > 0, got {self.sigma_min}")
        _require(
            self.sigma_max > self.sigma_min,
            f"noise.sigma_max must be > noise.sigma_min ({self.sigma_min}), got {self.sigma_max}",
        )
        _require(self.num_sigmas >= 2, f"noise.num_sigmas must be >= 2, got {self.num_sigmas}")
        _require(self.p_std > 0, f"noise.p_std must be > 0, got {self.p_std}")
        _require(self.sigma_min >= MIN_SIGMA, f"noise.sigma_min must be >= {MIN_SIGMA:g}, got {self.sigma_min}")
        _require(abs(self.p_mean) <= 100, f"noise.p_mean must be within -100..100, got {self.p_mean}")
        _require_most(self, "noise", MAX_SIGMA, "sigma_max")
        _require_most(self, "noise", 100_000, "num_sigmas")
        _require_most(self, "noise", 100, "p_std")


@dataclass(frozen=True)
class EnergyConfig:
    """Which function of the network is the energy, and which one the denoiser.

    Attributes:
        inner_noise: Eq. 7's x~ = x + eps inside the energy; without it U(x) = |x - r(x)|^2 / 2 sigma^2.
        denoiser: D = r (denoising training) or D = x - sigma^2 grad U (`score` training).
        density: Whether the model has a density network beside r: a scalar energy that estimates -log q_sigma(x), fitted in
            an `energy` stage, whose gradient draws images and which gives log-likelihoods.
        density_target: What its denoiser x - sigma^2 grad U is fitted to: the output of the trained denoiser, without noise
            in the target (Thornton et al., 2025), from whose weights it starts; or the clean images (denoising score
            matching from scratch).
    """

    inner_noise: bool = True
    denoiser: Denoiser = "output"
    density: bool = False
    density_target: DensityTarget = "denoiser"


@dataclass(frozen=True)
class SemanticChain:
    """Stage one of sampling: annealed Langevin on the semantic energy, in the latent space (eq. 15).

    Attributes:
        steps: K; 0 leaves z at its draw of N(0, I).
        step_size: eta_1, dimensionless: a step is eta_1 times the squared noise scale.
        sigma_max: First noise level.
        sigma_min: Last noise level.
        prior: Weight of |z|^2 / 2 beside the semantic energy; 0 is the paper's.
        temperature: Factor on the noise variance.
    """

    steps: int = 35
    step_size: float = 0.1
    sigma_max: float = 1.0
    sigma_min: float = 0.1
    prior: float = 0.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        where = "sampling.semantic"
        for name in ("steps", "prior", "temperature"):
            _require(getattr(self, name) >= 0, f"{where}.{name} must be >= 0, got {getattr(self, name)}")
        for name in ("step_size", "sigma_min"):
            _require(getattr(self, name) > 0, f"{where}.{name} must be > 0, got {getattr(self, name)}")
        _require_falling(self.sigma_max, self.sigma_min, where)
        _require_chain_within(self, where, "step_size", "prior", "temperature")


@dataclass(frozen=True)
class PixelSampler:
    """Stage two of sampling, or all of it: a published sampler in pixels and its settings (`denoising_ebm.samplers`).

    Attributes:
        method: annealed-langevin (eq. 16; Song & Ermon, 2019), consistent-annealed (Jolicoeur-Martineau et al., 2021),
            ancestral (Song et al., 2021), dpmpp-2m-sde (Lu et al., 2022), heun (Karras et al., 2022) or mala
            (Roberts & Tweedie, 1996).
        steps: T, noise levels visited; 0 leaves the start as it is.
        sigma_max: First noise level.
        sigma_min: Last noise level.
        schedule: Between them: a geometric sequence (paper), or EDM's (Karras et al., 2022, eq. 5).
        step_size: eta_2 of annealed-langevin, consistent-annealed and mala, dimensionless: a step is eta_2 sigma^2; None
            for the method's own. The other methods take the steps that the noise levels say.
        drift: density: the exact gradient of the density network's energy, three network evaluations; energy: that of the
            texture energy (eq. 21), three evaluations; denoiser: (x - D) / sigma^2, the score of a denoiser, one evaluation
            and no gradient of any function.
        temperature: Factor on the noise variance; in diffusion samplers the square of `s_noise`.
        low_temperature: Further factor in steps that end below low_temperature_sigma. A model of few minutes gets detail
            wrong, and is better off with less of it; `debm tune` measures how much.
        low_temperature_sigma: Noise level below which the low temperature holds.
        final_denoise: One denoising (Tweedie) step at the end.
    """

    method: PixelMethod = "annealed-langevin"
    steps: int = 100
    sigma_max: float = 1.0
    sigma_min: float = 0.01
    schedule: Schedule = "geometric"
    step_size: float | None = None
    drift: Drift = "energy"
    temperature: float = 1.0
    low_temperature: float = 1.0
    low_temperature_sigma: float = 0.25
    final_denoise: bool = True

    def __post_init__(self) -> None:
        where = "sampling.pixel"
        for name in ("steps", "temperature", "low_temperature", "low_temperature_sigma"):
            _require(getattr(self, name) >= 0, f"{where}.{name} must be >= 0, got {getattr(self, name)}")
        _require(self.sigma_min > 0, f"{where}.sigma_min must be > 0, got {self.sigma_min}")
        _require_falling(self.sigma_max, self.sigma_min, where)
        _require(
            self.step_size is None or self.step_size > 0, f"{where}.step_size must be > 0 or null, got {self.step_size}"
        )
        _require_chain_within(self, where, "step_size", "temperature", "low_temperature", "low_temperature_sigma")
        with_step = ("annealed-langevin", "consistent-annealed", "mala")
        _require(
            self.step_size is None or self.method in with_step,
            f"{where}.step_size must be null with method {self.method}, whose steps follow the noise levels, "
            f"got {self.step_size}",
        )
        _require(
            self.method != "mala" or self.drift != "denoiser",
            f"{where}.drift must be density or energy with method mala, which needs the exact gradient, got {self.drift}",
        )


@dataclass(frozen=True)
class SamplingConfig:
    """Two-stage sampling (eq. 15, 16): a chain in the latent space, then a sampler in pixels that starts at h(z).

    Attributes:
        semantic: Stage one.
        pixel: Stage two.
        noise_init: Start stage two at h(z) + sigma noise, as SDEdit (Meng et al., 2022) does from an image, instead of h(z).
    """

    semantic: SemanticChain = field(default_factory=SemanticChain)
    pixel: PixelSampler = field(default_factory=PixelSampler)
    noise_init: bool = False


@dataclass(frozen=True)
class ContrastiveConfig:
    """Algorithm 1, lines 7-18: the chains in both spaces and the contrastive updates.

    Attributes:
        energy: Which energy is contrasted in pixels: that of eq. 7, as in the paper, or that of the density network, which
            is then the only one that is trained (the L steps are those of its `energy` objective).
        reconstruction_steps: L, denoising steps before each contrastive one.
        semantic_steps: K in training.
        texture_steps: T in training.
        positive_samples: Contrast chain ends with x (paper) or with x + sigma noise.
        chains: Chains restarted every round (paper), or kept in a replay buffer.
        chain_batch: Chains per round, over all ranks, at most the batch size, which 0 means.
        buffer_size: Persistent chains kept, per rank.
        restart_rate: Fraction of persistent chains restarted from N(0, I) each round.
        weight: Factor on both contrastive losses (energies are per dimension there).
        regularisation: Factor on the squared energies per dimension, which keeps them near zero.
        gap_bound: Energy gap per dimension at which the stage counts as diverged.
    """

    energy: ContrastedEnergy = "texture"
    reconstruction_steps: int = 3
    semantic_steps: int = 20
    texture_steps: int = 90
    positive_samples: PositiveSamples = "clean"
    chains: ChainKind = "short"
    chain_batch: int = 0
    buffer_size: int = 1024
    restart_rate: float = 0.05
    weight: float = 1.0
    regularisation: float = 0.0
    gap_bound: float = 100.0

    def __post_init__(self) -> None:
        for name in ("reconstruction_steps", "semantic_steps", "texture_steps", "chain_batch", "weight"):
            _require(getattr(self, name) >= 0, f"contrastive.{name} must be >= 0, got {getattr(self, name)}")
        _require(self.regularisation >= 0, f"contrastive.regularisation must be >= 0, got {self.regularisation}")
        _require(self.buffer_size >= 1, f"contrastive.buffer_size must be >= 1, got {self.buffer_size}")
        _require(0 <= self.restart_rate <= 1, f"contrastive.restart_rate must be within 0..1, got {self.restart_rate}")
        _require(self.gap_bound > 0, f"contrastive.gap_bound must be > 0, got {self.gap_bound}")
        _require_most(self, "contrastive", MAX_STEPS, "reconstruction_steps", "semantic_steps", "texture_steps")
        _require_most(self, "contrastive", 2**20, "chain_batch")
        _require_most(self, "contrastive", 10**9, "buffer_size", "gap_bound")
        _require_most(self, "contrastive", MAX_FACTOR, "weight", "regularisation")


@dataclass(frozen=True)
class TrainingStage:
    """One entry of `stages`: an objective and the fraction of the run's budget it gets.

    Attributes:
        objective: denoising (eq. 1, 13), contrastive (Algorithm 1), score, or energy (the density network).
        fraction: Of the budget; the fractions of a run are normalised to sum to one.
        learning_rate: Of this stage, which then has a warm-up and a cooldown of its own; null for
            `training.learning_rate`, with one warm-up and one cooldown for all neighbouring stages without their own.
    """

    objective: ObjectiveName = "denoising"
    fraction: float = 1.0
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        _require(self.fraction > 0, f"stages.fraction must be > 0, got {self.fraction}")
        _require(
            self.learning_rate is None or self.learning_rate > 0,
            f"stages.learning_rate must be > 0 or null, got {self.learning_rate}",
        )
        _require_most(self, "stages", MAX_FACTOR, "fraction", "learning_rate")


@dataclass(frozen=True)
class TrainingConfig:
    """The optimisation: batch, Adam, averages, budget and logging intervals.

    Attributes:
        batch_size: Images per optimizer step over all ranks.
        micro_batch_size: Images per forward pass on a rank; 0 means no accumulation.
        learning_rate: Adam's.
        betas: Adam's.
        warmup_images: Linear warm-up of the learning rate, which ends by a twentieth of the budget.
        cooldown: Fraction of the budget over which the learning rate falls linearly to zero at the end.
        ema_decay: Decay per step of the averaged weights, reached after a warm-up.
        clip_norm: Largest gradient norm; 0 turns clipping off.
        flip: Horizontal flips with p = 0.5.
        decoder_weight: Factor on L_Dec (eq. 13).
        decoder_loss_trains_encoder: Let L_Dec train f_alpha too (Algorithm 1 trains h_gamma alone by it).
        decoder_sigma_max: L_Dec and the code statistics use images of at most this noise level.
        max_images: Budget in training images.
        max_minutes: Budget in minutes of training; 0 means no limit. The first budget used up ends the run.
        log_every: Steps between lines of metrics.jsonl.
        sample_minutes: Minutes between sample grids and saves of the state; 0 means only at the end.
        holdout: Images kept out of training (at most a tenth) for the held-out loss and for percentiles.
        compile: torch.compile the networks (not in `score` stages: it has no second derivatives).
        seed: Seed of weights and of every draw.
    """

    batch_size: int = 128
    micro_batch_size: int = 0
    learning_rate: float = 5e-5
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_images: int = 10_000
    cooldown: float = 0.0
    ema_decay: float = 0.999
    clip_norm: float = 1.0
    flip: bool = True
    decoder_weight: float = 1.0
    decoder_loss_trains_encoder: bool = False
    decoder_sigma_max: float = 1.0
    max_images: int = 10_000_000
    max_minutes: float = 0.0
    log_every: int = 50
    sample_minutes: float = 10.0
    holdout: int = 512
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.batch_size >= 1, f"training.batch_size must be >= 1, got {self.batch_size}")
        _require(self.learning_rate > 0, f"training.learning_rate must be > 0, got {self.learning_rate}")
        _require(0 <= self.ema_decay < 1, f"training.ema_decay must be within [0, 1), got {self.ema_decay}")
        _require(0 <= self.cooldown <= 1, f"training.cooldown must be within 0..1, got {self.cooldown}")
        _require(self.max_images >= 1, f"training.max_images must be >= 1, got {self.max_images}")
        _require(self.log_every >= 1, f"training.log_every must be >= 1, got {self.log_every}")
        _require(self.decoder_sigma_max > 0, f"training.decoder_sigma_max must be > 0, got {self.decoder_sigma_max}")
        names = ("micro_batch_size", "warmup_images", "clip_norm", "decoder_weight", "max_minutes", "sample_minutes")
        for name in (*names, "holdout"):
            _require(getattr(self, name) >= 0, f"training.{name} must be >= 0, got {getattr(self, name)}")
        _require(all(0 <= beta < 1 for beta in self.betas), f"training.betas must be within [0, 1), got {self.betas}")
        _require_most(self, "training", 2**20, "batch_size", "micro_batch_size")
        _require_most(self, "training", MAX_FACTOR, "learning_rate", "decoder_weight", "decoder_sigma_max")
        _require_most(self, "training", 10**9, "clip_norm", "max_minutes", "sample_minutes", "log_every", "holdout")
        _require_most(self, "training", 10**15, "max_images", "warmup_images")
        # Batches add to it what numbers them.
        _require(abs(self.seed) <= 2**62, f"training.seed must be within 62 bits, got {self.seed}")


@dataclass(frozen=True)
class Config:
    """Everything that defines a model and its training.

    Attributes:
        network: Sizes of the networks.
        noise: Noise levels and their draw in training.
        energy: Which function is the energy.
        sampling: The model's own two-stage sampler.
        contrastive: Settings of contrastive stages.
        training: The optimisation.
        stages: Training stages in order, each with an objective (denoising, contrastive, score, energy) and its fraction
            of the budget.
    """

    network: NetworkConfig = field(default_factory=NetworkConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    energy: EnergyConfig = field(default_factory=EnergyConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    stages: tuple[TrainingStage, ...] = (TrainingStage("contrastive"),)

    def __post_init__(self) -> None:
        _require(len(self.stages) >= 1, "stages needs at least one entry")
        by_gradient = self.energy.denoiser == "gradient"
        objectives = [stage.objective for stage in self.stages]
        _require(
            by_gradient or "score" not in objectives,
            "a score stage needs energy.denoiser: gradient, since the denoiser is then x - sigma^2 grad U",
        )
        _require(
            not by_gradient or objectives[-1] != "denoising",
            "stages that end with denoising need energy.denoiser: output",
        )
        _require(
            self.energy.density or "energy" not in objectives,
            "an energy stage needs energy.density: true, the network that it trains",
        )
        _require(
            self.energy.density or self.contrastive.energy != "density",
            "contrastive.energy: density needs energy.density: true",
        )
        _require(
            self.energy.density or self.sampling.pixel.drift != "density",
            "sampling.pixel.drift: density needs energy.density: true",
        )
        _require(
            not (by_gradient and self.energy.density),
            "energy.density: true needs energy.denoiser: output, since the density is fitted beside a denoiser",
        )
        _require(
            not (by_gradient and self.energy.inner_noise),
            "energy.denoiser: gradient needs energy.inner_noise: false, since its energy is that of the noisy image",
        )
        _require(
            not (by_gradient and self.training.compile),
            "training.compile does not work with energy.denoiser: gradient (no second derivatives through "
            "torch.compile)",
        )


def without_density(config: Config) -> Config:
    """Return the settings of the denoiser alone: no density network, and no stage or chain of its energy."""
    pixel = config.sampling.pixel
    return dataclasses.replace(
        config,
        energy=dataclasses.replace(config.energy, density=False),
        contrastive=dataclasses.replace(config.contrastive, energy="texture"),
        sampling=dataclasses.replace(
            config.sampling,
            pixel=dataclasses.replace(pixel, drift="denoiser" if pixel.drift == "density" else pixel.drift),
        ),
        stages=tuple(stage for stage in config.stages if stage.objective != "energy") or (TrainingStage("denoising"),),
    )


def to_dict(config: Any) -> dict[str, Any]:
    """Turn a config dataclass into plain dictionaries, lists and numbers (for YAML and JSON)."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    result: dict[str, Any] = plain(dataclasses.asdict(config))
    return result


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain config values with some of them replaced; inner mappings are merged, everything else is exchanged."""
    result = dict(values)
    for name, change in changes.items():
        old = result.get(name)
        result[name] = merged(old, change) if isinstance(old, Mapping) and isinstance(change, Mapping) else change
    return result


def from_dict(kind: type[T], values: dict[str, Any], *, where: str = "config") -> T:
    """Build a config dataclass from plain values; the inverse of `to_dict`.

    Args:
        kind: The dataclass to build.
        values: Field values; missing fields keep their defaults.
        where: Name of the source for error messages, for example a file.

    Raises:
        ValueError: On an unknown field, a value of the wrong type or a value the dataclass refuses.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected a mapping, got {type(values).__name__}")
    hints = typing.get_type_hints(kind)
    unknown = [name for name in values if name not in hints]
    if unknown:
        raise ValueError(f"{where}: unknown field {shown(unknown[0])} (known: {', '.join(hints)})")
    built = {name: _coerce(hints[name], value, f"{where}: {name}") for name, value in values.items()}
    try:
        return kind(**built)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _coerce(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where=where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where}: expected a list, got {shown(value)}")
        if len(value) > MAX_ENTRIES:
            raise ValueError(f"{where}: expected at most {MAX_ENTRIES:,} values, got {len(value):,}")
        inner = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(inner) != len(value):
            raise ValueError(f"{where}: expected {len(inner)} values, got {len(value)}")
        return tuple(_coerce(kind, item, where) for kind, item in zip(inner, value, strict=True))
    if origin is dict:
        if not (isinstance(value, dict) and all(isinstance(key, str) for key in value)):
            raise ValueError(f"{where}: expected a mapping, got {shown(value)}")
        if len(value) > MAX_ENTRIES:
            raise ValueError(f"{where}: expected at most {MAX_ENTRIES:,} values, got {len(value):,}")
        return {key: _coerce(arguments[1], item, f"{where}: {shown_name(key)}") for key, item in value.items()}
    if origin is Literal:
        if not any(value == each and type(value) is type(each) for each in arguments):
            raise ValueError(f"{where}: expected one of {', '.join(map(str, arguments))}, got {shown(value)}")
        return value
    if origin in (types.UnionType, typing.Union):  # the latter of a Literal
        kinds = [kind for kind in arguments if kind is not types.NoneType]
        if value is None and len(kinds) < len(arguments):
            return None
        for kind in kinds[:-1]:
            with contextlib.suppress(ValueError):
                return _coerce(kind, value, where)
        return _coerce(kinds[-1], value, where)
    if hint is float and isinstance(value, str) and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+", value):
        # YAML 1.1 takes 5e-4, without a point, and 1.5e3, without a sign, for texts.
        value = float(value)
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if is_whole and hint in (int, float) and abs(value) >= 2**63:
        raise ValueError(f"{where}: expected a number within 64 bits, got {shown(value)}")
    if hint is float and is_whole:
        return float(value)
    if not isinstance(value, hint) or (hint is int and not is_whole):
        raise ValueError(f"{where}: expected {hint.__name__}, got {shown(value)}")
    if hint is float and not math.isfinite(value):
        raise ValueError(f"{where}: expected a finite number, got {value}")
    return value
