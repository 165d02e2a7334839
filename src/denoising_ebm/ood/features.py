r"""Features of an image under the model, over noise levels: what the detector sees.

Every family comes from the same two forward passes at each level sigma: of the image itself ("clean") and of the image with
a fixed draw of noise ("noisy"); `latent` and `feature-statistics`, which are long, at a few of the levels only. With d
pixels and channels, e the noise and the residuals

    R_0 = (x - r(x, sigma)) / sigma,    R_1 = (x - r(x + sigma e, sigma)) / sigma,

| family | numbers per level | what it is |
|---|---|---|
| `energy` | 1 | log of U^c without inner noise, \|R_0\|^2 / 2 |
| `noisy-energy` | 1 | log of U^c of eq. 7, \|R_1\|^2 / 2 |
| `score` | 2 | log \|s\|^2 and <e, s> / d of the score s = R_1 + e at the noisy image |
| `curvature` | 1 | <R_0 - R_1, e> / d: Hutchinson's estimate of the divergence of r, by a finite difference |
| `spectrum` | 12 | log power of R_0 and R_1 in six bands of spatial frequency, over the total |
| `colour` | 4 | log share of each colour channel in both energies (gray: none) |
| `latent` | latent_dim | the code z |
| `feature-statistics` | 2 per channel | mean and standard deviation of the U-Net's feature maps |

The noise is drawn once from a seed and is the same for every image, so a feature is a function of the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from denoising_ebm.config import MAX_SIGMA, MIN_SIGMA, NetworkConfig
from denoising_ebm.datasets.images import to_float
from denoising_ebm.model import DenoisingEBM, Inspection
from denoising_ebm.utils.parsing import shown

Family = Literal["energy", "noisy-energy", "score", "curvature", "spectrum", "colour", "latent", "feature-statistics"]
FAMILIES: tuple[Family, ...] = get_args(Family)
#: Families that are kept at `feature_sigmas` only.
NETWORK_FEATURES: tuple[Family, ...] = ("latent", "feature-statistics")

#: Noise levels at most.
MAX_LEVELS = 100
#: Rings of spatial frequency.
_BANDS = 6
_FROM_CLEAN = {"energy", "curvature", "spectrum", "colour", *NETWORK_FEATURES}
_FROM_NOISY = {"noisy-energy", "score", "curvature", "spectrum", "colour"}


@dataclass(frozen=True)
class FeatureConfig:
    """Which features, at which noise levels.

    Attributes:
        sigmas: Noise levels, each > 0.
        families: Names of the table above.
        feature_sigmas: Those of the levels at which `latent` and `feature-statistics` are kept; all if empty.
        seed: Seed of the noise.
    """

    sigmas: tuple[float, ...] = (0.02, 0.05, 0.1, 0.4)
    families: tuple[Family, ...] = FAMILIES
    feature_sigmas: tuple[float, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.sigmas or not all(math.isfinite(sigma) and sigma > 0 for sigma in self.sigmas):
            raise ValueError(f"features.sigmas must be one or more noise levels > 0, got {list(self.sigmas)}")
        if len(self.sigmas) > MAX_LEVELS or not all(MIN_SIGMA <= sigma <= MAX_SIGMA for sigma in self.sigmas):
            raise ValueError(
                f"features.sigmas must be at most {MAX_LEVELS} noise levels within {MIN_SIGMA:g}..{MAX_SIGMA:g}, "
                f"got {shown(list(self.sigmas))}"
            )
        unknown = [family for family in self.families if family not in FAMILIES]
        if not self.families or unknown:
            raise ValueError(
                f"features.families must be one or more of {', '.join(FAMILIES)}, got {list(unknown or self.families)}"
            )
        others = [sigma for sigma in self.feature_sigmas if sigma not in self.sigmas]
        if others:
            raise ValueError(
                f"features.feature_sigmas must be among the noise levels {list(self.sigmas)}, got {others}"
            )

    def sigmas_of(self, family: Family) -> tuple[float, ...]:
        """Return the noise levels at which a family is computed."""
        return self.feature_sigmas or self.sigmas if family in NETWORK_FEATURES else self.sigmas


def feature_counts(config: FeatureConfig, network: NetworkConfig) -> dict[Family, int]:
    """Return how many numbers each family of features has for an image, over its noise levels."""
    per_level: dict[Family, int] = {
        "energy": 1,
        "noisy-energy": 1,
        "score": 2,
        "curvature": 1,
        "spectrum": 2 * _BANDS,
        "colour": 2 * (network.channels - 1),
        "latent": network.latent_dim,
        # Mean and standard deviation of each channel, on the way down and up.
        "feature-statistics": 4 * sum(network.widths),
    }
    return {family: len(config.sigmas_of(family)) * per_level[family] for family in config.families}


@torch.no_grad()
def compute_features(
    model: DenoisingEBM,
    images: Tensor,
    config: FeatureConfig,
    *,
    batch_size: int = 256,
    progress: Callable[[int], object] | None = None,
) -> dict[Family, Tensor]:
    """Return the features of each image, by family.

    Levels and images are batched together: each forward pass takes about `batch_size` images, whatever of both fills it.

    Args:
        model: The model.
        images: uint8, shape `(n, channels, height, width)`.
        config: What to compute.
        batch_size: Images per forward pass, >= 1.
        progress: Called with the number of images after each batch of them.

    Returns:
        For each family float64 on the CPU, shape `(n, levels * numbers per level)`, level by level.

    Raises:
        ValueError: If `images` are not uint8 or not of the model's shape.
    """
    _check_images(model, images)
    noise = model.scoring_noise(seed=config.seed)[0]
    passes = max(1, bool(_FROM_CLEAN & set(config.families)) + bool(_FROM_NOISY & set(config.families)))
    chunk = max(1, min(batch_size // passes, len(images)))
    levels = max(1, batch_size // (chunk * passes))
    rows: dict[Family, list[Tensor]] = {family: [] for family in config.families}
    for pixels in torch.split(images, chunk):
        x = to_float(pixels).to(model.device)
        for family, values in _features(model, x, noise, config, levels).items():
            rows[family].append(values.double().cpu())
        if progress is not None:
            progress(len(x))
    return {family: torch.cat(parts) for family, parts in rows.items()}


@torch.no_grad()
def log_energies(
    model: DenoisingEBM,
    images: Tensor,
    sigmas: Sequence[float],
    *,
    batch_size: int = 256,
    noise: Tensor | None = None,
    progress: Callable[[int], object] | None = None,
) -> Tensor:
    r"""Return $\log U^c(x, \sigma)$ of each image at each noise level.

    Energies of real images spread over factors rather than sums, and more so at small noise levels; their logarithms
    are nearly normal, which is what a covariance describes.

    Args:
        model: The model.
        images: uint8, shape `(n, channels, height, width)`.
        sigmas: Noise levels, each > 0.
        batch_size: Images per forward pass, >= 1.
        noise: Samples of the inner noise, as from `DenoisingEBM.scoring_noise`; None for energies without it.
        progress: Called with the number of images after each forward pass.

    Returns:
        float64 on the CPU, shape `(n, len(sigmas))`.

    Raises:
        ValueError: If there are no levels, one is not > 0, or `images` are not uint8.
    """
    if not len(sigmas) or min(sigmas) <= 0:
        raise ValueError(f"sigmas must be one or more noise levels > 0, got {list(sigmas)}")
    if images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8, got {images.dtype}")
    rows: list[Tensor] = []
    for pixels in torch.split(images, batch_size):
        x = to_float(pixels).to(model.device)
        energies = []
        for sigma in sigmas:
            energies.append(model.energy(x, sigma, noise))
            if progress is not None:
                progress(len(x))
        rows.append(torch.stack(energies, dim=1).double().cpu())
    return _log(torch.cat(rows))


@dataclass(frozen=True)
class _Passes:
    """The forward passes of a batch at one level; a pass that no family needs is None."""

    x: Tensor
    sigma: float
    noise: Tensor
    clean: Inspection | None
    noisy: Inspection | None

    @property
    def clean_residual(self) -> Tensor:
        assert self.clean is not None
        return (self.x - self.clean.reconstruction) / self.sigma

    @property
    def noisy_residual(self) -> Tensor:
        assert self.noisy is not None
        return (self.x - self.noisy.reconstruction) / self.sigma


def _features(
    model: DenoisingEBM, x: Tensor, noise: Tensor, config: FeatureConfig, levels: int
) -> dict[Family, Tensor]:
    """Return the features of a batch, with so many noise levels in a forward pass."""
    families = set(config.families)
    kinds = [kind for kind, needing in (("clean", _FROM_CLEAN), ("noisy", _FROM_NOISY)) if families & needing]
    found: dict[Family, list[Tensor]] = {family: [] for family in config.families}
    for start in range(0, len(config.sigmas), levels):
        sigmas = config.sigmas[start : start + levels]
        inputs = [x if kind == "clean" else x + sigma * noise for sigma in sigmas for kind in kinds]
        at = torch.tensor([sigma for sigma in sigmas for _ in kinds], device=x.device).repeat_interleave(len(x))
        parts = iter(_split(model.inspect(torch.cat(inputs), at), len(x)))
        for sigma in sigmas:
            by_kind = {kind: next(parts) for kind in kinds}
            passes = _Passes(x, sigma, noise, by_kind.get("clean"), by_kind.get("noisy"))
            for family in config.families:
                if sigma in config.sigmas_of(family):
                    found[family].append(_FORMULAS[family](passes))
    return {family: torch.cat(parts, dim=1) for family, parts in found.items()}


def _split(inspection: Inspection, size: int) -> list[Inspection]:
    parts = (
        torch.split(inspection.reconstruction, size),
        torch.split(inspection.code, size),
        torch.split(inspection.statistics, size),
    )
    return [Inspection(*values) for values in zip(*parts, strict=True)]


def _log(values: Tensor) -> Tensor:
    # An energy of exactly zero would be infinitely likely.
    return values.clamp_min(torch.finfo(torch.float32).tiny).log()


def _squared_norm(residual: Tensor) -> Tensor:
    return residual.square().flatten(1).sum(1, keepdim=True)


def _mean_product(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).mean(1, keepdim=True)


def _energy(passes: _Passes) -> Tensor:
    return _log(0.5 * _squared_norm(passes.clean_residual))


def _noisy_energy(passes: _Passes) -> Tensor:
    return _log(0.5 * _squared_norm(passes.noisy_residual))


def _score(passes: _Passes) -> Tensor:
    score = passes.noisy_residual + passes.noise
    return torch.cat([_log(_squared_norm(score)), _mean_product(score, passes.noise)], dim=1)


def _curvature(passes: _Passes) -> Tensor:
    return _mean_product(passes.clean_residual - passes.noisy_residual, passes.noise)


def _spectrum(passes: _Passes) -> Tensor:
    return torch.cat([_bands(passes.clean_residual), _bands(passes.noisy_residual)], dim=1)


def _bands(residual: Tensor, num: int = _BANDS) -> Tensor:
    """Return the log share of the power in `num` rings of spatial frequency, shape (batch, num)."""
    size = residual.shape[-1]
    power = torch.fft.rfft2(residual).abs().square().sum(1)
    # Columns strictly between zero and the Nyquist frequency stand for their mirror images too.
    power = power * torch.tensor([1.0] + [2.0] * ((size - 1) // 2) + [1.0] * (size % 2 == 0), device=power.device)
    rows = torch.fft.fftfreq(size, device=power.device)[:, None]
    radius = (rows.square() + torch.fft.rfftfreq(size, device=power.device)[None].square()).sqrt()
    ring = (2 * num * radius).long().clamp_max(num - 1).flatten()
    shares = torch.zeros(len(power), num, device=power.device).index_add_(1, ring, power.flatten(1))
    return _log(shares) - _log(power.flatten(1).sum(1, keepdim=True))


def _colour(passes: _Passes) -> Tensor:
    shares = []
    for residual in (passes.clean_residual, passes.noisy_residual):
        power = residual.square().sum((2, 3))
        shares.append((_log(power) - _log(power.sum(1, keepdim=True)))[:, 1:])
    return torch.cat(shares, dim=1)


def _latent(passes: _Passes) -> Tensor:
    assert passes.clean is not None
    return passes.clean.code


def _feature_statistics(passes: _Passes) -> Tensor:
    assert passes.clean is not None
    return passes.clean.statistics


_FORMULAS: dict[Family, Callable[[_Passes], Tensor]] = {
    "energy": _energy,
    "noisy-energy": _noisy_energy,
    "score": _score,
    "curvature": _curvature,
    "spectrum": _spectrum,
    "colour": _colour,
    "latent": _latent,
    "feature-statistics": _feature_statistics,
}


def _check_images(model: DenoisingEBM, images: Tensor) -> None:
    if images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8, got {images.dtype}")
    if images.ndim != 4 or tuple(images.shape[1:]) != model.image_shape or len(images) == 0:
        raise ValueError(
            f"images must have shape (n >= 1, {', '.join(map(str, model.image_shape))}), got {tuple(images.shape)}"
        )
