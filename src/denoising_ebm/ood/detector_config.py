"""What a detector computes, and what was one group among the images that it was fitted to: kept in `detector.json`."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import Literal

from denoising_ebm.config import MAX_FACTOR
from denoising_ebm.ood.anomaly_maps import AnomalyMapConfig
from denoising_ebm.ood.features import FAMILIES, NETWORK_FEATURES, Family, FeatureConfig

#: Changes of normal images that count as normal.
Harmless = Literal["jpeg"]

_SUMS: tuple[Family, ...] = tuple(family for family in FAMILIES if family not in NETWORK_FEATURES)


@dataclass(frozen=True)
class DetectorConfig:
    """What a detector computes.

    Attributes:
        features: The features and their noise levels.
        covariates: Families that tell how hard an image is to restore; all features are adjusted for them.
        blocks: Families of each block of discriminants (see `FisherDiscriminants`); one block of all if there are none.
        ridge: Added to the covariance of residuals, in units of their variance.
        shift: Size of the shifts expected of anomalous images, in standard deviations.
        num_corrupted: Normal images that are corrupted in every way of `corruptions.py`.
        harmless: `jpeg`: half of the normal images are compressed, at qualities of 70 to 95, and compressed copies of the
            calibration images keep the false-alarm rate for such images too.
        maps: How anomaly maps are made.
    """

    features: FeatureConfig = field(default_factory=lambda: FeatureConfig(feature_sigmas=(0.05,)))
    covariates: tuple[Family, ...] = ("energy", "noisy-energy")
    blocks: tuple[tuple[Family, ...], ...] = (FAMILIES, (*_SUMS, "latent"), NETWORK_FEATURES)
    ridge: float = 5.0
    shift: float = 1.0
    num_corrupted: int = 100
    harmless: tuple[Harmless, ...] = ()
    maps: AnomalyMapConfig = field(default_factory=AnomalyMapConfig)

    def __post_init__(self) -> None:
        if not self.covariates:
            raise ValueError("detector.covariates must be one or more families of features")
        used = dict.fromkeys(chain(self.covariates, *self.blocks))
        missing = [family for family in used if family not in self.features.families]
        if missing:
            raise ValueError(
                f"detector: {', '.join(missing)} is not among the computed features ({', '.join(self.features.families)})"
            )
        if not (self.ridge > 0 and self.shift > 0):
            raise ValueError(f"detector.ridge and detector.shift must be > 0, got {self.ridge:g} and {self.shift:g}")
        if max(self.ridge, self.shift) > MAX_FACTOR:
            raise ValueError(
                f"detector.ridge and detector.shift must be <= {MAX_FACTOR:g}, got {self.ridge:g} and {self.shift:g}"
            )
        if self.num_corrupted < 1:
            raise ValueError(f"detector.num_corrupted must be >= 1, got {self.num_corrupted}")


@dataclass(frozen=True)
class Grouping:
    """What was one group among the images of a detector.

    Attributes:
        by: What groups were found by.
        fitted: Groups that were fitted to.
        calibrated: Groups of calibration images.
        alike: Images that are not alone in their group.
        lookalikes: Images that have near copies, but stand each for itself, see `find_groups`.
        left_out: Calibration images that were left out, since their group was fitted to.
    """

    by: str = "each image alone"
    fitted: int = 0
    calibrated: int = 0
    alike: int = 0
    lookalikes: int = 0
    left_out: int = 0
