"""The learning rate over a run."""

from __future__ import annotations

from denoising_ebm.config import TrainingConfig

#: Warm-up ends by this share of the budget, so that short runs are not all warm-up.
MAX_WARMUP = 0.05


def learning_rate(training: TrainingConfig, images_seen: int, progress: float) -> float:
    """Return the learning rate of the next step: linear warm-up, constant, linear fall to (nearly) zero.

    Args:
        training: `learning_rate`, `warmup_images`, `cooldown` and `batch_size`.
        images_seen: Training images so far.
        progress: Share of the budget that is used up, 0..1.
    """
    seen = images_seen + training.batch_size
    warmup = max(seen / max(training.warmup_images, 1), progress / MAX_WARMUP)
    cooldown = (1 - progress) / training.cooldown if training.cooldown else 1.0
    return training.learning_rate * min(1.0, warmup) * min(1.0, max(cooldown, 1e-3))
