"""The learning rate over a run, against its definition."""

from __future__ import annotations

import pytest

from denoising_ebm.config import TrainingConfig, TrainingStage
from denoising_ebm.training.lr import learning_rate, stage_schedule

TRAINING = TrainingConfig(learning_rate=2e-3, batch_size=10, warmup_images=100, cooldown=0.25)


@pytest.mark.parametrize(
    ("images_seen", "progress", "share"),
    [
        (0, 0.0, 0.1),  # the first batch ends a tenth of the warm-up
        (40, 0.001, 0.5),
        (90, 0.001, 1.0),
        (90, 0.75, 1.0),
        (5000, 0.875, 0.5),  # half of the cooldown
        (5000, 1.0, 1e-3),
    ],
)
def test_warm_up_constant_and_cooldown(images_seen: int, progress: float, share: float) -> None:
    assert learning_rate(TRAINING, images_seen, progress) == pytest.approx(2e-3 * share)


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.1), (0.025, 0.5), (0.05, 1.0), (0.5, 1.0)])
def test_warm_up_ends_by_a_twentieth_of_the_budget_however_few_images_it_is(progress: float, share: float) -> None:
    assert learning_rate(TRAINING, 0, progress) == pytest.approx(2e-3 * share)


def test_without_warm_up_and_cooldown_it_is_constant() -> None:
    training = TrainingConfig(learning_rate=2e-3, warmup_images=0, cooldown=0.0)
    assert [learning_rate(training, 0, progress) for progress in (0.0, 0.5, 1.0)] == pytest.approx([2e-3] * 3)


def test_a_stage_with_its_own_rate_has_its_own_schedule() -> None:
    stages = [TrainingStage("denoising", 0.5), TrainingStage("contrastive", 0.25), TrainingStage("energy", 0.25, 1e-4)]
    assert stage_schedule(TRAINING, stages, 0, 0.375) == pytest.approx((2e-3, 0.5))
    # The two without share theirs: one warm-up, one cooldown.
    assert stage_schedule(TRAINING, stages, 1, 0.6) == pytest.approx((2e-3, 0.8))
    assert stage_schedule(TRAINING, stages, 2, 0.75) == pytest.approx((1e-4, 0.0))
    assert stage_schedule(TRAINING, stages, 2, 1.0) == pytest.approx((1e-4, 1.0))
    assert learning_rate(TRAINING, 90, 0.875, 1e-4) == pytest.approx(0.5e-4)
