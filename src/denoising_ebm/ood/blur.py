"""Gaussian blur, of images for corruptions and of energies for anomaly maps."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def gaussian_blur(x: Tensor, sigma: float) -> Tensor:
    """Blur `x`, shape (batch, channels, height, width), by a Gaussian of `sigma` pixels; edges are mirrored."""
    if sigma == 0:
        return x
    radius = min(max(1, math.ceil(3 * sigma)), x.shape[-1] - 1, x.shape[-2] - 1)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=x.device) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(x.dtype)[None, None]
    flat = x.flatten(0, 1)[:, None]
    flat = F.conv2d(F.pad(flat, (radius, radius, 0, 0), "reflect"), kernel[..., None, :])
    flat = F.conv2d(F.pad(flat, (0, 0, radius, radius), "reflect"), kernel[..., None])
    return flat.reshape(x.shape)
