"""The detector inside pytorch-ood: its benchmarks, metrics and loaders take it as one of their own.

The only module that needs the extra `denoising-ebm[pytorch-ood]`, and through it torchvision.
"""

from __future__ import annotations

from typing import Any, Self

import pytorch_ood.api
import torch
from pytorch_ood.api import DetectorInfo, Paper, RequiresFittingException, Task
from torch import Tensor

from denoising_ebm.datasets.images import to_uint8
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.ood.detector import Detector


class DenoisingEBMDetector(pytorch_ood.api.Detector):  # type: ignore[misc]
    """A `pytorch_ood.api.Detector` around a `Detector`.

    It needs no classifier and no labels; images whose label is negative, which pytorch-ood keeps for OOD, take no part in
    fitting.

    Args:
        detector: Fitted or not; or a model, for the default detector.
        low: Value of black in the images that pytorch-ood hands over; 0 for those of torchvision's `ToTensor`.
        high: Value of white.

    Raises:
        ValueError: If `low` is not below `high`.
    """

    requires_fit = True
    info = DetectorInfo(
        tasks=frozenset({Task.CLASSIFICATION}),
        paper=Paper(
            title="How to Construct Energy for Images? Denoising Autoencoder Can Be Energy Based Model",
            venue="arXiv",
            year=2023,
            url="https://arxiv.org/abs/2303.03887",
        ),
    )

    def __init__(self, detector: Detector | DenoisingEBM, *, low: float = 0.0, high: float = 1.0) -> None:
        super().__init__()
        if not low < high:
            raise ValueError(f"low must be below high, got {low:g} and {high:g}")
        self.detector = Detector(detector) if isinstance(detector, DenoisingEBM) else detector
        self.low, self.high = low, high

    def fit(self, data_loader: Any) -> Self:
        """Fit to the images of a loader of batches `(x, y)` or `x`; a fifth of them, by seed 0, calibrates p-values.

        Raises:
            ValueError: If there are too few images, or of another shape than the model's.
        """
        batches = []
        for batch in data_loader:
            x, y = batch[:2] if isinstance(batch, list | tuple) else (batch, None)
            batches.append(self._pixels(x if y is None else x[y >= 0]))
        self.detector.fit(torch.cat(batches) if batches else torch.empty(0, dtype=torch.uint8))
        return self

    def predict(self, x: Tensor) -> Tensor:
        """Return the score of each image, shape `(batch,)`, float32 on the device of `x`; larger = more anomalous.

        Raises:
            RequiresFittingException: If the detector is not fitted.
            ValueError: If images are of another shape than the model's, or have values beyond `low` and `high`.
        """
        if not self.detector.is_fitted:
            raise RequiresFittingException()
        return self.detector.score(self._pixels(x)).float().to(x.device)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.detector.model.device

    def to(self, device: str | torch.device) -> Self:
        """Move the model."""
        self.detector.model.to(device)
        return self

    def _pixels(self, x: Tensor) -> Tensor:
        x = x.detach().float().cpu()
        slack = 0.1 * (self.high - self.low)  # bicubic filters overshoot
        if len(x) and not (x.min() >= self.low - slack and x.max() <= self.high + slack):
            raise ValueError(
                f"images have values from {x.min():.3g} to {x.max():.3g}, outside of low={self.low:g} and "
                f"high={self.high:g}: leave out the loader's Normalize, or give the low and high of black and white"
            )
        return to_uint8(2 * (x - self.low) / (self.high - self.low) - 1)
