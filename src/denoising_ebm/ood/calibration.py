"""What a detector's p-values compare with: scores of normal images, their groups, and how they were stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from denoising_ebm.ood.conformal import p_values

#: Groups of one kind from which p-values for that kind are counted among these alone: enough for a rate of .05.
ENOUGH = 19


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of normal images.

    Attributes:
        values: Float64, shape `(n,)`.
        groups: Number of each image's group, int64, shape `(n,)`.
        kinds: How each was stored, as a number of `image_storage.KINDS`, int64, shape `(n,)`; 0 where unknown.
    """

    values: Tensor
    groups: Tensor
    kinds: Tensor

    @classmethod
    def of(cls, values: Tensor, groups: Tensor | None = None, kinds: Tensor | None = None) -> Self:
        """Return scores of images each a group of its own, or of unknown kinds, where these are None.

        Raises:
            ValueError: If groups or kinds are not as many.
        """
        count = len(values)
        groups = torch.arange(count) if groups is None else groups
        kinds = torch.zeros(count, dtype=torch.int64) if kinds is None else kinds
        if groups.shape != (count,) or kinds.shape != (count,):
            raise ValueError(
                f"groups and kinds must have shape ({count},), got {tuple(groups.shape)} and {tuple(kinds.shape)}"
            )
        return cls(values, groups, kinds)

    @property
    def num_groups(self) -> int:
        """Number of groups."""
        return len(set(self.groups.tolist()))

    def joined(self, other: Scores) -> Scores:
        """Return both, groups of the same number being one."""
        mine, theirs = ((part.values, part.groups, part.kinds) for part in (self, other))
        return Scores(*(torch.cat(pair) for pair in zip(mine, theirs, strict=True)))

    def of_kind(self, kind: int) -> Scores:
        """Return those of images stored in one way."""
        chosen = self.kinds == kind
        return Scores(self.values[chosen], self.groups[chosen], self.kinds[chosen])

    def p_values(self, scores: Tensor) -> Tensor:
        """Return the conformal p-values of new scores."""
        return p_values(self.values, scores, groups=self.groups)


def _no_scores() -> Scores:
    return Scores.of(torch.empty(0, dtype=torch.float64))


@dataclass(frozen=True, eq=False)
class Calibration:
    """Scores of calibration images, and of compressed copies of them if compression counts as harmless.

    Attributes:
        images: Scores of the images.
        copies: Scores of copies, in the groups of their images.
    """

    images: Scores = field(default_factory=_no_scores)
    copies: Scores = field(default_factory=_no_scores)

    def covers(self, kind: int) -> bool:
        """Return whether there are enough images of a kind to promise a rate for that kind alone."""
        return kind > 0 and self.images.joined(self.copies).of_kind(kind).num_groups >= ENOUGH

    def p_values(self, scores: Tensor, kinds: Tensor | None = None) -> Tensor:
        """Return conformal p-values, float64, shape `(m,)`.

        For an image stored in a way that enough calibration images (or copies) were, they are counted among these alone
        (Mondrian conformal prediction, Vovk et al., 2005): the rate holds for each kind, whatever the mixture of new
        images. Above all of its kind, where no smaller value can be had from these, it is that among all images if smaller.

        Args:
            scores: Scores of new images.
            kinds: How these were stored, as numbers of `image_storage.KINDS`; unknown if None.
        """
        p = self.images.p_values(scores)
        everything = self.images.joined(self.copies)
        for kind in [] if kinds is None else sorted(set(kinds.tolist())):
            if self.covers(kind):
                chosen = kinds == kind
                own = everything.of_kind(kind)
                among = own.p_values(scores[chosen])
                top = scores[chosen].double().cpu() > own.values.max()
                p[chosen] = torch.where(top, torch.minimum(among, p[chosen]), among)
        return p

    def tensors(self) -> dict[str, Tensor]:
        """Return all of it as tensors, to be kept."""
        parts = {"calibration": self.images} | ({"copies": self.copies} if len(self.copies.values) else {})
        return {
            place: tensor
            for name, part in parts.items()
            for place, tensor in ((name, part.values), (f"{name}.groups", part.groups), (f"{name}.kinds", part.kinds))
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild what `tensors` returned; files of before hold no groups, kinds and copies.

        Raises:
            KeyError: If the scores are missing.
            ValueError: If groups or kinds are not as many as scores.
        """
        found = []
        for name in ("calibration", "copies"):
            values = tensors[name] if name == "calibration" else tensors.get(name, torch.empty(0, dtype=torch.float64))
            found.append(Scores.of(values, tensors.get(f"{name}.groups"), tensors.get(f"{name}.kinds")))
        return cls(*found)
