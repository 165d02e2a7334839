"""Is a run still sound? Judged by its figures, its weights, averages and optimizer state, and a loss of fixed images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from denoising_ebm.config import Config
from denoising_ebm.datasets.images import to_float
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.noise import draw_sigmas
from denoising_ebm.training.objectives import Batch, Objective, Reconstruction
from denoising_ebm.utils.seeds import hashed_generator

#: A loss of the fixed images this many times the lowest so far is divergence. In sound runs of every objective the largest
#: ratios were not far above half of it (docs/reliability.md).
MAX_RATIO = 2.0
#: At the end of a run the averages have settled: more than this is a model far from the best that there was.
MAX_LAST_RATIO = 1.5
#: A lower best denoising loss counts as this, under the weights of EDM, with which a network that knows nothing has about 1:
#: of images that are nearly all alike it falls to nearly nothing, and then moves by any factor.
MIN_BEST = 0.1
#: Of the decoder's loss, which is small and follows the codes.
MAX_DECODER_RATIO = 5.0
#: So is a growth of the weights' norm by this factor within about `REFERENCE_STEPS` steps: with a rate that is far too large
#: the loss may fall all the same, slowly and to a bad end.
MAX_GROWTH = 1.5
REFERENCE_STEPS = 100
#: A matrix of weights is not trained to less than this share of its norm within a stretch.
MIN_SHARE = 0.01

#: Images of each kind, held out and of training, whose loss is watched.
NUM_IMAGES = 8

#: Divisors of the learning rate at the first, second and each later divergence in a row: a rate a million times too large is
#: found out in six. The stage ends at the seventh.
DIVISORS = (2.0, 4.0, 16.0)
MAX_IN_A_ROW = 7
#: Sound checks after which divergences are no longer in a row.
RECOVERY_CHECKS = 5
#: A run that threw away more than this share of its steps, or had to go below this factor on its learning rate, may be far
#: from what was asked for: it ends with the exit status of one that diverged.
MAX_LOST = 0.1
MIN_RATE = 1 / 128


@dataclass
class Record:
    """What a run is compared with, and what its divergences led to; saved, so that a resumed run judges the same."""

    best: dict[str, float] = field(default_factory=dict)  #: Lowest losses of the fixed images in this stage.
    norm: float = 0.0  #: Norm of the weights at `norm_step`.
    norm_step: int = 0
    good_checks: int = 0  #: Sound checks since the last divergence or change of the rate.
    in_a_row: int = 0  #: Divergences in a row.
    rate_limit: float = 1.0  #: Factor on the learning rate that it does not exceed again in this stage.
    raised_from: float = 0.0  #: The factor before it was raised again, until that has proved itself; else 0.
    rollbacks: int = 0  #: Divergences of the run.
    lost_steps: int = 0  #: Steps thrown away by them.

    def start_stage(self, step: int, losses: Mapping[str, float], norm: float) -> None:
        """Compare with the weights that a stage begins with; the counts of the run stay."""
        self.best = dict(losses)
        self.norm, self.norm_step = norm, step
        self.good_checks, self.in_a_row, self.rate_limit, self.raised_from = 0, 0, 1.0, 0.0


def tensors_of(values: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Return every tensor of floats in nested dictionaries and sequences, with its path."""
    if isinstance(values, Tensor):
        # Reference energies and log Z are NaN until a model is calibrated, which one in training never is.
        if values.is_floating_point() and values.numel() and name.rpartition(".")[2] not in ("reference", "log_z"):
            yield name, values
    elif isinstance(values, Mapping):
        for key, value in values.items():
            yield from tensors_of(value, f"{name}.{key}" if name else str(key))
    elif isinstance(values, list | tuple):
        for i, value in enumerate(values):
            yield from tensors_of(value, f"{name}.{i}")


def find_not_finite(values: Any) -> str:
    """Return the path of the first tensor in `values` whose norm is not finite; empty if all are.

    A norm is infinite for numbers above 1e19 too, which no weight survives.
    """
    named = list(tensors_of(values))
    by_device: dict[torch.device, list[tuple[str, Tensor]]] = {}
    for name, tensor in named:
        by_device.setdefault(tensor.device, []).append((name, tensor.detach()))
    # One call for all tensors of a device and one number back: a loop would wait for a GPU at each.
    for group in by_device.values():
        finite = torch.stack([norm.float() for norm in torch._foreach_norm([t for _, t in group])]).isfinite()
        if not bool(finite.all()):
            return group[int((~finite).nonzero()[0])][0]
    return ""


def weight_norm(model: nn.Module) -> float:
    """Return the norm of all weights as one vector."""
    return float(torch.stack(torch._foreach_norm([weight.detach() for weight in model.parameters()])).norm())


def find_vanished(now: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> str:
    """Return the name of the first matrix of `now` that lost nearly all of its norm since `before`; empty if none did.

    A network of zeros has a loss that may not be far from the best, and it stays one: its gradients are zero too.
    """
    names = [name for name, tensor in now.items() if tensor.ndim >= 2]
    norms = [torch.stack(torch._foreach_norm([values[name].detach() for name in names])) for values in (now, before)]
    vanished = (norms[0] < MIN_SHARE * norms[1]).nonzero()
    return names[int(vanished[0])] if len(vanished) else ""


def has_grown_moments(
    now: Optimizer, before: Mapping[int, Mapping[str, Tensor]], grad_norm: float, decay: float
) -> bool:
    """Say whether Adam's second moments are larger than gradients can have made them: the weights would stand still.

    They are running means of squared gradients. Over a stretch the squares of norms add up to the square of their sum at
    most.

    Args:
        now: The optimizer at the end of the stretch.
        before: The `state` of its state at the beginning; empty before the first step.
        grad_norm: Mean norm of the gradients in the stretch, before they were clipped.
        decay: Of the second moments.
    """
    moments = list(now.state.values())
    if not moments:
        return False
    old = list(before.values())
    # A stage may train some of the weights only; those that it is the first to train come last and were not there before.
    counts = torch.stack([each["step"] for each in moments])
    counts[: len(old)] -= torch.stack([each["step"] for each in old]) if old else 0
    steps = float(counts.max())
    total, was = (
        float(torch.stack(torch._foreach_norm([each["exp_avg_sq"] for each in values], 1)).sum()) if values else 0.0
        for values in (moments, old)
    )
    # A little more, for rounding.
    return total > 1.01 * (was + (1 - decay) * (steps * grad_norm) ** 2) + 1e-12


def compare_figures(figures: Mapping[str, float], gap_bound: float = math.inf) -> str:
    """Return which mean figures of a stretch are not finite, or which energy gap is beyond its bound; empty if none is."""
    for name, value in figures.items():
        if name != "images_per_second" and not math.isfinite(value):
            return f"{name} is not finite"
    for name in ("energy_gap", "latent_energy_gap"):
        if abs(figures.get(name, 0.0)) > gap_bound:
            return f"{name} is beyond {gap_bound:g}"
    return ""


class Probe:
    """A few images with fixed noise, whose losses tell whether weights still do what they did.

    Held-out images alone would call overfitting a divergence, images of training alone would not notice what holds for them
    only: both must get worse.

    Args:
        held_out: Images kept out of training, uint8; may be empty.
        trained: Images of training, uint8.
        config: Of the run.
        device: Where the model is.
    """

    def __init__(self, held_out: Tensor, trained: Tensor, config: Config, device: torch.device) -> None:
        self._config = config
        self._batches = {
            name: self._draw(pixels[:NUM_IMAGES], key, device)
            for key, (name, pixels) in enumerate({"held-out": held_out, "training": trained}.items())
            if len(pixels)
        }

    def _draw(self, pixels: Tensor, key: int, device: torch.device) -> Batch:
        # On the CPU, so that a run that goes on elsewhere has the same draws.
        generator = hashed_generator(torch.device("cpu"), self._config.training.seed, 3, key)
        x0 = to_float(pixels.cpu())[torch.arange(NUM_IMAGES) % len(pixels)]
        # Evenly over the noise levels of training, for a loss that varies little with the draw.
        levels = draw_sigmas(self._config.noise, 64 * NUM_IMAGES, generator).sort().values[32::64]
        noise = torch.randn(x0.shape, generator=generator)
        return Batch(x0.to(device), levels.to(device), noise.to(device), step=0, generator=generator)

    @torch.no_grad()
    def losses(self, model: DenoisingEBM, objective: Objective) -> dict[str, float]:
        """Return the denoising and decoder losses of held-out and training images, as the objective's stage learns them."""
        by_gradient = objective.name != "denoising" and self._config.energy.denoiser == "gradient"
        measure: Objective = Reconstruction("score" if by_gradient else "denoising", self._config)
        if objective.name == "energy":
            measure = objective
        training = model.training
        model.eval()
        figures: dict[str, Tensor] = {}
        try:
            for name, batch in self._batches.items():
                found = measure(model, batch)
                kinds = [key for key in ("denoising", "decoder") if f"loss_{key}" in found]
                figures |= {f"{name} {key}": found[f"loss_{key}"] for key in kinds}
        finally:
            model.train(training)
        return dict(zip(figures, torch.stack(list(figures.values())).tolist(), strict=True))


def compare_losses(
    losses: Mapping[str, float], best: Mapping[str, float], max_ratio: float = MAX_RATIO, min_best: float = 0.0
) -> str:
    """Return which losses, of held-out *and* of training images, are far worse than the best so far; empty if none is.

    Args:
        losses: By name, as `Probe.losses` gives them.
        best: The lowest so far.
        max_ratio: What is allowed, but for the decoder's.
        min_best: What a lower best denoising loss counts as.
    """
    kinds: dict[str, list[str]] = {}
    for name in losses:
        kinds.setdefault(name.replace("held-out ", "").replace("training ", ""), []).append(name)
    for kind, names in kinds.items():
        limit, least = (MAX_DECODER_RATIO, 0.0) if kind.endswith("decoder") else (max_ratio, min_best)
        # What is not a number is worse than any.
        if not any(
            math.isfinite(losses[name]) and losses[name] <= limit * max(best.get(name, math.inf), least)
            for name in names
        ):
            worst = names[0]
            return f"the loss {worst} is {losses[worst]:.4g}, at best {best.get(worst, math.nan):.4g}"
    return ""
