r"""What detectors look at: numbers that say how an image sits in the model, over noise levels.

Every family of features comes from the same forward passes: of the image itself ("clean") and of the image with a fixed
draw of noise ("noised"), at each level sigma; `latent` and `pooled`, which are long, at a few of the levels only.
With d pixels and channels, e the noise and

    rho_0 = (x - r(x, sigma)) / sigma,    rho_1 = (x - r(x + sigma e, sigma)) / sigma,

| family | columns per level | what it is |
|---|---|---|
| `energy` | 1 | log of U^c without inner noise, \|rho_0\|^2 / 2 |
| `noised-energy` | 1 | log of U^c of eq. 7, \|rho_1\|^2 / 2 |
| `score` | 2 | log \|s\|^2 and <e, s> / d of the score s = rho_1 + e at the noised image |
| `curvature` | 1 | <rho_0 - rho_1, e> / d: a Hutchinson estimate of the divergence of r by a finite difference |
| `spatial` | 9 | log quantiles of the energy per pixel, and of its means over 4 x 4 regions, each over the mean |
| `spectrum` | 12 | log power of rho_0 and rho_1 in six bands of spatial frequency, over the total |
| `channels` | 4 | log share of each colour channel in both energies (gray: none) |
| `latent` | latent_dim | the code z |
| `pooled` | 2 per inner channel | mean and standard deviation of the U-Net's feature maps |
| `semantic` | 3 | log \|x - h(z)\|^2, log \|z\|^2 and log U^s(z) |
| `gradient` | 1 | log \|grad U^c\|^2, the exact gradient (eq. 21); needs a backward pass |

The noise is drawn once from a seed and is the same for every image, so a feature is a function of the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from denoising_ebm.datasets.images import to_float
from denoising_ebm.energies import TextureEnergy
from denoising_ebm.model import DenoisingEBM, Inspection

Family = Literal[
    "energy",
    "noised-energy",
    "score",
    "curvature",
    "spatial",
    "spectrum",
    "channels",
    "latent",
    "pooled",
    "semantic",
    "gradient",
]
FAMILIES: tuple[Family, ...] = get_args(Family)

_CLEAN = {"energy", "curvature", "spectrum", "channels", "latent", "pooled", "semantic"}
_INNER = {"latent", "pooled"}
_NOISED = {"noised-energy", "score", "curvature", "spatial", "spectrum", "channels"}


@dataclass(frozen=True)
class FeatureConfig:
    """Which features, at which noise levels.

    Attributes:
        sigmas: Noise levels, each > 0.
        families: Names of the table above.
        inner_sigmas: Those of the levels at which `latent` and `pooled` are kept; all if empty.
        flip: Average over the image and its mirror image, which doubles the cost.
        seed: Seed of the noise.
    """

    sigmas: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5)
    families: tuple[Family, ...] = ("energy", "noised-energy", "curvature")
    inner_sigmas: tuple[float, ...] = ()
    flip: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.sigmas or not all(math.isfinite(sigma) and sigma > 0 for sigma in self.sigmas):
            raise ValueError(f"features.sigmas must be one or more noise levels > 0, got {list(self.sigmas)}")
        unknown = [family for family in self.families if family not in FAMILIES]
        if not self.families or unknown:
            raise ValueError(
                f"features.families must be one or more of {', '.join(FAMILIES)}, got {list(unknown or self.families)}"
            )
        strange = [sigma for sigma in self.inner_sigmas if sigma not in self.sigmas]
        if strange:
            raise ValueError(f"features.inner_sigmas must be among the noise levels {list(self.sigmas)}, got {strange}")

    @property
    def forwards(self) -> int:
        """Forward passes of the network per image."""
        wanted = set(self.families)
        passes = bool(wanted & _CLEAN) + bool(wanted & _NOISED) + ("semantic" in wanted) + ("gradient" in wanted)
        return passes * len(self.sigmas) * (2 if self.flip else 1)


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
        For each family float64 on the CPU, shape `(n, levels * columns)`, level by level.

    Raises:
        ValueError: If `images` are not uint8 or not of the model's shape.
    """
    _check_images(model, images)
    noise = model.scoring_noise(seed=config.seed)[0]
    wanted = set(config.families)
    passes = max(1, bool(wanted & _CLEAN) + bool(wanted & _NOISED))
    chunk = max(1, min(batch_size // passes, len(images)))
    levels = max(1, batch_size // (chunk * passes))
    rows: dict[Family, list[Tensor]] = {family: [] for family in config.families}
    for pixels in torch.split(images, chunk):
        x = to_float(pixels).to(model.device)
        columns = _columns(model, x, noise, config, levels)
        if config.flip:
            mirrored = _columns(model, x.flip(3), noise, config, levels)
            columns = {family: (columns[family] + mirrored[family]) / 2 for family in columns}
        for family, values in columns.items():
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
        noise: Draws of the inner noise, as from `DenoisingEBM.scoring_noise`; None for energies without it.
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
    for start in range(0, len(images), batch_size):
        x = to_float(images[start : start + batch_size]).to(model.device)
        columns = []
        for sigma in sigmas:
            columns.append(model.energy(x, sigma, noise))
            if progress is not None:
                progress(len(x))
        rows.append(torch.stack(columns, dim=1).double().cpu())
    # An energy of exactly zero would be infinitely likely.
    return torch.cat(rows).clamp_min(torch.finfo(torch.float32).tiny).log()


@dataclass(frozen=True)
class _Evidence:
    """One level of a batch: what the columns are computed from."""

    model: DenoisingEBM
    x: Tensor
    sigma: float
    noise: Tensor
    clean: Inspection | None
    noised: Inspection | None

    @property
    def rho_clean(self) -> Tensor:
        assert self.clean is not None
        return (self.x - self.clean.reconstruction) / self.sigma

    @property
    def rho_noised(self) -> Tensor:
        assert self.noised is not None
        return (self.x - self.noised.reconstruction) / self.sigma


def _columns(model: DenoisingEBM, x: Tensor, noise: Tensor, config: FeatureConfig, levels: int) -> dict[Family, Tensor]:
    wanted = set(config.families)
    kinds = [kind for kind, families in (("clean", _CLEAN), ("noised", _NOISED)) if wanted & families]
    columns: dict[Family, list[Tensor]] = {family: [] for family in config.families}
    for start in range(0, len(config.sigmas), levels):
        sigmas = config.sigmas[start : start + levels]
        inputs = [x if kind == "clean" else x + sigma * noise for sigma in sigmas for kind in kinds]
        at = torch.tensor([sigma for sigma in sigmas for _ in kinds], device=x.device).repeat_interleave(len(x))
        parts = _split(model.inspect(torch.cat(inputs), at), len(x)) if kinds else []
        for i, sigma in enumerate(sigmas):
            found = dict(zip(kinds, parts[i * len(kinds) : (i + 1) * len(kinds)], strict=True))
            evidence = _Evidence(model, x, sigma, noise, found.get("clean"), found.get("noised"))
            for family in config.families:
                if family not in _INNER or not config.inner_sigmas or sigma in config.inner_sigmas:
                    columns[family].append(_COLUMNS[family](evidence))
    return {family: torch.cat(parts, dim=1) for family, parts in columns.items()}


def _split(inspection: Inspection, size: int) -> list[Inspection]:
    parts = (
        torch.split(inspection.reconstruction, size),
        torch.split(inspection.code, size),
        torch.split(inspection.pooled, size),
    )
    return [Inspection(*values) for values in zip(*parts, strict=True)]


def _log(values: Tensor) -> Tensor:
    # An energy of exactly zero would be infinitely likely.
    return values.clamp_min(torch.finfo(torch.float32).tiny).log()


def _square(residual: Tensor) -> Tensor:
    return residual.square().flatten(1).sum(1, keepdim=True)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).mean(1, keepdim=True)


def _energy(evidence: _Evidence) -> Tensor:
    return _log(0.5 * _square(evidence.rho_clean))


def _noised_energy(evidence: _Evidence) -> Tensor:
    return _log(0.5 * _square(evidence.rho_noised))


def _score(evidence: _Evidence) -> Tensor:
    score = evidence.rho_noised + evidence.noise
    return torch.cat([_log(_square(score)), _inner(score, evidence.noise)], dim=1)


def _curvature(evidence: _Evidence) -> Tensor:
    return _inner(evidence.rho_clean - evidence.rho_noised, evidence.noise)


def _spatial(evidence: _Evidence) -> Tensor:
    energies = evidence.rho_noised.square().sum(1, keepdim=True)
    mean = energies.flatten(1).mean(1, keepdim=True)
    quantiles = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.95, 1.0], device=energies.device)
    pixels = torch.quantile(energies.flatten(1), quantiles, dim=1).mT
    regions = torch.quantile(
        F.adaptive_avg_pool2d(energies, 4).flatten(1), torch.tensor([0.0, 0.5, 1.0], device=energies.device), dim=1
    ).mT
    return _log(torch.cat([pixels, regions], dim=1)) - _log(mean)


def _spectrum(evidence: _Evidence) -> Tensor:
    return torch.cat([_bands(evidence.rho_clean), _bands(evidence.rho_noised)], dim=1)


def _bands(residual: Tensor, num: int = 6) -> Tensor:
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


def _channels(evidence: _Evidence) -> Tensor:
    shares = []
    for residual in (evidence.rho_clean, evidence.rho_noised):
        power = residual.square().sum((2, 3))
        shares.append((_log(power) - _log(power.sum(1, keepdim=True)))[:, 1:])
    return torch.cat(shares, dim=1)


def _latent(evidence: _Evidence) -> Tensor:
    assert evidence.clean is not None
    return evidence.clean.code


def _pooled(evidence: _Evidence) -> Tensor:
    assert evidence.clean is not None
    return evidence.clean.pooled


def _semantic(evidence: _Evidence) -> Tensor:
    assert evidence.clean is not None
    z = evidence.clean.code
    decoded = evidence.model.decode(z)
    energy = evidence.model.energy(decoded, evidence.sigma)[:, None]
    return torch.cat([_log(_square(evidence.x - decoded)), _log(_square(z)), _log(energy)], dim=1)


def _gradient(evidence: _Evidence) -> Tensor:
    energy = TextureEnergy(evidence.model.reconstruct, inner_noise=False)
    return _log(_square(energy.gradient(evidence.x, evidence.sigma)[1]))


_COLUMNS: dict[Family, Callable[[_Evidence], Tensor]] = {
    "energy": _energy,
    "noised-energy": _noised_energy,
    "score": _score,
    "curvature": _curvature,
    "spatial": _spatial,
    "spectrum": _spectrum,
    "channels": _channels,
    "latent": _latent,
    "pooled": _pooled,
    "semantic": _semantic,
    "gradient": _gradient,
}


def _check_images(model: DenoisingEBM, images: Tensor) -> None:
    if images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8, got {images.dtype}")
    if images.ndim != 4 or tuple(images.shape[1:]) != model.image_shape or len(images) == 0:
        raise ValueError(
            f"images must have shape (n >= 1, {', '.join(map(str, model.image_shape))}), got {tuple(images.shape)}"
        )
