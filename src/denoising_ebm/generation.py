"""Images drawn in batches, by any sampler, with the states of the chains on the way."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from denoising_ebm.model import DenoisingEBM, Sampler
from denoising_ebm.samplers.langevin import Callback, ChainState


@dataclass(frozen=True)
class Generated:
    """Drawn images on the CPU.

    Attributes:
        images: About in [-1, 1], shape `(n, channels, height, width)`.
        semantic: The semantic images h(z^K) that they started from, same shape; None without a semantic stage.
    """

    images: Tensor
    semantic: Tensor | None


@torch.no_grad()
def generate(
    model: DenoisingEBM,
    num: int,
    *,
    sampler: Sampler = "two-stage",
    steps: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    watch: Callback | None = None,
    advance: Callable[[int], object] | None = None,
) -> Generated:
    """Draw `num` images; batch i of them is drawn with the seed `seed + i`, so sets to be compared need seeds further apart.

    Args:
        model: The model.
        num: Number of images, >= 1.
        sampler: As for `DenoisingEBM.sample`.
        steps: As for `DenoisingEBM.sample`.
        seed: Seed of the first batch.
        batch_size: Images that are drawn at once, >= 1.
        watch: Called with the states of the first batch's chains after every step.
        advance: Called with the number of images after each step.

    Raises:
        ValueError: If a number is out of range or the sampler is unknown.
    """
    for name, value in (("the number of images", num), ("batch_size", batch_size), ("steps", steps)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    sampling = model.config.sampling
    if steps is not None:
        sampling = dataclasses.replace(sampling, texture_steps=steps)
    images: list[Tensor] = []
    semantic: list[Tensor] = []
    for batch, start in enumerate(range(0, num, batch_size)):
        count = min(batch_size, num - start)

        def callback(state: ChainState, batch: int = batch, count: int = count) -> None:
            if watch is not None and batch == 0:
                watch(state)
            if advance is not None:
                advance(count)

        if sampler == "two-stage":
            sample = model.two_stage(count, seed=seed + batch, sampling=sampling, callback=callback)
            images.append(sample.images.cpu())
            semantic.append(sample.semantic.cpu())
        else:
            drawn = model.sample(count, sampler=sampler, steps=steps, seed=seed + batch, callback=callback)
            images.append(drawn.cpu())
    return Generated(torch.cat(images), torch.cat(semantic) if semantic else None)


def num_steps(model: DenoisingEBM, sampler: Sampler, steps: int | None) -> int:
    """Return the number of steps that `generate` takes for an image, with both stages counted."""
    sampling = model.config.sampling
    if sampler == "two-stage":
        return sampling.semantic_steps + (steps or sampling.texture_steps)
    if sampler == "annealed":
        return steps or sampling.texture_steps
    return steps or 200 if sampler == "mala" else (steps or 20) - 1


class Trajectory:
    """A callback that keeps what the first chains look like on their way (paper, figure 5).

    Latent states are decoded, every fifth (oftener in short chains); pixel states are kept about ten times.

    Args:
        model: Whose decoder shows the latent states.
        chains: Number of chains to keep, >= 1, of the first batch.
    """

    def __init__(self, model: DenoisingEBM, chains: int = 8) -> None:
        self._decode = model.decode
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
