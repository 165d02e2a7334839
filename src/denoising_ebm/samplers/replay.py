"""Persistent chains: a replay buffer that training continues instead of starting anew."""

from __future__ import annotations

import torch
from torch import Tensor


class ReplayBuffer:
    """A fixed number of persistent chains, each a row of one or more tensors kept on the CPU.

    Args:
        capacity: Number of chains kept.
        restart_rate: Probability that a drawn chain is replaced by a fresh start.
    """

    def __init__(self, capacity: int, restart_rate: float) -> None:
        if capacity < 1:
            raise ValueError(f"buffer_size must be >= 1, got {capacity}")
        if not 0 <= restart_rate <= 1:
            raise ValueError(f"restart_rate must be within 0..1, got {restart_rate}")
        self.capacity = capacity
        self.restart_rate = restart_rate
        self._rows: dict[str, Tensor] = {}

    def __len__(self) -> int:
        """Number of chains held so far."""
        return len(next(iter(self._rows.values()))) if self._rows else 0

    def draw(self, num: int, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Choose which chains to continue.

        Returns:
            Slots, shape (num,), long: the chain's place in the buffer, or -1 for a fresh start; and the states of the
            chains that go on, in the order of the slots that are not -1. While the buffer is not full every chain is
            fresh, and no slot is drawn twice.
        """
        slots = torch.full((num,), -1, dtype=torch.long)
        if len(self) == self.capacity:
            chosen = torch.randperm(self.capacity, generator=generator)[:num]
            restart = torch.rand(len(chosen), generator=generator) < self.restart_rate
            slots[: len(chosen)] = torch.where(restart, -1, chosen)
        kept = slots[slots >= 0]
        return slots, {name: rows[kept] for name, rows in self._rows.items()}

    def put(self, slots: Tensor, states: dict[str, Tensor], generator: torch.Generator | None = None) -> None:
        """Store chains: continued ones in their slot, fresh ones in new or random places.

        Args:
            slots: As returned by `draw`, shape (num,).
            states: Tensors of shape (num, ...), by name.
            generator: Source of the random places.
        """
        states = {name: value.detach().cpu() for name, value in states.items()}
        for name, rows in self._rows.items():
            rows[slots[slots >= 0]] = states[name][slots >= 0]
        fresh = {name: value[slots < 0] for name, value in states.items()}
        num_fresh = int((slots < 0).sum())
        room = min(self.capacity - len(self), num_fresh)
        for name, value in fresh.items():
            self._rows[name] = (
                torch.cat([self._rows[name], value[:room]]) if name in self._rows else value[:room].clone()
            )
        left = num_fresh - room
        if left:
            # Continued slots of this very round must not be overwritten by its restarts.
            free = torch.ones(len(self), dtype=torch.bool)
            free[slots[slots >= 0]] = False
            places = free.nonzero().squeeze(1)
            places = places[torch.randperm(len(places), generator=generator)[:left]]
            for name, rows in self._rows.items():
                rows[places] = fresh[name][room : room + len(places)]

    def state_dict(self) -> dict[str, Tensor]:
        """Return the stored chains, for saving."""
        return dict(self._rows)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self._rows = {name: rows.clone() for name, rows in state.items()}
