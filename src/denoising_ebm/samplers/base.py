r"""What all samplers share: their one signature, what a callback sees, how a method states its cost.

A sampler is a function `f(energy, x, sigmas, *, ..., generator, callback) -> x`. It takes an `Energy` (or a plain function
`(x, sigma) -> (batch,)`), never a network; solvers that need a denoiser take the energy's, D(x) = x - l^2 grad U(x, sigma),
with l the energy's noise scale (sigma in pixels). All return the last states, shape of `x`, detached, which still carry the
noise of the last level; `x` is not modified. `sigmas` has shape (steps,), or (steps, batch) where each chain has its own.
`generator` is one for the whole batch, or an `ImageNoise`, which has one for each chain: its draws then depend on no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from denoising_ebm.config import PixelMethod, Schedule
from denoising_ebm.energies import Energy
from denoising_ebm.noise import expand_sigma


@dataclass(frozen=True)
class ChainState:
    """What a callback sees after each step; tensors are the chain's own, so clone what is kept."""

    step: int  #: Steps done, from 1 on.
    num_steps: int  #: Steps in all.
    sigma: float  #: Mean noise level of the step.
    x: Tensor  #: State after the step.
    energy: Tensor  #: Energies before the step, shape (batch,).
    acceptance: float | None = None  #: Fraction of accepted proposals (`mala` only).
    stage: str = ""  #: "semantic" or "texture" in two-stage sampling.


Callback = Callable[[ChainState], None]


@dataclass(frozen=True)
class Method:
    """A published sampler: its function beside its name, cost and defaults.

    Attributes:
        name: In configs and commands.
        title: In tables and pages.
        run: The function.
        gradients: Evaluations of the energy's gradient, or of the denoiser, for so many noise levels.
        default_steps: Noise levels when the user names none.
        source: Citation.
        default_schedule: Noise levels when the user names none.
        default_step_size: For images of so many dimensions; None for a method without a step size.
        stochastic: Whether it injects noise, and so takes a `temperature`.
        needs_energy: Whether its gradient must be that of a function, so that a denoiser's drift will not do.
    """

    name: PixelMethod
    title: str
    run: Callable[..., Tensor]
    gradients: Callable[[int], int]
    default_steps: int
    source: str
    default_schedule: Schedule = "geometric"
    default_step_size: Callable[[int], float] | None = None
    stochastic: bool = True
    needs_energy: bool = False


def check_step_size(step_size: float) -> None:
    """Raise a ValueError if a step size is not > 0."""
    if step_size <= 0:
        raise ValueError(f"step_size must be > 0, got {step_size}")


def expand_temperature(temperature: float | Tensor, num_steps: int, x: Tensor) -> Tensor:
    """Return one temperature a step, shape (num_steps,).

    Args:
        temperature: Factor >= 0 on the noise variance: a number, or shape (num_steps,).
        num_steps: Number of steps.
        x: Of whose dtype and device they are.

    Raises:
        ValueError: If one is negative, or they have another shape.
    """
    values = torch.as_tensor(temperature, dtype=x.dtype, device=x.device)
    if bool((values < 0).any()):
        raise ValueError(f"temperature must be >= 0, got {temperature}")
    if values.shape not in ((), (num_steps,)):
        raise ValueError(
            f"temperature must be a number or have shape ({num_steps},), one for each step, got {tuple(values.shape)}"
        )
    return values.expand(num_steps)


def expand_sigmas(sigmas: Tensor, x: Tensor) -> Tensor:
    """Return the noise level of every step and chain, shape (steps, batch).

    Raises:
        ValueError: If `sigmas` has another shape than (steps,) or (steps, batch).
    """
    if sigmas.ndim not in (1, 2):
        raise ValueError(f"sigmas must have shape (steps,) or (steps, batch), got {tuple(sigmas.shape)}")
    return torch.stack([expand_sigma(s, x) for s in sigmas]) if len(sigmas) else sigmas.new_zeros(0, len(x))


def steps_of(energy: Energy, sigmas: Tensor) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Yield for each step its index, noise level, noise scale, and the noise scale it ends at.

    The last step, which no level follows, ends at its own.

    Args:
        energy: Whose noise scale.
        sigmas: Shape (steps, batch).
    """
    for i, sigma in enumerate(sigmas):
        yield i, sigma, energy.noise_scale(sigma), energy.noise_scale(sigmas[min(i + 1, len(sigmas) - 1)])
