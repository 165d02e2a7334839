"""Groups of images that are no independent evidence: frames of a scene, shots of a burst, a patient's slices.

Frames of scenes that a detector was fitted to look more normal to it than any new scene will. What is promised must
therefore count scenes, not frames: fitting and calibration share no group, and each group has one say (see `conformal`).
Groups are given by the names of files, or found: near copies are images of which one, moved by a few pixels, shows the
same detail as the other.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from denoising_ebm.datasets.images import ImageSet, image_hashes
from denoising_ebm.ood.blur import gaussian_blur

#: Rules beside a pattern and labels.
RULES = ("auto", "none", "folder", "prefix")
#: Side in pixels at which images are compared, at most.
_SIDE = 32
#: Images that may be near copies of one: those whose spectra of amplitudes are most alike, if at least so much.
_NEIGHBOURS, _ALIKE = 6, 0.8
#: Least correlations, of the images and of their detail, of near copies. In 5,000 images of Fashion-MNIST, most of which
#: have a lookalike, 2 % pass, and in CIFAR-10, which has some copies, 0.1 %.
_STRICT = (0.95, 0.95)
#: The same where at least `_MANY` of the images are near copies by the strict ones: the set was taken in bursts, and its
#: noisier shots belong to them.
_LENIENT, _MANY = (0.9, 0.85), 0.2


@dataclass(frozen=True)
class Groups:
    """Which images belong together.

    Attributes:
        labels: Number of each image's group, from 0 on, int64, shape `(n,)`.
        by: What they were found by, in plain words.
        lookalikes: How many images have near copies, which were not taken as groups, see `find_groups`.
    """

    labels: Tensor
    by: str = "each image alone"
    lookalikes: int = 0

    @property
    def count(self) -> int:
        """Number of groups."""
        return len(set(self.labels.tolist()))

    @property
    def shared(self) -> int:
        """Number of images that are not alone in their group."""
        return int((self.labels.bincount()[self.labels] > 1).sum()) if len(self.labels) else 0


def find_groups(images: ImageSet, rule: str | Sequence[Hashable] = "auto") -> Groups:
    """Return the groups of images.

    Args:
        images: The images, with their names.
        rule: `auto` finds near copies, and what the names of their files say if these agree. Images that look alike for
            another reason stand each for itself: where more than half of all are near copies of one another (parts before a
            fixed camera), or near copies are scattered over the numbers in the names of files, as those of a burst are not.
            `none`: each image stands for itself; `folder`; `prefix`: the name without the number at its end
            (`scene0_001.png`: scene0); a regular expression with one group in parentheses, searched for in each name; or a
            label for each image.

    Raises:
        ValueError: If the rule is no valid pattern or does not match every name, or labels are not as many as images.
    """
    if not isinstance(rule, str):
        if len(rule) != len(images):
            raise ValueError(f"groups must be as many as images, got {len(rule)} for {len(images)} images")
        return Groups(_numbers([label.item() if isinstance(label, Tensor) else label for label in rule]), "labels")
    if rule == "none":
        return Groups(torch.arange(len(images)))
    if rule != "auto":
        return Groups(_numbers([_label_by(rule)(name) for name in images.names]), f"{_WORDS.get(rule, 'pattern')}")
    copies = Groups(near_copies(images.pixels), "near copies")
    prefixes = _numbers([_prefix(name) for name in images.names])
    if _agree(copies.labels, prefixes):
        return Groups(_joined(len(images), _stars(copies.labels) + _stars(prefixes)), "near copies and names of files")
    largest = int(copies.labels.bincount().max()) if len(images) else 0
    if copies.shared and (largest > len(images) / 2 or _scattered(copies.labels, images.names)):
        return Groups(torch.arange(len(images)), lookalikes=copies.shared)
    return copies if copies.shared else Groups(copies.labels)


@dataclass(frozen=True, eq=False)
class Split:
    """Images for fitting and for calibration, which share no group.

    Attributes:
        fitted: Those to fit to, in random order but for the images of a group, which stand together.
        calibration: Those for calibration.
        groups: Numbers of the groups of the latter.
        fitted_groups: How many groups the former are of.
        by: What groups were found by.
        alike: How many images are not alone in their group.
        lookalikes: How many images have near copies, but stand each for itself.
        left_out: Calibration images that were given, and are left out since their group is fitted to.
    """

    fitted: ImageSet
    calibration: ImageSet
    groups: Tensor
    fitted_groups: int
    by: str
    alike: int
    lookalikes: int = 0
    left_out: int = 0


def split_by_groups(
    images: ImageSet, calibration: ImageSet | None, rule: str | Sequence[Hashable] = "auto", *, seed: int = 0
) -> Split:
    """Return images for fitting and for calibration by whole groups.

    Args:
        images: Normal images.
        calibration: Those for calibration; if None a fifth of the groups of `images`.
        rule: As for `find_groups`, over both sets.
        seed: Of the order.

    Raises:
        ValueError: If the rule does not fit, all images are of one group, or all those for calibration are of groups that
            are fitted to.
    """
    count = len(images)
    found = find_groups(images if calibration is None else _both(images, calibration), rule)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    # In the order in which the first image of each group comes; without groups that is the order itself.
    order = order[_numbers(found.labels[order].tolist()).sort(stable=True).indices]
    labels = found.labels[order]
    about: dict[str, Any] = {"by": found.by, "alike": found.shared, "lookalikes": found.lookalikes}
    if calibration is not None:
        theirs = found.labels[count:]
        kept = ~torch.isin(theirs, labels)
        if len(theirs) and not bool(kept.any()):
            raise ValueError(
                f"the calibration images are all of groups that are fitted to (by {found.by}): no false-alarm rate could be "
                "promised"
            )
        others = calibration.take(kept.nonzero()[:, 0])
        return Split(
            images.take(order), others, theirs[kept], len(set(labels.tolist())), left_out=int((~kept).sum()), **about
        )
    if found.count < 2:
        raise ValueError(
            f"all {count:,} images are of one group (by {found.by}), which fitting and calibration would share: no "
            "false-alarm rate could be promised; give images of other scenes too, or groups none if each stands for itself"
        )
    ranks = _numbers(labels.tolist())
    held = ranks < max(1, found.count // 5)
    num_fitted = len(set(ranks[~held].tolist()))
    return Split(images.take(order[~held]), images.take(order[held]), ranks[held], num_fitted, **about)


def _both(images: ImageSet, others: ImageSet) -> ImageSet:
    return ImageSet(torch.cat([images.pixels, others.pixels]), (*images.names, *others.names))


def check_rule(rule: str) -> None:
    """Refuse a rule that is none, before any work.

    Raises:
        ValueError: If it is neither one of `RULES` nor a regular expression with one group.
    """
    if rule not in RULES:
        _label_by(rule)


def near_copies(pixels: Tensor) -> Tensor:
    """Return the number of the cluster of near copies that each image is in, from 0 on, int64, shape `(n,)`.

    Candidates are images whose spectra of amplitudes, which no shift changes, are most alike. Two are near copies if at some
    shift of up to an eighth of the side both the images and their detail (differences of two blurs, which is where
    lookalikes differ) correlate as `_STRICT` says; clusters are what such pairs link. Equal images are near copies.

    Args:
        pixels: uint8, shape `(n, channels, height, width)`.
    """
    # Equal images are one here: a set that holds each twice was not taken in bursts.
    numbers = _numbers(image_hashes(pixels).tolist())
    firsts = torch.tensor(
        list(dict(zip(reversed(numbers.tolist()), reversed(range(len(pixels))), strict=True)).values())
    )
    count = len(firsts)
    if count < 2:
        return numbers
    first, second, whole, detail = _candidates(pixels[firsts.sort().values])

    def clusters(least: tuple[float, float]) -> Tensor:
        alike = (whole >= least[0]) & (detail >= least[1])
        return _joined(count, list(zip(first[alike].tolist(), second[alike].tolist(), strict=True)))

    found = clusters(_STRICT)
    share = float((found.bincount()[found] > 1).double().mean())
    return (clusters(_LENIENT) if share >= _MANY else found)[numbers]


def _candidates(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return pairs of images and their largest correlations over shifts, of the images and of their detail."""
    parts = [_prepared(part) for part in torch.split(pixels, 2048)]
    grays, details = (torch.cat(tables) for tables in zip(*parts, strict=True))
    spectra = _amplitudes(details)
    pairs = set()
    for start in range(0, len(spectra), 1024):
        alike = spectra[start : start + 1024] @ spectra.mT
        rows = torch.arange(len(alike))
        alike[rows, rows + start] = -1
        values, places = alike.topk(min(_NEIGHBOURS, len(spectra) - 1))
        for row, column in (values >= _ALIKE).nonzero().tolist():
            other = int(places[row, column])
            pairs.add((min(start + row, other), max(start + row, other)))
    first, second = torch.tensor(sorted(pairs), dtype=torch.int64).reshape(-1, 2).unbind(1)
    whole, detail = (
        torch.cat([torch.empty(0), *(_correlations(table[i], table[j]) for i, j in _in_parts(first, second))])
        for table in (grays, details)
    )
    return first, second, whole, detail


def _in_parts(first: Tensor, second: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(torch.split(first, 2048), torch.split(second, 2048), strict=True) if len(first) else iter(())


def _prepared(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return gray images around 0 and their detail, both fading towards the edges, shape `(n, side, side)`."""
    gray = pixels.float().mean(1, keepdim=True)
    if max(gray.shape[2:]) > _SIDE:
        gray = F.adaptive_avg_pool2d(gray, min(_SIDE, *gray.shape[2:]))
    detail = gaussian_blur(gray, 0.5) - gaussian_blur(gray, 1.5)
    ramps = [torch.hann_window(side + 2, periodic=False)[1:-1].sqrt() for side in gray.shape[2:]]
    window = ramps[0][:, None] * ramps[1]
    return (gray - gray.mean((2, 3), keepdim=True))[:, 0] * window, detail[:, 0] * window


def _amplitudes(images: Tensor) -> Tensor:
    """Return the amplitudes of the low frequencies, as vectors around 0 of length 1."""
    reach = min(8, min(images.shape[1:]) // 2)
    spectrum = torch.fft.rfft2(images).abs()[:, :, : reach + 1]
    vectors: Tensor = torch.cat([spectrum[:, : reach + 1], spectrum[:, -reach:]], dim=1).flatten(1)
    vectors = vectors - vectors.mean(1, keepdim=True)
    normed: Tensor = vectors / vectors.norm(dim=1, keepdim=True).clamp_min(1e-6)
    return normed


def _correlations(first: Tensor, second: Tensor) -> Tensor:
    """Return the largest correlation of each pair over shifts of up to an eighth of the side."""
    product = torch.fft.irfft2(torch.fft.rfft2(first).conj() * torch.fft.rfft2(second), s=first.shape[1:])
    for dim in (1, 2):
        reach = max(1, first.shape[dim] // 8)
        near = torch.arange(-reach, reach + 1) % first.shape[dim]
        product = product.index_select(dim, near)
    norms = first.flatten(1).norm(dim=1) * second.flatten(1).norm(dim=1)
    largest: Tensor = product.flatten(1).amax(1) / norms.clamp_min(1e-6)
    return largest


# -- names --------------------------------------------------------------------------------------------------------------

_WORDS = {"folder": "folders", "prefix": "names of files"}


def _label_by(rule: str) -> Callable[[str], str]:
    if rule == "folder":
        return lambda name: str(PurePosixPath(name).parent)
    if rule == "prefix":
        return _prefix
    try:
        pattern = re.compile(rule)
    except re.error as error:
        raise ValueError(f"groups: {rule!r} is neither one of {', '.join(RULES)} nor a pattern: {error}") from None
    if pattern.groups != 1:
        raise ValueError(
            f"groups: {rule!r} is neither one of {', '.join(RULES)} nor a pattern with one group in parentheses"
        )

    def label(name: str) -> str:
        found = pattern.search(name)
        if found is None or found[1] is None:
            raise ValueError(f"groups: the pattern {rule!r} does not match the name {name!r}")
        return found[1]

    return label


def _prefix(name: str) -> str:
    """Return a name without its suffix and the number before it; rows of a file of tables are the file's."""
    stem = name.partition("#")[0] if "#" in name else re.sub(r"\.[A-Za-z]\w*$", "", name)
    return re.sub(r"[\W_]*\d+$", "", stem)


def _agree(copies: Tensor, prefixes: Tensor) -> bool:
    """Return whether near copies mostly have the same prefix, as few pairs by chance would, and there are many of them."""
    clusters: dict[int, Counter[int]] = {}
    for cluster, prefix in zip(copies.tolist(), prefixes.tolist(), strict=True):
        clusters.setdefault(cluster, Counter())[prefix] += 1
    shared = [counts for counts in clusters.values() if counts.total() > 1]
    images = sum(counts.total() for counts in shared)
    if not images or images < _MANY * len(copies):
        return False
    by_chance = float((prefixes.bincount().double() / len(prefixes)).square().sum())
    same = sum(max(counts.values()) for counts in shared) / images
    return by_chance < 0.5 and same >= 0.9


def _scattered(labels: Tensor, names: Sequence[str]) -> bool:
    """Return whether files were numbered, and images of a cluster lie as far apart in that order as any two do.

    Two of n numbers lie n / 3 apart by chance. Few clusters tell nothing, and rows of tables are often shuffled.
    """
    numbers = [re.search(r"(\d+)\.\w+$", name) for name in names]
    if not all(numbers) or any("#" in name for name in names):
        return False
    keys = [(_prefix(name), int(found[1])) for name, found in zip(names, numbers, strict=True) if found]
    places = {i: rank for rank, i in enumerate(sorted(range(len(keys)), key=keys.__getitem__))}
    members: dict[int, list[int]] = {}
    for i, label in enumerate(labels.tolist()):
        members.setdefault(label, []).append(places[i])
    shared = [sorted(ranks) for ranks in members.values() if len(ranks) > 1]
    if sum(map(len, shared)) < 20:
        return False
    total = 0.0
    for ranks in shared:
        count = len(ranks)
        # The mean distance of two of them, of sorted numbers.
        distance = sum((2 * i - count + 1) * rank for i, rank in enumerate(ranks)) / (count * (count - 1) / 2)
        total += count * distance
    return total / sum(map(len, shared)) > 0.25 * len(names)


# -- graphs -------------------------------------------------------------------------------------------------------------


def _numbers(labels: Sequence[Hashable]) -> Tensor:
    """Return the labels as numbers in the order of their first appearance."""
    numbers: dict[Hashable, int] = {}
    return torch.tensor([numbers.setdefault(label, len(numbers)) for label in labels], dtype=torch.int64)


def _stars(labels: Tensor) -> list[tuple[int, int]]:
    """Return pairs that link the images of each group to its first."""
    first: dict[int, int] = {}
    pairs = [(first.setdefault(label, i), i) for i, label in enumerate(labels.tolist())]
    return [(i, j) for i, j in pairs if i != j]


def _joined(count: int, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Return the connected components of a graph, numbered in the order of their first member."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    return _numbers(labels.tolist())
