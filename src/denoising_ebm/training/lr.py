"""The learning rate over a run."""

from __future__ import annotations

from collections.abc import Sequence

from denoising_ebm.config import TrainingConfig, TrainingStage

#: Warm-up ends by this share of the budget, so that short runs are not all warm-up.
MAX_WARMUP = 0.05


def stage_schedule(
    training: TrainingConfig, stages: Sequence[TrainingStage], index: int, progress: float
) -> tuple[float, float]:
    """Return the largest learning rate of a stage, and the share of its schedule that is used up.

    A stage with a rate of its own has a schedule of its own; neighbouring stages without one share theirs.

    Args:
        training: `learning_rate`.
        stages: Of the run.
        index: Of the stage.
        progress: Share of the run's budget that is used up, 0..1.
    """
    first = last = index
    if stages[index].learning_rate is None:
        while first > 0 and stages[first - 1].learning_rate is None:
            first -= 1
        while last + 1 < len(stages) and stages[last + 1].learning_rate is None:
            last += 1
    total = sum(stage.fraction for stage in stages)
    start = sum(stage.fraction for stage in stages[:first]) / total
    end = sum(stage.fraction for stage in stages[: last + 1]) / total
    share = (progress - start) / (end - start)
    return stages[index].learning_rate or training.learning_rate, min(1.0, max(0.0, share))


def learning_rate(training: TrainingConfig, images_seen: int, progress: float, largest: float | None = None) -> float:
    """Return the learning rate of the next step: linear warm-up, constant, linear fall to (nearly) zero.

    Args:
        training: `learning_rate`, `warmup_images`, `cooldown` and `batch_size`.
        images_seen: Training images so far.
        progress: Share of the budget that is used up, 0..1.
        largest: In place of `training.learning_rate`.
    """
    seen = images_seen + training.batch_size
    warmup = max(seen / max(training.warmup_images, 1), progress / MAX_WARMUP)
    cooldown = (1 - progress) / training.cooldown if training.cooldown else 1.0
    return (largest or training.learning_rate) * min(1.0, warmup) * min(1.0, max(cooldown, 1e-3))
