"""Chains and solvers on energies and denoisers; none of them knows a network."""

from denoising_ebm.samplers.heun import heun
from denoising_ebm.samplers.langevin import ChainState, annealed, mala, ula
from denoising_ebm.samplers.replay import ReplayBuffer
from denoising_ebm.samplers.two_stage import TwoStageSample, texture_chain, two_stage

__all__ = [
    "ChainState",
    "ReplayBuffer",
    "TwoStageSample",
    "annealed",
    "heun",
    "mala",
    "texture_chain",
    "two_stage",
    "ula",
]
