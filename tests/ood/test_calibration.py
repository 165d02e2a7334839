"""Promises by groups and by ways of storing, on simulated scores whose rates are known."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from denoising_ebm.ood.calibration import ENOUGH, Calibration, Scores
from denoising_ebm.ood.conformal import check_rate, p_values

LOSSLESS, JPEG = 1, 6


def test_each_group_has_one_say() -> None:
    """Groups of 1, 2 and 4 images: counted by hand."""
    calibration = torch.tensor([1.0, 0.0, 3.0, 2.0, 2.0, 4.0, 5.0])
    groups = torch.tensor([5, 2, 2, 9, 9, 9, 9])
    p = p_values(calibration, torch.tensor([-1.0, 1.0, 2.0, 4.5, 6.0]), groups=groups)
    expected = torch.tensor([1 + 1 + 1 + 1, 1 + 1 + 0.5 + 1, 1 + 0.5 + 1, 1 + 0.25, 1]).double() / 4
    torch.testing.assert_close(p, expected)
    alone = p_values(calibration, torch.tensor([-1.0, 2.0, 6.0]), groups=torch.arange(7))
    torch.testing.assert_close(alone, p_values(calibration, torch.tensor([-1.0, 2.0, 6.0])))
    with pytest.raises(ValueError, match=r"groups must have shape \(7,\), got \(2,\)"):
        p_values(calibration, calibration, groups=torch.arange(2))


@pytest.mark.parametrize("alpha", [0.1, 0.3])
def test_the_rate_is_kept_for_images_of_new_groups(alpha: float, generator: torch.Generator) -> None:
    """Scores of a group share most of their variance; groups are of 1 to 30 images, the larger ones more anomalous."""
    by_groups, by_images, trials = 0, 0, 3000
    for _ in range(trials):
        sizes = torch.randint(1, 31, (20,), generator=generator)
        level = torch.randn(20, generator=generator) + sizes / 10
        groups = torch.arange(20).repeat_interleave(sizes)
        scores = level[groups] + 0.1 * torch.randn(len(groups), generator=generator)
        # The last group is new, and one of its images at random is judged.
        new, known = scores[groups == 19][:1], groups < 19
        by_groups += int(p_values(scores[known], new, groups=groups[known]) <= alpha + 1e-9)
        by_images += int(p_values(scores[known], new) <= alpha + 1e-9)
    # Above the promise with a chance of at most 1e-4.
    assert by_groups <= stats.binom(trials, alpha).ppf(1 - 1e-4)
    # Not by flagging nothing: 19 + 1 groups of one image each would give alpha exactly.
    assert by_groups >= 0.6 * alpha * trials
    # Images taken one by one count another share, here a smaller one: large groups, which are anomalous, weigh more.
    assert by_images != by_groups


def test_near_copies_of_few_scenes_break_a_promise_that_counts_images(generator: torch.Generator) -> None:
    by_groups, by_images, trials = 0, 0, 2000
    for _ in range(trials):
        level = torch.randn(10, generator=generator)
        groups = torch.arange(9).repeat_interleave(20)
        scores = level[groups] + 0.05 * torch.randn(180, generator=generator)
        new = level[9:]
        by_groups += int(p_values(scores, new, groups=groups) <= 0.05)
        by_images += int(p_values(scores, new) <= 0.05)
    # Nine scenes cannot promise .05 and flag nothing; 180 frames taken one by one seem to.
    assert by_groups == 0 and by_images > stats.binom(trials, 0.05).ppf(1 - 1e-6)
    with pytest.raises(ValueError, match=r"needs at least 19 calibration groups, there are 9"):
        check_rate(0.05, 9, "groups")


def mixed(count: int, num_jpeg: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scores and kinds of images of which some are JPEG, whose scores are larger by 2."""
    kinds = torch.full((count,), LOSSLESS)
    kinds[:num_jpeg] = JPEG
    return torch.randn(count, generator=generator) + 2.0 * (kinds == JPEG), kinds


def test_the_rate_is_kept_for_each_way_of_storing(generator: torch.Generator) -> None:
    hits, pooled, trials = {LOSSLESS: 0, JPEG: 0}, 0, 400
    for _ in range(trials):
        values, kinds = mixed(200, 60, generator)
        calibration = Calibration(Scores.of(values, kinds=kinds))
        scores, new = mixed(20, 10, generator)
        for kind in hits:
            hits[kind] += int((calibration.p_values(scores, new)[new == kind] <= 0.05 + 1e-9).sum())
        pooled += int((calibration.p_values(scores)[new == JPEG] <= 0.05 + 1e-9).sum())
    for kind, num in {LOSSLESS: 140, JPEG: 60}.items():
        allowed = math.floor(0.05 * (num + 1) + 1e-9)
        # Ten images share a calibration set: beta-binomial, of which the normal bound at 4.5 standard errors.
        each = stats.betabinom(10, allowed, num + 1 - allowed)
        assert abs(hits[kind] - trials * each.mean()) < 4.5 * math.sqrt(trials * each.var())
    assert pooled > 1.5 * hits[JPEG]


def test_copies_stand_for_their_kind_alone() -> None:
    values = torch.arange(30).double()
    images = Scores.of(values, kinds=torch.full((30,), LOSSLESS))
    copies = Scores.of(values + 100, torch.arange(30), torch.full((30,), JPEG))
    calibration = Calibration(images, copies)
    scores = torch.tensor([50.0, 50.0, 50.0, 500.0])
    p = calibration.p_values(scores, torch.tensor([LOSSLESS, JPEG, 0, JPEG]))
    torch.testing.assert_close(p * 31, torch.tensor([1.0, 31.0, 1.0, 1.0]).double())
    assert calibration.covers(JPEG) and not calibration.covers(2) and not calibration.covers(0)
    few = Calibration(images, Scores.of(*(t[: ENOUGH - 1] for t in (copies.values, copies.groups, copies.kinds))))
    assert not few.covers(JPEG)
    torch.testing.assert_close(few.p_values(scores, torch.full((4,), JPEG)), few.p_values(scores))


def test_above_all_of_its_kind_the_smaller_p_value_counts() -> None:
    """So that few images of a kind do not hide what is anomalous among all."""
    kinds = torch.tensor([LOSSLESS] * 180 + [JPEG] * 20)
    calibration = Calibration(Scores.of(torch.arange(200).double(), kinds=kinds))
    p = calibration.p_values(torch.tensor([500.0, 185.5]), torch.tensor([JPEG, JPEG]))
    torch.testing.assert_close(p, torch.tensor([1 / 201, 15 / 21]).double())


def test_tensors_are_read_back_and_older_files_too() -> None:
    calibration = Calibration(Scores.of(torch.rand(5).double(), torch.tensor([0, 0, 1, 2, 2]), torch.ones(5).long()))
    again = Calibration.from_tensors(calibration.tensors())
    assert torch.equal(again.images.groups, calibration.images.groups) and again.images.num_groups == 3
    old = Calibration.from_tensors({"calibration": calibration.images.values})
    assert old.images.num_groups == 5 and len(old.copies.values) == 0 and not old.covers(LOSSLESS)
    with pytest.raises(ValueError, match=r"groups and kinds must have shape \(5,\), got \(2,\)"):
        Calibration.from_tensors(calibration.tensors() | {"calibration.groups": torch.zeros(2).long()})
