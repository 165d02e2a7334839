"""Samplers: one published method a function, on energies and their denoisers; none of them knows a network.

| method | function | NFE, T levels, by the denoiser | source |
|---|---|---|---|
| annealed-langevin | `annealed_langevin` | T | Song & Ermon (2019); eq. 15, 16 |
| consistent-annealed | `consistent_annealed_sampling` | T | Jolicoeur-Martineau et al. (2021) |
| ancestral | `ancestral` | T | Song et al. (2021) |
| dpmpp-2m-sde | `dpmpp_2m_sde` | T | Lu et al. (2022) |
| heun | `heun` | 2 (T - 1) | Karras et al. (2022) |
| mala | `mala` | 6 T (exact gradient alone) | Roberts & Tweedie (1996) |

The exact gradient of an energy costs three evaluations in place of one, and a final denoising step one more. `two_stage`
joins a latent chain and any of them (the paper, section 4.2); `ula` stays at one noise level (eq. 6).
"""

from denoising_ebm.samplers.base import Callback, ChainState, Method
from denoising_ebm.samplers.consistent import consistent_annealed_sampling
from denoising_ebm.samplers.diffusion import ancestral, dpmpp_2m_sde
from denoising_ebm.samplers.heun import heun
from denoising_ebm.samplers.langevin import annealed_langevin, ula
from denoising_ebm.samplers.mala import mala
from denoising_ebm.samplers.methods import METHODS, default_step_size, num_chain_steps, pixel_nfe, sample_pixels
from denoising_ebm.samplers.replay import ReplayBuffer
from denoising_ebm.samplers.trajectory import Trajectory
from denoising_ebm.samplers.two_stage import TwoStageSample, two_stage, two_stage_nfe, two_stage_steps

__all__ = [
    "METHODS",
    "Callback",
    "ChainState",
    "Method",
    "ReplayBuffer",
    "Trajectory",
    "TwoStageSample",
    "ancestral",
    "annealed_langevin",
    "consistent_annealed_sampling",
    "default_step_size",
    "dpmpp_2m_sde",
    "heun",
    "mala",
    "num_chain_steps",
    "pixel_nfe",
    "sample_pixels",
    "two_stage",
    "two_stage_nfe",
    "two_stage_steps",
    "ula",
]
