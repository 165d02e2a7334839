r"""Repair: what a marked region should have looked like, drawn by the energy from the rest of the photo.

Denoising diffusion null-space inpainting (Wang et al., 2023): a chain from noise of `START` down to none, whose denoiser's
known pixels are replaced by those of the photo at every level. It begins at a smooth filling, so that a short chain
suffices. The model takes windows of any size, so a region is drawn in one piece with what is around it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from denoising_ebm.energies import TextureEnergy, draw_noise
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.noise import karras_sigmas
from denoising_ebm.samplers import consistent_annealed_sampling
from denoising_ebm.utils.seeds import ImageNoise

#: Noise level at which chains begin: what is coarser than that hides comes from around the region.
START = 1.0
#: Pixels of the photo around a region that the model sees, and the side of the largest window.
MARGIN, LARGEST = 32, 512
#: Pixels that regions are enlarged by: a defect's edge reaches beyond what is marked.
GROW = 3
#: The largest regions are repaired, and so many at most.
MAX_REGIONS = 16

#: Number of a region, rows and columns of its window, missing pixels there.
_Window = tuple[int, slice, slice, npt.NDArray[np.bool_]]


@torch.no_grad()
def repair(
    model: DenoisingEBM,
    x: Tensor,
    mask: Tensor,
    *,
    steps: int = 16,
    grow: int = GROW,
    max_regions: int = MAX_REGIONS,
    seed: int = 0,
) -> Tensor:
    """Return a photo whose masked regions are drawn anew; every other pixel stays as it is.

    Costs `steps` evaluations of the network on a window around each region. A window has at most `LARGEST` pixels a side:
    what of a larger region lies outside stays as it is, and so does a window without a known pixel to draw from. `left_out`
    says what stays.

    Args:
        model: A model of images of any size.
        x: The photo in [-1, 1], shape `(channels, height, width)`.
        mask: What to draw anew, bool, shape `(height, width)`.
        steps: Noise levels of a chain, >= 2.
        grow: Pixels that regions are enlarged by.
        max_regions: The largest regions are repaired, and so many at most.
        seed: Of the chains.

    Raises:
        ValueError: If shapes do not fit or the model takes images of one size only.
    """
    if not model.config.network.any_size:
        raise ValueError("the model takes images of one size only: photos are repaired by one with network.any_size")
    if x.ndim != 3 or tuple(mask.shape) != tuple(x.shape[1:]):
        raise ValueError(f"photo {tuple(x.shape)} and mask {tuple(mask.shape)} do not fit")
    repaired = x.clone()
    for number, rows, columns, missing in _windows(mask, grow, max_regions):
        window = repaired[:, rows, columns]
        drawn = _drawn(model, window, torch.from_numpy(missing), steps, seed, number)
        # A soft seam, within what is drawn anew.
        weight = torch.from_numpy((ndimage.distance_transform_edt(missing) / 2).clip(0, 1).astype(np.float32))
        repaired[:, rows, columns] = torch.where(
            torch.from_numpy(missing), torch.lerp(window, drawn, weight.expand_as(window)), window
        )
    return repaired


def left_out(mask: Tensor, *, grow: int = GROW, max_regions: int = MAX_REGIONS) -> Tensor:
    """Return which pixels of a mask `repair` leaves as they are, bool, shape `(height, width)`; arguments as there."""
    left = mask.cpu().bool().clone()
    for _, rows, columns, _ in _windows(mask, grow, max_regions):
        left[rows, columns] = False
    return left


def _windows(mask: Tensor, grow: int, max_regions: int) -> Iterator[_Window]:
    """Yield windows around the largest regions; a pixel is missing in one window at most."""
    left = mask.cpu().numpy().astype(bool)
    if not left.any():
        return
    if grow:
        left = ndimage.binary_dilation(left, iterations=grow)
    labels, count = ndimage.label(left, structure=np.ones((3, 3)))
    sizes = ndimage.sum_labels(left, labels, np.arange(1, count + 1))
    boxes = ndimage.find_objects(labels)
    for number in (np.argsort(-sizes, kind="stable")[:max_regions] + 1).tolist():
        rows, columns = (_widened(side, length) for side, length in zip(boxes[number - 1], mask.shape, strict=True))
        missing = left[rows, columns].copy()
        # What is not of this region any more was drawn with a larger one beside it.
        if (missing & (labels[rows, columns] == number)).any() and not missing.all():
            yield number, rows, columns, missing
            left[rows, columns] = False


def _widened(side: slice, length: int) -> slice:
    start, stop = max(0, side.start - MARGIN), min(length, side.stop + MARGIN)
    if stop - start > LARGEST:
        start += (stop - start - LARGEST) // 2
        stop = start + LARGEST
    return slice(start, stop)


def _drawn(model: DenoisingEBM, window: Tensor, missing: Tensor, steps: int, seed: int, number: int) -> Tensor:
    """Return the window with missing pixels drawn, on the CPU."""
    y = torch.from_numpy(_filled(window.numpy(), missing.numpy()))[None].to(model.device)
    hidden = missing.to(model.device)

    def denoise(noisy: Tensor, sigma: Tensor | float) -> Tensor:
        return torch.where(hidden, model.denoise(noisy, sigma), y)

    noise = model.config.noise
    sigmas = karras_sigmas(min(START, noise.sigma_max), noise.sigma_min, steps)
    draws = ImageNoise.of(seed, [number], "restore")
    start = y + float(sigmas[0]) * draw_noise(tuple(y.shape), draws, y)
    energy = TextureEnergy(denoise, inner_noise=False, drift="denoiser")
    x = consistent_annealed_sampling(energy, start, sigmas.to(y.device), step_size=0.5, generator=draws)
    return denoise(x, noise.sigma_min)[0].cpu().clamp(-1, 1)


def _filled(window: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Return the window with missing pixels filled by weighted means of known ones, near ones most."""
    known = (~missing).astype(np.float32)
    result, weight = np.zeros_like(window), np.full(missing.shape, 1e-8, np.float32)
    # From fine to coarse: the widest reaches the middle of the largest hole.
    for width in (2.0, 6.0, 18.0, 54.0):
        share = ndimage.gaussian_filter(known, width) * 10.0 ** (-width / 6)
        near = [ndimage.gaussian_filter(band * known, width) * 10.0 ** (-width / 6) for band in window]
        result, weight = result + np.stack(near), weight + share
    return np.where(missing, result / weight, window).astype(np.float32)
