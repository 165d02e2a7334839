"""Generators whose seeds are hashes: neighbouring seeds and steps get unrelated random numbers."""

from __future__ import annotations

import torch

#: 2^64 over the golden ratio, the increment of SplitMix64 (Steele et al., 2014).
_INCREMENT = 0x9E3779B97F4A7C15
_MASK = 0xFFFFFFFFFFFFFFFF


def hashed_generator(device: torch.device, *keys: int) -> torch.Generator:
    """Return a generator on `device` whose seed is a hash of `keys`, by the mixing steps of SplitMix64."""
    seed = 0
    for key in keys:
        seed = (seed + key + _INCREMENT) & _MASK
        seed = ((seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        seed = ((seed ^ (seed >> 27)) * 0x94D049BB133111EB) & _MASK
        seed ^= seed >> 31
    return torch.Generator(device).manual_seed(seed >> 1)


def distant_generator(seed: int) -> torch.Generator:
    """Return a generator on the CPU far from `manual_seed(seed)`, which the caller may have used for other draws."""
    return torch.Generator().manual_seed((seed + _INCREMENT) % 2**63)
