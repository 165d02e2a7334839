"""Noise levels: the grid of sigma, the training draw of sigma, and the weights of the denoising loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from denoising_ebm.config import NoiseConfig, Schedule, Weighting


def expand_sigma(sigma: Tensor | float, x: Tensor) -> Tensor:
    """Return `sigma` as a float32 tensor of shape (batch,) on the device of `x`.

    Args:
        sigma: A number, a 0-d tensor or a tensor of shape (batch,).
        x: Tensor whose first dimension is the batch.

    Raises:
        ValueError: If `sigma` has another shape.
    """
    dtype = x.dtype if x.dtype == torch.float64 else torch.float32
    sigma = torch.as_tensor(sigma, device=x.device, dtype=dtype)
    if sigma.ndim == 0:
        return sigma.expand(x.shape[0])
    if sigma.shape != x.shape[:1]:
        raise ValueError(f"sigma must be a number or have shape ({x.shape[0]},), got {tuple(sigma.shape)}")
    return sigma


def append_dims(sigma: Tensor, x: Tensor) -> Tensor:
    """Reshape (batch,) to (batch, 1, ..., 1) so that it broadcasts over `x`."""
    return sigma.reshape(-1, *[1] * (x.ndim - 1))


def geometric_sigmas(sigma_max: float, sigma_min: float, num: int) -> Tensor:
    """Return `num` levels falling geometrically from `sigma_max` to `sigma_min`, shape (num,).

    The paper's grid (section 5): S = 128 from 1 to 0.01. With `num` = 1 only `sigma_min` is returned, the level at
    which a chain has to end.

    Raises:
        ValueError: If `sigma_min` <= 0, `sigma_max` < `sigma_min` or `num` < 1.
    """
    if sigma_min <= 0:
        raise ValueError(f"sigma_min must be > 0, got {sigma_min}")
    if sigma_max < sigma_min:
        raise ValueError(f"sigma_max must be >= sigma_min ({sigma_min}), got {sigma_max}")
    if num < 1:
        raise ValueError(f"the number of noise levels must be >= 1, got {num}")
    if num == 1:
        return torch.tensor([sigma_min])
    sigmas = torch.exp(torch.linspace(math.log(sigma_max), math.log(sigma_min), num, dtype=torch.float64)).float()
    sigmas[0], sigmas[-1] = sigma_max, sigma_min
    return sigmas


def karras_sigmas(sigma_max: float, sigma_min: float, num: int, rho: float = 7.0) -> Tensor:
    """Return `num` levels of EDM's schedule, shape (num,), falling (Karras et al., 2022, eq. 5)."""
    if num < 1:
        raise ValueError(f"the number of noise levels must be >= 1, got {num}")
    ramp = torch.linspace(0, 1, num, dtype=torch.float64)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return torch.as_tensor((high + ramp * (low - high)) ** rho).float()


def falling_sigmas(kind: Schedule, sigma_max: float, sigma_min: float, num: int) -> Tensor:
    """Return `num` levels from `sigma_max` to `sigma_min`, shape (num,), by `geometric_sigmas` or `karras_sigmas`.

    A single one is `sigma_min`, the level at which a chain ends.
    """
    levels = karras_sigmas if kind == "karras" and num > 1 else geometric_sigmas
    return levels(sigma_max, sigma_min, num)


def draw_sigmas(config: NoiseConfig, num: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw `num` training noise levels, shape (num,), on the generator's device.

    `grid` draws uniformly from the geometric grid (Algorithm 1, line 3); `lognormal` draws ln sigma from
    N(p_mean, p_std^2), clipped to the grid's range (Karras et al., 2022, table 1).
    """
    device = generator.device if generator is not None else torch.device("cpu")
    if config.draw == "grid":
        sigmas = geometric_sigmas(config.sigma_max, config.sigma_min, config.num_sigmas).to(device)
        return sigmas[torch.randint(config.num_sigmas, (num,), generator=generator, device=device)]
    draws = torch.randn(num, generator=generator, device=device)
    return (config.p_mean + config.p_std * draws).exp().clamp(config.sigma_min, config.sigma_max)


def loss_weights(weighting: Weighting, sigma: Tensor, sigma_data: float) -> Tensor:
    """Return the weight of |D(x + sigma noise) - x|^2 at each level, shape of `sigma`.

    `uniform`: 1, eq. 1 as printed. `energy`: 1 / (2 sigma^2), on which scale the loss is the texture energy of eq. 7.
    `edm`: (sigma^2 + sigma_data^2) / (sigma sigma_data)^2, equal in size at all levels at the start of training.
    """
    if weighting == "uniform":
        return torch.ones_like(sigma)
    if weighting == "energy":
        return 1 / (2 * sigma**2)
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
