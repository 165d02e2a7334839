"""Everything that is said of a set of samples at once: Fréchet distance (FD), precision and recall, FID and KID."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from denoising_ebm.quality.extractors import EfficientNetLite0Features, FeatureExtractor
from denoising_ebm.quality.features import cached_features
from denoising_ebm.quality.frechet import FeatureStatistics, frechet_distance
from denoising_ebm.quality.inception import InceptionFeatures
from denoising_ebm.quality.kid import subset_kernel_distance
from denoising_ebm.quality.prdc import prdc


@dataclass(frozen=True)
class Quality:
    """Figures of a set of samples; None where they were not asked for.

    Attributes:
        frechet_distance: Of the offline features; no FID, which means Inception's.
        precision: Share of samples near a reference image; for this and the next three see `quality.prdc.PRDC`.
        recall: Share of reference images near a sample.
        density: Mean number of reference balls around a sample, over k.
        coverage: Share of reference images with a sample within their ball.
        fid: Fréchet Inception distance.
        kid: Kernel Inception distance, mean over subsets; unbiased, so about 0 for images of the reference's distribution.
        kid_deviation: Its standard deviation over the subsets.
    """

    frechet_distance: float
    precision: float
    recall: float
    density: float
    coverage: float
    fid: float | None = None
    kid: float | None = None
    kid_deviation: float | None = None


class FidelityEvaluator:
    """Measures samples against one set of reference images, whose features are computed once.

    Args:
        reference: uint8, shape `(m, c, h, w)`.
        extractor: Offline features; EfficientNet-lite0 if None.
        inception: Also compute FID and KID: True with the weights of the installed package, or the file with them.
        device: Of the networks.
        cache: Folder for Inception's features of the reference; the user's cache if None.

    Raises:
        ValueError: If the weights of an extractor are missing.
    """

    def __init__(
        self,
        reference: Tensor,
        *,
        extractor: FeatureExtractor | None = None,
        inception: bool | str | Path = False,
        device: torch.device | str = "cpu",
        cache: Path | None = None,
    ) -> None:
        self.extractor = extractor if extractor is not None else EfficientNetLite0Features().to(device)
        self.inception: InceptionFeatures | None = None
        if inception is not False:
            self.inception = InceptionFeatures(None if inception is True else inception).to(device)
            self._inception_features = cached_features(reference, self.inception, folder=cache)
            self._inception_statistics = FeatureStatistics.from_features(self._inception_features)
        self.count = len(reference)
        self._features = self.features(reference)
        self._statistics = FeatureStatistics.from_features(self._features)

    def features(self, images: Tensor, *, batch_size: int = 256) -> Tensor:
        """Return the offline features of uint8 images, on the CPU."""
        return torch.cat([self.extractor(chunk).cpu() for chunk in torch.split(images, batch_size)])

    def frechet_distance(self, images: Tensor) -> float:
        """Return the Fréchet distance of uint8 images to the reference, on the offline features."""
        return frechet_distance(FeatureStatistics.from_features(self.features(images)), self._statistics)

    def __call__(self, images: Tensor) -> Quality:
        """Measure uint8 images, shape `(n, c, h, w)`, n > 5."""
        features = self.features(images)
        overlap = prdc(features, self._features)
        fid = kid = deviation = None
        if self.inception is not None:
            seen = self.inception(images).cpu()
            fid = frechet_distance(FeatureStatistics.from_features(seen), self._inception_statistics)
            kid, deviation = subset_kernel_distance(seen, self._inception_features)
        return Quality(
            frechet_distance=frechet_distance(FeatureStatistics.from_features(features), self._statistics),
            precision=overlap.precision,
            recall=overlap.recall,
            density=overlap.density,
            coverage=overlap.coverage,
            fid=fid,
            kid=kid,
            kid_deviation=deviation,
        )

    def protocol(self, samples: int, split: str) -> str:
        """Return the line that belongs beside every figure: extractor, counts, reference split, and a warning if due."""
        line = f"{self.extractor.name}; {samples:,} samples against {self.count:,} images of the {split} split"
        if self.inception is not None:
            line += f"; FID and KID: {self.inception.name}"
        few, features = min(samples, self.count), self.extractor.num_features
        if self.inception is not None:
            features = max(features, self.inception.num_features)
        if few < features:
            line += (
                f". WARNING: {few:,} images are fewer than the {features:,} features, so the Fréchet distances "
                "are far too large and compare at equal counts only"
            )
        return line
