"""The probability-flow ODE on a denoiser, solved by Heun's method."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from denoising_ebm.noise import expand_sigma
from denoising_ebm.samplers.langevin import Callback, ChainState


@torch.no_grad()
def heun(
    denoise: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    sigmas: Tensor,
    *,
    final_denoise: bool = True,
    callback: Callback | None = None,
) -> Tensor:
    r"""Follow dx/dsigma = (x - D(x, sigma)) / sigma from the first to the last noise level.

    Heun's second-order method (Karras et al., 2022, algorithm 1, without churn): two denoiser evaluations a step.

    Args:
        denoise: D, `(x, sigma) -> like x`.
        x: Start, data plus noise of level `sigmas[0]`, shape (batch, ...). Not modified.
        sigmas: Falling noise levels > 0, shape (steps + 1,).
        final_denoise: End with x = D(x, sigmas[-1]), Euler's step to sigma = 0.
        callback: Called with a `ChainState` after every step; its energy is |x - D|^2 / 2 sigma^2.

    Returns:
        The images, shape of `x`.

    Raises:
        ValueError: If fewer than one level is given or a level is not > 0.
    """
    if sigmas.ndim != 1 or len(sigmas) < 1 or bool((sigmas <= 0).any()):
        raise ValueError("sigmas must be a list of one or more noise levels > 0")
    for i in range(len(sigmas) - 1):
        now, after = float(sigmas[i]), float(sigmas[i + 1])
        slope = (x - denoise(x, expand_sigma(now, x))) / now
        energy = 0.5 * slope.square().flatten(1).sum(1)
        ahead = x + (after - now) * slope
        slope_ahead = (ahead - denoise(ahead, expand_sigma(after, x))) / after
        x = x + (after - now) * 0.5 * (slope + slope_ahead)
        if callback is not None:
            callback(ChainState("heun", i + 1, len(sigmas) - 1, now, x, energy))
    return denoise(x, expand_sigma(float(sigmas[-1]), x)) if final_denoise else x
