"""What was found in a photo."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from denoising_ebm.inspection.regions import Region


@dataclass(frozen=True, eq=False)
class InspectedPhoto:
    """A photo and what was found in it.

    Attributes:
        name: Path relative to the source.
        x: The photo in [-1, 1], shape `(channels, height, width)`.
        kind: Folder of its kind; None where folders do not say.
        is_normal: Whether that is a kind of normal photos; None where unknown.
        notes: What was decided as it was read, and what of its mask is not repaired.
        score: Largest value of the map.
        p_value: Of the score.
        map: Large = anomalous, float32, shape `(height, width)`.
        mask: What is marked at the promised rate, bool, shape `(height, width)`.
        regions: The parts of the mask, the most anomalous first.
        truth: Where it is known to be defective, bool, shape `(height, width)`; None if that is not known.
        repaired: The photo with marked regions drawn anew; None if that was not asked for.
    """

    name: str
    x: Tensor
    kind: str | None
    is_normal: bool | None
    notes: tuple[str, ...]
    score: float
    p_value: float
    map: Tensor
    mask: Tensor
    regions: list[Region]
    truth: Tensor | None = None
    repaired: Tensor | None = None

    @property
    def flagged(self) -> bool:
        """Whether anything is marked."""
        return bool(self.regions)
