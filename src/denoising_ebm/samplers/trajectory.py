"""Chains on their way: a callback that keeps what they pass through."""

from __future__ import annotations

from torch import Tensor

from denoising_ebm.energies import Decode
from denoising_ebm.samplers.base import ChainState


class Trajectory:
    """A callback that keeps what the first chains look like on their way (paper, figure 5).

    Latent states are decoded, every fifth (oftener in short chains); pixel states are kept about ten times.

    Args:
        decode: h_gamma, which shows the latent states.
        chains: Number of chains to keep, >= 1, of the first batch.
    """

    def __init__(self, decode: Decode, chains: int = 8) -> None:
        self._decode = decode
        self._chains = chains
        self.states: list[Tensor] = []  #: Images, each `(chains, channels, height, width)`.
        self.labels: list[str] = []  #: For each of them the space, z or x, and the step.
        self.energies: dict[str, list[Tensor]] = {}  #: For each stage and step the energies before it, `(chains,)`.

    def __call__(self, state: ChainState) -> None:
        """Take in a step."""
        self.energies.setdefault(state.stage, []).append(state.energy[: self._chains].float().cpu().clone())
        semantic = state.stage == "semantic"
        every = max(1, min(5, state.num_steps // 2) if semantic else round(state.num_steps / 10))
        if state.step % every and state.step not in (1, state.num_steps):
            return
        x = state.x[: self._chains]
        self.add(self._decode(x) if semantic else x, f"{'z' if semantic else 'x'} {state.step}")

    def add(self, images: Tensor, label: str) -> None:
        """Append a column, for example the finished images."""
        # Chains come in batches, the first of which may hold fewer than are finished at the end.
        count = len(self.states[0]) if self.states else self._chains
        self.states.append(images[:count].float().cpu().clone())
        self.labels.append(label)
