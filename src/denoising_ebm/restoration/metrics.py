"""How near restored images are to the originals, image by image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from denoising_ebm.utils.extras import load_extra


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB, 10 log10(255^2 / MSE), shape `(n,)`; infinite for equal images.

    Args:
        images: uint8, shape `(n, c, h, w)`.
        reference: The originals, same shape.
    """
    _check(images, reference)
    error = (images.double() - reference.double()).square().flatten(1).mean(1)
    return 10 * (255.0**2 / error).log10()


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """Return the structural similarity (Wang et al., 2004), shape `(n,)`: scikit-image's, with Wang's Gaussian window.

    Args:
        images: uint8, shape `(n, c, h, w)`, sides >= 11 pixels.
        reference: The originals, same shape.

    Raises:
        ValueError: If shapes differ or scikit-image is not installed.
    """
    _check(images, reference)
    metrics = ssim_package()
    options = {"channel_axis": 0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    values = [
        float(metrics.structural_similarity(a.numpy(), b.numpy(), data_range=255, **options))
        for a, b in zip(images, reference, strict=True)
    ]
    return torch.tensor(values, dtype=torch.float64)


def estimated_noise(images: Tensor) -> Tensor:
    """Return the standard deviation of white noise in images, in data units ([-1, 1]), shape `(n,)`, float64.

    The median of the absolute diagonal differences of 2 x 2 pixels over that of N(0, 1) (Donoho & Johnstone, 1994), zeros
    left out as scikit-image does. Fine detail counts as noise, so that clean images have some; noise that was clipped at
    black is underestimated, by no more than half.

    Args:
        images: uint8, shape `(n, c, h, w)`.
    """
    x = images[..., : images.shape[-2] // 2 * 2, : images.shape[-1] // 2 * 2].double() / 127.5
    diagonal = (x[..., ::2, ::2] - x[..., 1::2, ::2] - x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 2
    medians = [part[part > 0].median() if bool(part.any()) else part.sum() for part in diagonal.abs()]
    return torch.stack(medians) / 0.6744897501960817


def ssim_package() -> Any:
    """Return scikit-image's metrics: to be called before work whose figures would be lost without them.

    Raises:
        ValueError: If scikit-image is not installed.
    """
    return load_extra("skimage.metrics", "eval", "SSIM needs scikit-image")


def _check(images: Tensor, reference: Tensor) -> None:
    if images.shape != reference.shape or images.dtype != torch.uint8 or reference.dtype != torch.uint8:
        raise ValueError(
            f"need uint8 images of one shape, got {images.dtype} {tuple(images.shape)} and {reference.dtype} "
            f"{tuple(reference.shape)}"
        )
