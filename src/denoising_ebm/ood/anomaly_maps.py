r"""Anomaly maps: the energy of every pixel over noise levels, compared with what it is in normal images.

The energy per pixel alone shows edges and textures, which are hard to restore in any image. So at each level the logarithm
of the blurred energy is standardised by mean and standard deviation at that pixel over normal images, and the levels are
averaged: a map of z-scores, 0 for what is normal. Energies with the inner noise of eq. 7, which hides what a pixel is, and
without it, which is sharper, are both used: each finds foreign parts that the other misses.

Without statistics of normal images `anomaly_map` gives the bare energies. `write_maps` makes pictures of either.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from denoising_ebm.config import MAX_SIGMA, MIN_SIGMA
from denoising_ebm.datasets.images import to_float
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.ood.blur import gaussian_blur
from denoising_ebm.ood.features import MAX_LEVELS
from denoising_ebm.utils.parsing import shown

#: z-score of the strongest colours in anomaly maps.
Z_LIMIT = 3.0
#: Images that the spread of means of maps is estimated from, at most.
_SPREAD_IMAGES = 200


@dataclass(frozen=True)
class AnomalyMapConfig:
    """How maps are made.

    Attributes:
        sigmas: Noise levels of energies with inner noise (eq. 7), each > 0 (a model trained by `score` gets none).
        clean_sigmas: Noise levels of energies without it, each > 0; at least one of either kind.
        num_noise_samples: Samples of eq. 7's noise to average over, >= 1.
        blur: Standard deviation in pixels of the Gaussian that energies are blurred by, >= 0.
        seed: Seed of the noise.
    """

    sigmas: tuple[float, ...] = (0.2, 0.4, 0.8)
    clean_sigmas: tuple[float, ...] = (0.1, 0.2, 0.4)
    num_noise_samples: int = 2
    blur: float = 3.0
    seed: int = 0

    def __post_init__(self) -> None:
        levels = (*self.sigmas, *self.clean_sigmas)
        if not levels or not all(math.isfinite(sigma) and sigma > 0 for sigma in levels):
            raise ValueError(
                "maps.sigmas and maps.clean_sigmas must be one or more noise levels > 0, "
                f"got {list(self.sigmas)} and {list(self.clean_sigmas)}"
            )
        if len(levels) > MAX_LEVELS or not all(MIN_SIGMA <= sigma <= MAX_SIGMA for sigma in levels):
            raise ValueError(
                f"maps.sigmas and maps.clean_sigmas must be at most {MAX_LEVELS} noise levels within "
                f"{MIN_SIGMA:g}..{MAX_SIGMA:g}, got {shown(list(levels))}"
            )
        if self.num_noise_samples > 100 or self.blur > 100:
            raise ValueError(
                f"maps.num_noise_samples and maps.blur must be <= 100, got {self.num_noise_samples} and {self.blur:g}"
            )
        if self.num_noise_samples < 1:
            raise ValueError(f"maps.num_noise_samples must be >= 1, got {self.num_noise_samples}")
        if not (math.isfinite(self.blur) and self.blur >= 0):
            raise ValueError(f"maps.blur must be >= 0, got {self.blur}")


class AnomalyMaps:
    """Maps of z-scores of the energy per pixel.

    Args:
        model: The model.
        config: Noise levels, noise samples and blur.
    """

    def __init__(self, model: DenoisingEBM, config: AnomalyMapConfig | None = None) -> None:
        self.model = model
        self.config = config or AnomalyMapConfig()
        self.spread = 1.0  #: Standard deviation of the mean of a normal image's map; a guess in files of before.
        self._statistics: dict[str, Tensor] = {}

    @torch.no_grad()
    def fit(
        self, pixels: Tensor, *, batch_size: int = 128, progress: Callable[[int], object] | None = None
    ) -> AnomalyMaps:
        """Find mean and standard deviation at every pixel of normal images.

        Args:
            pixels: Normal images, uint8, shape `(n, channels, height, width)`, of the model's size, n >= 2.
            batch_size: Images per forward pass.
            progress: Called with the number of images after each batch.

        Returns:
            Itself.

        Raises:
            ValueError: If there are fewer than two images.
        """
        if len(pixels) < 2:
            raise ValueError(f"maps need at least 2 normal images, got {len(pixels)}")
        total = square = torch.zeros((), dtype=torch.float64)
        few: list[Tensor] = []
        for chunk in torch.split(pixels, batch_size):
            logs = self._log_energies(to_float(chunk).to(self.model.device)).double().cpu()
            total, square = total + logs.sum(0), square + logs.square().sum(0)
            if sum(map(len, few)) < _SPREAD_IMAGES:
                few.append(logs[:_SPREAD_IMAGES].float())
            if progress is not None:
                progress(len(chunk))
        mean = total / len(pixels)
        variance = (square / len(pixels) - mean.square()).clamp_min(0) * len(pixels) / (len(pixels) - 1)
        # Pixels of little spread (borders that are always black) must not answer to the faintest change.
        floor = 0.1 * variance.mean((1, 2), keepdim=True)
        self._statistics = {"mean": mean, "std": (variance + floor).clamp_min(1e-12).sqrt()}
        means = ((torch.cat(few) - mean) / self._statistics["std"]).mean((1, 2, 3))
        self.spread = float(means.std().clamp_min(1e-6))
        return self

    @torch.no_grad()
    def maps(self, pixels: Tensor, *, batch_size: int = 128, progress: Callable[[int], object] | None = None) -> Tensor:
        """Return the map of every image, float32 on the CPU, shape `(n, height, width)`; 0 is normal, 3 anomalous.

        Images larger than the model are covered by overlapping tiles, blended.

        Args:
            pixels: uint8, shape `(n, channels, height, width)`, at least of the model's size.
            batch_size: Images (or tiles) per forward pass.
            progress: Called with the number of images after each batch.

        Raises:
            ValueError: If `fit` was not called, or the images are not uint8, have other channels or are smaller than the
                model's.
        """
        if not self._statistics:
            raise ValueError("the maps are not fitted: call fit first")
        channels, size, _ = self.model.image_shape
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != channels:
            raise ValueError(
                f"images must be uint8 (n, {channels}, height, width), got {pixels.dtype} {tuple(pixels.shape)}"
            )
        if len(pixels) == 0:
            return torch.empty(0, *pixels.shape[2:])
        if tuple(pixels.shape[2:]) == (size, size):
            parts = []
            for chunk in torch.split(pixels, batch_size):
                parts.append(self._standard(to_float(chunk).to(self.model.device)))
                if progress is not None:
                    progress(len(chunk))
            return torch.cat(parts)
        results = []
        for image in pixels:
            results.append(self._tiled(image, size, batch_size))
            if progress is not None:
                progress(1)
        return torch.stack(results)

    def _standard(self, x: Tensor) -> Tensor:
        logs = self._log_energies(x).double().cpu()
        return ((logs - self._statistics["mean"]) / self._statistics["std"]).mean(1).float()

    def _log_energies(self, x: Tensor) -> Tensor:
        """Return the log of the blurred energies per pixel, shape (batch, levels, height, width)."""
        noisy, clean = self.config.sigmas, self.config.clean_sigmas
        if self.model.config.energy.denoiser != "output":
            # A model trained by `score` has r for noisy images only: x is one already, and gets no more noise.
            noisy, clean = (), tuple(dict.fromkeys((*noisy, *clean)))
        noise = self.model.scoring_noise(self.config.num_noise_samples, self.config.seed) if noisy else None
        levels = [self.model.energy_map(x, sigma, noise) for sigma in noisy]
        maps = torch.stack([*levels, *(self.model.energy_map(x, sigma) for sigma in clean)], dim=1)
        return gaussian_blur(maps, self.config.blur).clamp_min(1e-12).log()

    def _tiled(self, image: Tensor, size: int, batch_size: int) -> Tensor:
        height, width = image.shape[1:]
        if min(height, width) < size:
            raise ValueError(f"images must be at least {size} x {size}, got {height} x {width}")
        corners = [(top, left) for top in tile_starts(height, size) for left in tile_starts(width, size)]
        tiles = torch.stack([image[:, top : top + size, left : left + size] for top, left in corners])
        found = torch.cat(
            [self._standard(to_float(part).to(self.model.device)) for part in torch.split(tiles, batch_size)]
        )
        window = _window(size)
        total, weight = torch.zeros(height, width), torch.zeros(height, width)
        for (top, left), tile in zip(corners, found, strict=True):
            total[top : top + size, left : left + size] += window * tile
            weight[top : top + size, left : left + size] += window
        return total / weight

    def tensors(self) -> dict[str, Tensor]:
        """Return the statistics, to be kept."""
        return self._statistics and {**self._statistics, "spread": torch.tensor(self.spread)}

    def load(self, tensors: dict[str, Tensor]) -> AnomalyMaps:
        """Take over what `tensors` returned; files of before hold no spread."""
        self._statistics = {name: tensors[name].double() for name in ("mean", "std")}
        self.spread = float(tensors.get("spread", 1.0))
        return self

    def shifted(self, means: Sequence[float], *, upwards: bool) -> str | None:
        """Return in one phrase, with numbers, how far maps lie from those of normal images; None if they do not.

        Args:
            means: Mean of each map.
            upwards: Tell of maps that lie above, too. Those of anomalous images do, which is no news where images have the
                scale of fitting.
        """
        if not means:
            return None
        # Half of normal maps lie on either side of 0: the median leaves it by chance as far as this, or less.
        middle = statistics.median(means)
        far = max(0.5, 3.8 * self.spread / len(means) ** 0.5)
        if -far <= middle and not (upwards and middle > far):
            return None
        return (
            f"half of {len(means):,} maps have a mean z-score {'below' if middle < 0 else 'above'} {middle:.2f}, where "
            f"those of normal images have 0.00 with a spread of {self.spread:.2f}"
        )


@torch.no_grad()
def anomaly_map(
    model: DenoisingEBM,
    x: Tensor,
    sigma: float,
    *,
    num_noise_samples: int = 4,
    seed: int = 0,
    batch_size: int = 256,
    progress: Callable[[int], object] | None = None,
) -> Tensor:
    """Return the energy of every pixel as a map without a detector, on the CPU, shape (n, height, width).

    It is eq. 7 with its inner noise, averaged over samples that are the same for every image, whether or not the model's
    energy for chains has that noise: without it r(x) copies what it sees, anomalous or not. A model trained by `score` has r
    for noisy images only and gets none.

    Args:
        model: The model.
        x: Images in [-1, 1], shape (n, channels, height, width).
        sigma: Noise level, > 0.
        num_noise_samples: Samples to average over.
        seed: Seed of the samples.
        batch_size: Images per forward pass.
        progress: Called with the number of images after each batch.
    """
    by_output = model.config.energy.denoiser == "output"
    noise = model.scoring_noise(num_noise_samples, seed) if by_output else None
    maps = []
    for part in torch.split(x, batch_size):
        maps.append(model.energy_map(part.to(model.device), sigma, noise).cpu())
        if progress is not None:
            progress(len(part))
    return torch.cat(maps)


def brightest(maps: Tensor) -> float:
    """Return the value for the brightest colour of energies per pixel: the 99.5 % quantile of all pixels."""
    return max(float(np.quantile(maps.numpy(), 0.995)), 1e-12)


def write_maps(pixels: Tensor, maps: Tensor, names: Sequence[str], folder: Path, *, limit: float, signed: bool) -> None:
    """Write for each image a PNG with the image above its map, all on one scale.

    Args:
        pixels: The images, uint8 `(n, channels, height, width)`.
        maps: Their maps, `(n, height, width)`.
        names: Paths of the files in the folder, as `PictureNames` gives them.
        folder: Where to.
        limit: Value of the strongest colour.
        signed: Whether values below zero get colours of their own.
    """
    from denoising_ebm.viz.grids import heat_overlay, save_picture  # matplotlib, which detecting does not need

    for image, pixel_map, name in zip(pixels, maps, names, strict=True):
        save_picture(heat_overlay(to_float(image), pixel_map, limit=limit, signed=signed), folder / name)


def tile_starts(length: int, size: int) -> list[int]:
    """Return where tiles of `size` begin along a side of `length`: evenly, overlapping by at least half a tile."""
    if length == size:
        return [0]
    count = math.ceil((length - size) / (size / 2)) + 1
    return [round(i * (length - size) / (count - 1)) for i in range(count)]


def _window(size: int) -> Tensor:
    """Return weights that fall towards the edge of a tile, where the network sees least around a pixel."""
    ramp = 1 - ((torch.arange(size) + 0.5) / size * 2 - 1).abs()
    return torch.outer(ramp, ramp)
