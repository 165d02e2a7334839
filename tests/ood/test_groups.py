"""Groups by near copies and by names, on real images and on bursts made of them; fitting and calibration share none."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from denoising_ebm import load_images
from denoising_ebm.datasets.images import ImageSet
from denoising_ebm.ood.groups import Groups, check_rule, find_groups, near_copies, split_by_groups
from support import random_pixels


@pytest.fixture(scope="module")
def images() -> Tensor:
    return load_images("fashion-mnist", limit=600).pixels


def burst(pixels: Tensor, shots: int, *, shift: int = 1, noise: float = 3.0, brightness: float = 10.0) -> Tensor:
    """Return so many shots of each image: moved, brighter or darker, with noise; shape `(n * shots, ...)`."""
    generator, size = torch.Generator().manual_seed(0), pixels.shape[-1]
    padded = torch.nn.functional.pad(pixels.float(), (shift,) * 4, "replicate")
    found = []
    for image in padded:
        for _ in range(shots):
            top, left = torch.randint(0, 2 * shift + 1, (2,), generator=generator).tolist()
            shot = image[:, top : top + size, left : left + size]
            light = brightness * (2 * torch.rand((), generator=generator) - 1)
            found.append(shot + light + noise * torch.randn(shot.shape, generator=generator))
    return torch.stack(found).round().clamp(0, 255).to(torch.uint8)


def named(pixels: Tensor, names: list[str]) -> ImageSet:
    return ImageSet(pixels, tuple(names))


def test_few_of_images_taken_one_by_one_are_near_copies(images: Tensor) -> None:
    """Also of Fashion-MNIST, where most images have a lookalike."""
    found = Groups(near_copies(images))
    assert found.shared < 0.02 * len(images) and int(found.labels.bincount().max()) <= 4


@pytest.mark.parametrize("options", [{}, {"shift": 2, "noise": 6.0, "brightness": 30.0}], ids=["mild", "strong"])
def test_shots_of_a_burst_are_near_copies(images: Tensor, options: dict[str, float]) -> None:
    shots = burst(images[:60], 5, **options)  # type: ignore[arg-type]
    labels = near_copies(shots).view(60, 5)
    together = (labels == labels[:, :1]).double().mean()
    assert float(together) > 0.97
    # Hardly any two scenes are taken for one.
    assert len(set(labels[:, 0].tolist())) >= 57


def test_equal_images_are_near_copies_and_make_no_burst_of_the_others(images: Tensor) -> None:
    alone = near_copies(images[:200])
    twice = near_copies(torch.cat([images[:200], images[:200].flip(0)]))
    assert torch.equal(twice[:200], alone) and torch.equal(twice[200:], alone.flip(0))
    black = torch.zeros(3, 1, 32, 32, dtype=torch.uint8)
    assert near_copies(black).tolist() == [0, 0, 0] and near_copies(black[:1]).tolist() == [0]
    assert near_copies(black[:0]).tolist() == []


def test_names_that_agree_with_near_copies_complete_them(images: Tensor) -> None:
    """The second half of each scene shows something else, which pixels cannot know."""
    shots = torch.stack([*burst(images[:20], 4).split(4), *burst(images[20:40], 4).split(4)]).view(2, 20, 4, 1, 32, 32)
    pixels = shots.transpose(0, 1).reshape(-1, 1, 32, 32)
    names = [f"scene{scene}_{i:03d}.png" for scene in range(20) for i in range(8)]
    found = find_groups(named(pixels, names))
    assert found.labels.tolist() == [i // 8 for i in range(160)] and found.by == "near copies and names of files"
    # One prefix for all, or one for each, says nothing.
    for others in ([f"img_{i}.png" for i in range(160)], [f"{i}a.png" for i in range(160)]):
        found = find_groups(named(pixels, others))
        assert found.by == "near copies" and 35 <= found.count <= 45


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("none", [0, 1, 2, 3, 4]),
        ("folder", [0, 0, 1, 1, 0]),
        ("prefix", [0, 1, 2, 2, 0]),
        (r"^(.)/", [0, 0, 1, 1, 0]),
        (["x", "y", "x", "z", "z"], [0, 1, 0, 2, 2]),
        (torch.tensor([7, 7, 0, 0, 7]), [0, 0, 1, 1, 0]),
    ],
)
def test_groups_by_names_and_labels(rule: str, expected: list[int]) -> None:
    names = ["a/a1.png", "a/b-12.jpg", "b/a1.png", "b/a_2.png", "a/a0003.png"]
    assert find_groups(named(random_pixels(5), names), rule).labels.tolist() == expected


def test_rules_that_do_not_fit_are_refused() -> None:
    images = named(random_pixels(3), ["a1.png", "b2.png", "c.png"])
    with pytest.raises(ValueError, match=r"the pattern '\(\\\\d\)' does not match the name 'c.png'"):
        find_groups(images, r"(\d)")
    for rule in (r"\d", "(a)(b)", "folders"):
        with pytest.raises(ValueError, match="nor a pattern with one group in parentheses"):
            check_rule(rule)
    with pytest.raises(ValueError, match="neither one of auto, none, folder, prefix nor a pattern: "):
        check_rule("(")
    with pytest.raises(ValueError, match="groups must be as many as images, got 2 for 3 images"):
        find_groups(images, [1, 2])


def test_splits_are_by_whole_groups(images: Tensor) -> None:
    pixels = burst(images[:50], 4)
    split = split_by_groups(named(pixels, [str(i) for i in range(200)]), None)
    fitted, held = ({int(name) // 4 for name in part.names} for part in (split.fitted, split.calibration))
    assert not fitted & held and len(split.fitted) + len(split.calibration) == 200
    assert len(set(split.groups.tolist())) in (9, 10) and split.alike == 200
    # Images of a group stand together: inner splits of the fit cut one at most.
    places = [int(name) // 4 for name in split.fitted.names]
    assert sum(a != b for a, b in itertools.pairwise(places)) == len(fitted) - 1


def test_without_groups_the_split_is_a_random_fifth() -> None:
    images = named(random_pixels(50), [str(i) for i in range(50)])
    split = split_by_groups(images, None, "none", seed=3)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(3)).tolist()
    assert [int(name) for name in split.calibration.names] == order[:10]
    assert [int(name) for name in split.fitted.names] == order[10:]
    assert (split.fitted_groups, split.alike, split.left_out) == (40, 0, 0)


def test_calibration_images_of_fitted_groups_are_left_out(images: Tensor) -> None:
    shots = burst(images[:40], 3)
    fit = named(shots.view(40, 3, 1, 32, 32)[:, :2].flatten(0, 1), [f"fit/{i}" for i in range(80)])
    near, new = shots[2::3][:10], images[100:110]
    split = split_by_groups(fit, named(torch.cat([near, new]), [f"new/{i}" for i in range(20)]))
    assert split.calibration.names == tuple(f"new/{i}" for i in range(10, 20)) and split.left_out == 10
    with pytest.raises(ValueError, match=r"all of groups that are fitted to \(by near copies\): no false-alarm rate"):
        split_by_groups(fit, named(near, [f"new/{i}" for i in range(10)]))
    with pytest.raises(ValueError, match=r"all 8 images are of one group \(by folders\)"):
        split_by_groups(named(images[:8], list("abcdefgh")), None, "folder")


def test_images_of_one_scene_stand_each_for_itself(images: Tensor) -> None:
    """As parts before a fixed camera: all are alike, and so will be those to come."""
    found = find_groups(named(torch.cat([burst(images[:1], 30), images[1:11]]), [f"img{i}.png" for i in range(40)]))
    assert found.count == 40 and found.lookalikes == 30 and found.shared == 0


def test_lookalikes_scattered_over_numbered_files_stand_each_for_itself(images: Tensor) -> None:
    """Parts in one of a few poses, as against bursts, whose shots have numbers side by side."""
    shots, order = burst(images[:20], 5), torch.randperm(100, generator=torch.Generator().manual_seed(0))
    names = [f"{i:03d}.png" for i in range(100)]
    assert find_groups(named(shots, names)).count <= 22
    found = find_groups(named(shots[order], names))
    assert found.count == 100 and found.lookalikes >= 95
    # Names without numbers, rows of tables and few near copies tell nothing.
    for others in ([f"{name}.x.png" for name in names], [f"a.parquet#{i}" for i in range(100)]):
        assert find_groups(named(shots[order], others)).count <= 22
