r"""From an anomaly map to regions, with a promise: the rate of normal photos in which anything is marked.

Let M_1..M_n be the maxima of the maps of n normal calibration photos, none of which had a part in fitting. A value v at any
place of a new map has the p-value

    p(v) = (1 + #{i : M_i >= v}) / (n + 1),

and the mask at rate alpha marks the pixels with p <= alpha. Since p falls in v, a pixel is marked if and only if the map's
maximum M is, p(M) <= alpha. If the new photo is as normal as the others, M is exchangeable with M_1..M_n, and p(M) <= alpha
has a chance of at most alpha (conformal p-values: Vovk, Gammerman & Shafer, 2005). So

    P(any pixel is marked in a normal photo) <= alpha:

the rate is one per photo and covers every region in it, however many pixels it has and however they depend on each other.
Taking the maximum is how such families of tests are controlled (Westfall & Young, 1993). In a photo with a defect, a region
beside the defect has no such promise by itself, but its p-value is still that of the maximum of a normal photo.

Sets of some 30 photos cannot spare any for calibration. There K models are fitted, each without one fold of the photos, and
the maximum M_i is that under the model without photo i. With v_k the new map's values under the model without fold k,

    p(v) = (1 + sum_k #{i in fold k : M_i >= v_k}) / (n + 1)

(cross-conformal: Vovk, 2015; CV+: Barber et al., 2021). This is at most alpha with a chance of at most `cross_rate`, 2 alpha
for leave-one-out; in practice it is about alpha. The chance is again that of any pixel: each v_k is at most the maximum of
its map, and the p-value of these maxima at most that of any pixel.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from denoising_ebm.datasets.images import content_hash
from denoising_ebm.ood.conformal import check_rate, flagged, p_values


@dataclass(frozen=True)
class Region:
    """Marked pixels that touch each other, by a side or a corner."""

    number: int  #: From 1 on, the most anomalous first.
    p_value: float  #: Of its peak; at most the rate of the mask.
    peak: float  #: Largest value of the map in it.
    position: tuple[int, int]  #: Row and column of the peak.
    area: int  #: Number of pixels.
    box: tuple[int, int, int, int]  #: Top, left, bottom, right; the last two are one past the region.
    centroid: tuple[float, float]  #: Mean row and column.


def smallest_rate(num_calibration: int) -> float:
    """Return the smallest rate that so many calibration photos (or groups) can promise, 1 / (n + 1)."""
    return 1 / (num_calibration + 1)


def promise(num_calibration: int, unit: str = "normal photos") -> str:
    """Return what so many calibration photos can promise: "20 normal photos can promise rates from 0.048 on"."""
    rate = smallest_rate(num_calibration)
    digits = 1 - math.floor(math.log10(rate))
    shown = math.ceil(rate * 10**digits - 1e-9) / 10**digits  # rounded up: a lower rate could not be promised
    return f"{num_calibration} {unit} can promise rates from {shown:g} on"


def threshold(maxima: Tensor, alpha: float, *, groups: Tensor | None = None) -> float:
    """Return the smallest float32 value that is flagged: a pixel is marked if its value is at least that.

    Args:
        maxima: Maxima of the maps of normal photos that had no part in fitting, shape `(n,)`.
        alpha: Share of normal photos in which anything may be marked, in (0, 1).
        groups: Number of the group of each of these photos, shape `(n,)`, see `conformal.p_values`.

    Raises:
        ValueError: If `alpha` is not in (0, 1) or too small for so few photos or groups, or a maximum is not finite.
    """
    maxima = _finite(maxima, "calibration maxima").double()
    num = len(maxima) if groups is None else len(np.unique(groups))
    unit = "photos" if groups is None else "groups of photos"
    _check_promise(alpha, num, unit)
    # All values between two neighbouring maxima have one p-value, that of the upper one.
    steps = torch.from_numpy(np.unique(maxima))
    p_above = p_values(maxima, torch.cat([steps[1:], torch.full((1,), math.inf).double()]), groups=groups)
    last_normal = float(steps[flagged(p_above, alpha, num, unit)][0])
    above = np.float32(last_normal)
    return float(np.nextafter(above, np.float32(np.inf)) if above <= last_normal else above)


def find_regions(
    anomaly_map: Tensor,
    calibration_maxima: Tensor,
    alpha: float,
    *,
    min_area: int = 1,
    groups: Tensor | None = None,
) -> tuple[Tensor, list[Region]]:
    """Return the mask at rate `alpha` and its regions, the most anomalous first.

    Args:
        anomaly_map: Large = anomalous, float32, shape `(height, width)`.
        calibration_maxima: As `threshold`.
        alpha: As `threshold`.
        min_area: Smaller regions are left out, of the mask too. The promise stays: fewer pixels are marked.
        groups: As `threshold`.

    Returns:
        The mask, bool, shape `(height, width)`, and the regions.

    Raises:
        ValueError: As `threshold`, or if the map has another shape or a value is not finite, or `min_area` < 1.
    """
    values = _map(anomaly_map, 2)
    mask = values >= threshold(calibration_maxima, alpha, groups=groups)
    mask, regions = _regions(mask, values, min_area)
    p = p_values(calibration_maxima, torch.tensor([peak for _, peak, *_ in regions]).double(), groups=groups).tolist()
    return mask, [Region(i + 1, p[i], *region[1:]) for i, region in enumerate(regions)]


def cross_rate(alpha: float, num_photos: int, num_folds: int) -> float:
    """Return the rate that is guaranteed where cross-conformal p-values of folds of equal size are at most `alpha`.

    It is 2 alpha + min(2 (1 - 1/K) / (n/K + 1), (1 - K/n) / (K + 1)) (Barber et al., 2021, theorem 4), so 2 alpha for K = n.
    The rate itself is about alpha, unless the model depends much on single photos.
    """
    n, k = num_photos, num_folds
    return min(1.0, 2 * alpha + min(2 * (1 - 1 / k) / (n / k + 1), (1 - k / n) / (k + 1)))


def cross_p_values(calibration: Tensor, folds: Tensor, scores: Tensor) -> Tensor:
    """Return cross-conformal p-values (CV+), float64, in (0, 1].

    Args:
        calibration: For each of n normal photos its score under the model that was fitted without its fold, shape `(n,)`.
        folds: Fold of each of these photos, 0..K-1, int64, shape `(n,)`.
        scores: New scores under each of the K models, shape `(K, ...)`: of photos, or of the pixels of a map.

    Returns:
        Shape `scores.shape[1:]`.

    Raises:
        ValueError: If shapes do not fit, a fold is empty or a score is NaN.
    """
    if folds.shape != calibration.shape or folds.ndim != 1:
        raise ValueError(f"folds must be as many as calibration scores, got {tuple(folds.shape)}")
    sizes = torch.bincount(folds, minlength=len(scores))
    if len(sizes) != len(scores) or len(sizes) == 0 or int(sizes.min()) == 0:
        raise ValueError(
            f"folds must be numbered 0..{len(scores) - 1} as scores has models, got sizes {sizes.tolist()}"
        )
    above = torch.zeros(scores.shape[1:], dtype=torch.float64)
    for fold, own in enumerate(scores):
        p = p_values(calibration[folds == fold], own.flatten()).reshape(own.shape)
        above += p * (sizes[fold] + 1) - 1
    return (1 + above.round()) / (len(folds) + 1)


def find_regions_cross(
    maps: Tensor, calibration_maxima: Tensor, folds: Tensor, alpha: float, *, min_area: int = 1
) -> tuple[Tensor, list[Region]]:
    """Return mask and regions as `find_regions`, with cross-conformal p-values; peaks are those of the mean map.

    Args:
        maps: The new photo's map under each of the K models, float32, shape `(K, height, width)`.
        calibration_maxima: For each normal photo the maximum of its map under the model without its fold, shape `(n,)`.
        folds: Fold of each of these photos, 0..K-1, shape `(n,)`.
        alpha: Share of normal photos in which anything may be marked, about; `cross_rate` says what is guaranteed.
        min_area: Smaller regions are left out.

    Raises:
        ValueError: As `find_regions` and `cross_p_values`.
    """
    values = _map(maps, 3)
    _check_promise(alpha, len(calibration_maxima), "photos")
    p = cross_p_values(_finite(calibration_maxima, "calibration maxima"), folds, values)
    mask, regions = _regions(flagged(p, alpha, len(calibration_maxima)), values.mean(0), min_area, -p)
    return mask, [Region(i + 1, -float(region[0]), *region[1:]) for i, region in enumerate(regions)]


def content_hash_of(pixels: Tensor) -> int:
    """Return a 64-bit hash of a photo's pixels, their type and shape, which fits int64: equal for equal photos."""
    return int.from_bytes(bytes.fromhex(content_hash(pixels)[:16]), "big", signed=True)


def refuse_known(calibration: Mapping[str, int], fitted: Collection[int]) -> None:
    """Refuse calibration photos that are among those of fitting, which look more normal than any new photo.

    Args:
        calibration: Hash (`content_hash_of`) of each photo by its name.
        fitted: Hashes of the photos of fitting.

    Raises:
        ValueError: If a photo is known; it names the first ones.
    """
    fitted = set(fitted)
    known = [name for name, number in calibration.items() if number in fitted]
    if known:
        names = ", ".join(known[:3]) + (", ..." if len(known) > 3 else "")
        raise ValueError(
            f"{len(known)} of {len(calibration)} calibration photos are among those of fitting ({names}): "
            "no false-alarm rate could be promised"
        )


_Found = tuple[float, float, tuple[int, int], int, tuple[int, int, int, int], tuple[float, float]]


def _regions(mask: Tensor, values: Tensor, min_area: int, order: Tensor | None = None) -> tuple[Tensor, list[_Found]]:
    """Return the mask without small regions, and for each region its strength by `order` and the fields of `Region`.

    The peak is where `order` is largest, and of several such places where `values` is.
    """
    from scipy import ndimage

    if min_area < 1:
        raise ValueError(f"min_area must be >= 1, got {min_area}")
    labels, _ = ndimage.label(mask.numpy(), structure=np.ones((3, 3)))
    areas = np.bincount(labels.ravel())
    keep = areas >= min_area
    keep[0] = False
    boxes: list[tuple[slice, slice]] = ndimage.find_objects(labels)
    found = [
        _region(labels[box] == number, values.numpy()[box], (values if order is None else order).numpy()[box], box)
        for number, box in enumerate(boxes, 1)
        if keep[number]
    ]
    return torch.from_numpy(keep[labels]), sorted(found, key=lambda region: region[:2], reverse=True)


def _region(
    inside: npt.NDArray[np.bool_],
    values: npt.NDArray[np.float32],
    order: npt.NDArray[np.float64],
    box: tuple[slice, slice],
) -> _Found:
    rows, columns = inside.nonzero()
    top, left = box[0].start, box[1].start
    best = np.lexsort((values[inside], order[inside]))[-1]
    position = (top + int(rows[best]), left + int(columns[best]))
    centroid = (top + float(rows.mean()), left + float(columns.mean()))
    strength, peak = float(order[inside][best]), float(values[inside][best])
    return strength, peak, position, len(rows), (top, left, box[0].stop, box[1].stop), centroid


def _check_promise(alpha: float, num: int, unit: str) -> None:
    try:
        check_rate(alpha, num, unit)
    except ValueError as error:
        if not 0 < alpha < 1 or num < 1:
            raise
        raise ValueError(f"{error}: {promise(num, f'normal {unit}')}") from None


def _map(values: Tensor, ndim: int) -> Tensor:
    shape = {2: "(height, width)", 3: "(models, height, width)"}[ndim]
    if values.ndim != ndim or values.numel() == 0:
        raise ValueError(f"a map must have shape {shape}, got {tuple(values.shape)}")
    return _finite(values, "a map").float()


def _finite(values: Tensor, name: str) -> Tensor:
    values = values.detach().cpu()
    if bad := int((~values.isfinite()).sum()):
        raise ValueError(f"{name} must be finite, {bad} values are not")
    return values
