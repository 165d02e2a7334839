"""Samples class by class: which classes a model makes, and how good each of them is.

A model without labels makes images without labels; a linear discriminant on the features of labelled images names them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from denoising_ebm.quality.kid import kernel_distance

#: Images of a class that a distance needs at least.
MIN_IMAGES = 10


@dataclass(frozen=True)
class ClassQuality:
    """One class of a set of samples.

    Attributes:
        name: Of the class.
        share: Of the samples, named by the classifier.
        real_share: Of the real images, named by the same classifier.
        kernel_distance: Of the class's samples to its real images; None for fewer than `MIN_IMAGES`.
    """

    name: str
    share: float
    real_share: float
    kernel_distance: float | None


class ClassEvaluator:
    """Names images by their features, and measures each class.

    Args:
        features: Of labelled training images, shape `(n, d)`.
        labels: Their classes, n of them, of at least two kinds.
        shrinkage: Share of the identity in the covariance of the linear discriminant.

    Raises:
        ValueError: If an image has no label, or all have the same.
    """

    def __init__(self, features: Tensor, labels: Sequence[str | None], *, shrinkage: float = 0.01) -> None:
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

        _check_labels(features, labels)
        if len(set(labels)) < 2:
            raise ValueError("all images have the same label; distances within classes need several")
        self._classifier = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage)
        self._classifier.fit(features.double().numpy(), np.array(labels, dtype=str))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, sorted."""
        return tuple(str(name) for name in self._classifier.classes_)

    def predict(self, features: Tensor) -> list[str]:
        """Name images by their features, shape `(n, d)`."""
        return [str(name) for name in self._classifier.predict(features.double().numpy())]

    def accuracy(self, features: Tensor, labels: Sequence[str | None]) -> float:
        """Return the share of images, with features `(n, d)`, that get their own label.

        Raises:
            ValueError: If an image has no label, or one of a class that is not known.
        """
        _check_labels(features, labels)
        unknown = sorted({str(label) for label in labels} - set(self.classes))
        if unknown:
            raise ValueError(f"class {unknown[0]!r} is not among those of the training images")
        return float(np.mean([found == label for found, label in zip(self.predict(features), labels, strict=True)]))

    def __call__(self, samples: Tensor, real: Tensor) -> list[ClassQuality]:
        """Measure samples, features `(n, d)`, against real images, features `(m, d)`, class by class."""
        found, expected = (np.array(self.predict(features)) for features in (samples, real))
        results = []
        for name in self.classes:
            ours, theirs = found == name, expected == name
            few = min(ours.sum(), theirs.sum()) < MIN_IMAGES
            distance = None if few else kernel_distance(samples[ours], real[theirs])
            results.append(ClassQuality(name, float(ours.mean()), float(theirs.mean()), distance))
        return results


def _check_labels(features: Tensor, labels: Sequence[str | None]) -> None:
    if not labels or any(label is None for label in labels):
        raise ValueError("images have no labels, which distances within classes need")
    if len(features) != len(labels):
        raise ValueError(f"need one label an image, got {len(labels)} for {len(features)}")
