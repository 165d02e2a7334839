"""One opinion within a detector: a density on some of the features, or discriminants between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from denoising_ebm.ood.densities import (
    Density,
    DensityName,
    Mahalanobis,
    Mixture,
    Neighbours,
    Principal,
    Single,
    TwoSided,
)
from denoising_ebm.ood.features import Family
from denoising_ebm.ood.lda import FisherDiscriminants
from denoising_ebm.ood.regression import Conditional


@dataclass(frozen=True)
class Member:
    """One opinion within a detector: a density on some of the features, or discriminants between them.

    Attributes:
        families: The features it looks at.
        density: `single`, `two-sided`, `mahalanobis`, `mixture`, `neighbours`, `conditional` or `discriminants`.
        given: Features by which the last two tell what is usual for such an image.
        share: Share of the variance that the kept principal components have together (not for the first two and the last).
        residual: Add what lies outside the kept components as one more column (`mahalanobis`, `mixture`, `neighbours`).
        components: Gaussians of a `mixture`.
        neighbour: Which neighbour `neighbours` measures the distance to.
        blocks: Of `discriminants`: families whose columns make a block each; all together if there are none.
        ridge: Of `discriminants`: what is added to the covariance, in units of the features' variance.
        shift: Of `discriminants`: size of the shifts expected of odd images, in standard deviations.
    """

    families: tuple[Family, ...]
    density: DensityName = "mahalanobis"
    given: tuple[Family, ...] = ()
    share: float = 0.999
    residual: bool = False
    components: int = 8
    neighbour: int = 5
    blocks: tuple[tuple[Family, ...], ...] = ()
    ridge: float = 5.0
    shift: float = 1.0

    def __post_init__(self) -> None:
        if not self.families:
            raise ValueError("a member of a detector needs one or more families of features")
        if bool(self.given) != (self.density in ("conditional", "discriminants")):
            raise ValueError(f"density {self.density} " + ("takes no `given`" if self.given else "needs `given`"))
        if not set().union(*self.blocks) <= set(self.families):
            raise ValueError(f"blocks of a member must be made of its families ({', '.join(self.families)})")
        if not (self.ridge > 0 and self.shift > 0):
            raise ValueError(f"ridge and shift of a member must be > 0, got {self.ridge:g} and {self.shift:g}")

    def build(self) -> Opinion:
        """Return the opinion, not fitted yet."""
        density: Density | Conditional | FisherDiscriminants
        if self.density == "discriminants":
            density = FisherDiscriminants(ridge=self.ridge, shift=self.shift)
        elif self.density == "conditional":
            density = Conditional(self.share)
        elif self.density == "single":
            density = Single()
        elif self.density == "two-sided":
            density = TwoSided()
        elif self.density == "mahalanobis":
            density = Principal(Mahalanobis(), self.share, self.residual)
        elif self.density == "mixture":
            density = Principal(Mixture(self.components), self.share, self.residual)
        else:
            density = Principal(Neighbours(self.neighbour), self.share, self.residual)
        return Opinion(self, density)


class Opinion:
    """What a member says of images, once it is fitted."""

    def __init__(self, member: Member, density: Density | Conditional | FisherDiscriminants) -> None:
        self.member, self.density = member, density

    def fit(self, columns: Mapping[Family, Tensor], altered: Mapping[Family, Tensor]) -> Opinion:
        """Fit to features.

        Args:
            columns: Of normal images, for each family shape `(n, columns)`.
            altered: For `discriminants`: of m images as they are, then of each alteration, shape `(1 + kinds, m, columns)`.

        Raises:
            ValueError: If altered images are needed and missing, or features do not fit each other.
        """
        features, given = self.member.families, self.member.given
        if isinstance(self.density, FisherDiscriminants):
            if not altered:
                raise ValueError("discriminants need features of altered images, as from `altered_columns`")
            normal = table_of(columns, features), table_of(columns, given)
            changed = table_of(altered, features), table_of(altered, given)
            self.density.fit(*normal, *changed, self._blocks(columns))
        elif isinstance(self.density, Conditional):
            self.density.fit(table_of(columns, features), table_of(columns, given))
        else:
            self.density.fit(table_of(columns, features))
        return self

    def _blocks(self, columns: Mapping[Family, Tensor]) -> list[list[int]]:
        """Return where the columns of each block stand in the table of all."""
        places: dict[Family, range] = {}
        for family in self.member.families:
            start = places[next(reversed(places))].stop if places else 0
            places[family] = range(start, start + columns[family].shape[1])
        return [[i for family in block for i in places[family]] for block in self.member.blocks]

    def score(self, columns: Mapping[Family, Tensor]) -> Tensor:
        """Return how odd images with these features are, float64 `(n,)`."""
        if isinstance(self.density, Conditional | FisherDiscriminants):
            return self.density.score(table_of(columns, self.member.families), table_of(columns, self.member.given))
        scores = self.density.score(table_of(columns, self.member.families))
        # A distance spreads by factors: its logarithm is nearly normal, and compares with other members'.
        return scores.clamp_min(1e-12).log() if self.member.density in ("mahalanobis", "neighbours") else scores


def table_of(columns: Mapping[Family, Tensor], families: Sequence[Family]) -> Tensor:
    """Return the columns of some families side by side."""
    return torch.cat([columns[family] for family in families], dim=-1)
