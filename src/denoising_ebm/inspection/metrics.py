r"""How well maps find defects in photos of any size: image, pixel and region figures as for MVTec AD, with intervals.

Image AUROC; pixel AUROC and average precision; AUPRO, the overlap with each defective region averaged over regions, under
the false-positive rate of normal pixels up to 0.3 (Bergmann et al., 2021); AUPIMO, the recall in each photo where the mean
false-positive rate of normal photos lies in 1e-5..1e-4 (Bertoldo et al., 2024); precision, recall and F1 of what is marked
at the promised rate. Each kind of defect is compared with all normal photos and with the normal pixels around its defects.

No map is kept. Of each photo at most 4,096 values of normal and of defective pixels remain, at even ranks and, for the small
false-positive rates, at ranks that are even in logarithm from the top. Curves are then taken at 4,096 thresholds. That is at
most 130 KB a defective photo and 50 KB a normal one, whatever its size. A value stands for those up to the next, 1/2,048 of
the ranks, so areas move by less than 1e-3: AUROC and AUPRO rise by 1e-4 to 4e-4 where normal values are thinned and those of
few defects are not. Photos of up to 4,096 pixels lose nothing before the thresholds are chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from denoising_ebm.ood.metrics import Interval, Scores, auroc

Floats: TypeAlias = npt.NDArray[np.floating[Any]]

#: Values that are kept of a photo's normal, or defective, pixels, and thresholds of curves.
POINTS = 4096
#: Bootstrap samples that curves are computed of at once: 3 arrays of 8 MiB.
_CHUNK = 250


@dataclass(frozen=True, eq=False)
class Record:
    """A photo with what is known and what was found.

    Attributes:
        kind: Kind of its defects; of normal photos only a name.
        is_normal: Whether it has none.
        score: Of the whole photo, large = anomalous.
        anomaly_map: Shape `(height, width)`, large = anomalous; None if the photo counts only as a whole.
        mask: Which pixels are defective, bool, shape of the map; None of a normal photo is no pixel, of another unknown.
        marked: Which pixels are marked at the promised rate, bool, shape of the map; None if nothing was promised.
        name: For errors.
    """

    kind: str
    is_normal: bool
    score: float
    anomaly_map: Tensor | None = None
    mask: Tensor | None = None
    marked: Tensor | None = None
    name: str = "a photo"

    def __post_init__(self) -> None:
        if not np.isfinite(self.score):
            raise ValueError(f"{self.name}: the score must be finite, got {self.score}")
        if self.anomaly_map is not None and not bool(self.anomaly_map.isfinite().all()):
            raise ValueError(f"{self.name}: the map has values that are not finite")
        shapes = {tuple(x.shape) for x in (self.anomaly_map, self.mask, self.marked) if x is not None}
        if len(shapes) > 1 or any(len(shape) != 2 for shape in shapes):
            got = ", ".join(map(str, sorted(shapes)))
            raise ValueError(f"{self.name}: map, mask and marked must have one shape (height, width), got {got}")
        if self.is_normal and self.mask is not None and bool(self.mask.any()):
            raise ValueError(f"{self.name}: a normal photo has defective pixels in its mask")


@dataclass(frozen=True)
class Row:
    """Figures of one kind of defect, or of all.

    Attributes:
        kind: "all" or the kind.
        num_normal: Normal photos, the same for each kind.
        num_defective: Photos with defects of the kind.
        num_regions: Their defective regions, where masks tell.
        figures: Those of `FIGURES` that the records allow, each with a 95 % interval over photos.
    """

    kind: str
    num_normal: int
    num_defective: int
    num_regions: int
    figures: dict[str, Interval]


#: Names of figures, in order of a table.
FIGURES = (
    "image_auroc",
    "pixel_auroc",
    "pixel_ap",
    "aupro",
    "aupimo",
    "image_false_alarms",
    "image_precision",
    "image_recall",
    "image_f1",
    "pixel_precision",
    "pixel_recall",
    "pixel_f1",
)


@dataclass(frozen=True, eq=False)
class PixelScores:
    """Values of a photo's pixels, thinned: a value stands for those from it up to the next one.

    Attributes:
        normal: Values of normal pixels, ascending, and how many pixels each stands for, shape `(2, points)`.
        defective: Values of defective pixels, ascending, how many each stands for, and the sum over these of 1 / area of
            their region, shape `(3, points)`.
        num_regions: Defective regions, of pixels that touch by a side or a corner.
    """

    normal: npt.NDArray[np.float32]
    defective: npt.NDArray[np.float32]
    num_regions: int

    @classmethod
    def of(cls, anomaly_map: Tensor, mask: Tensor | None = None, *, points: int = POINTS) -> PixelScores:
        """Take them from a map; a mask of None has no defective pixel."""
        from scipy import ndimage

        values = anomaly_map.detach().cpu().float().numpy()
        if mask is None:
            return cls(_thinned(values.ravel(), None, points), np.zeros((3, 0), np.float32), 0)
        inside = mask.cpu().numpy().astype(bool)
        labels, num = ndimage.label(inside, structure=np.ones((3, 3)))
        regions = labels[inside]
        shares = 1 / np.bincount(regions, minlength=1)[regions] if num else np.zeros(0)
        return cls(_thinned(values[~inside], None, points), _thinned(values[inside], shares, points), int(num))


def image_auroc(normal: Scores, defective: Scores, *, resamples: int = 1000, seed: int = 0) -> Interval:
    """Return the AUROC of photos with the interval of its bootstrap; scores have shapes `(n,)` and `(m,)`."""
    value = auroc(normal, defective)  # checks the scores too
    inside, outside = np.sort(np.asarray(normal, np.float64)), np.asarray(defective, np.float64)
    rng = np.random.default_rng(seed)
    n, m = len(inside), len(outside)
    below = np.pad(_draws(n, resamples, rng).cumsum(1), ((0, 0), (1, 0)))
    drawn = _draws(m, resamples, rng)
    left, right = (np.searchsorted(inside, outside, side=side) for side in ("left", "right"))
    return _interval(value, (drawn * (below[:, left] + below[:, right])).sum(1) / (2 * n * m))


def pixel_auroc(photos: Sequence[PixelScores]) -> float:
    """Return the AUROC of all pixels; a tie counts one half."""
    return float(_Curves.of(photos).figures()["pixel_auroc"][0])


def pixel_average_precision(photos: Sequence[PixelScores]) -> float:
    """Return the average precision of all pixels, with defective ones as positives."""
    return float(_Curves.of(photos).figures()["pixel_ap"][0])


def aupro(photos: Sequence[PixelScores], *, limit: float = 0.3) -> float:
    """Return the area under the mean overlap with each region over the false-positive rate up to `limit`, over `limit`.

    The rate is that of all normal pixels, also of those in defective photos. Between thresholds the curve is linear.
    """
    return float(_Curves.of(photos).figures(limit=limit)["aupro"][0])


def aupimo(
    normal: Sequence[PixelScores], defective: Sequence[PixelScores], *, bounds: tuple[float, float] = (1e-5, 1e-4)
) -> npt.NDArray[np.float64]:
    r"""Return for each defective photo the area under its recall over the logarithm of the false-positive rate.

    The rate F(t) is the mean over normal photos of the share of their pixels that reach t. At a rate f the threshold is the
    lowest one with F <= f, so rates that are less than one pixel in all normal photos are judged at no false pixel.

    $$\frac{1}{\log(U / L)} \int_L^U R_i(t(f)) \, d \log f$$

    Returns:
        Shape `(len(defective),)`, in [0, 1]; NaN for a photo without defective pixels.

    Raises:
        ValueError: If there is no normal photo.
    """
    if not normal:
        raise ValueError("AUPIMO needs normal photos")
    low, high = bounds
    values = np.concatenate([photo.normal[0] for photo in normal])
    shares = np.concatenate([photo.normal[1] / photo.normal[1].sum(dtype=np.float64) for photo in normal]) / len(normal)
    steps, places = np.unique(-values, return_inverse=True)
    rates = np.bincount(places, shares).cumsum()  # F at each distinct value, from the top
    needed = int(np.searchsorted(rates, high)) + 1
    widths = np.diff(np.log(np.clip(rates[:needed], low, high)), prepend=np.log(low)) / np.log(high / low)
    return np.array([widths @ _share_above(photo, -steps[:needed]) for photo in defective])


def evaluate_maps(
    records: Iterable[Record], *, resamples: int = 1000, seed: int = 0, points: int = POINTS
) -> list[Row]:
    """Return the figures of all defects, and of each kind if there are several.

    Normal and defective photos are drawn anew with replacement, for the 2.5 and 97.5 % quantiles. AUPIMO's thresholds stay
    those of all normal photos. Rates of flagged photos, of normal ones and recall, have exact binomial intervals instead, as
    the bootstrap of 0 in 20 has no width. A photo is flagged if any of its pixels is marked.

    Args:
        records: Read once, one at a time.
        resamples: Bootstrap samples.
        seed: Of these draws.
        points: Values that are kept of each photo's pixels, and thresholds.

    Raises:
        ValueError: If normal or defective photos are missing.
    """
    photos = [_Photo.of(record, points) for record in records]
    normal = [photo for photo in photos if photo.is_normal]
    kinds = sorted({photo.kind for photo in photos if not photo.is_normal})
    if not normal or not kinds:
        raise ValueError(
            f"evaluation needs normal and defective photos, got {len(normal)} and {len(photos) - len(normal)}"
        )
    with_pixels = [photo for photo in photos if photo.pixels is not None]
    grid = _thresholds([photo.pixels for photo in with_pixels if photo.pixels is not None], points)
    rows = []
    for kind in ["all"] if len(kinds) == 1 else ["all", *kinds]:
        defective = [photo for photo in photos if not photo.is_normal and kind in ("all", photo.kind)]
        figures = _image_figures(normal, defective, resamples, seed)
        figures |= _pixel_figures(normal, defective, grid, resamples, seed)
        num_regions = sum(photo.pixels.num_regions for photo in defective if photo.pixels is not None)
        ordered = {name: figures[name] for name in FIGURES if name in figures}
        rows.append(Row(kind, len(normal), len(defective), num_regions, ordered))
    return rows


@dataclass(frozen=True, eq=False)
class _Photo:
    """What is kept of a record."""

    kind: str
    is_normal: bool
    score: float
    pixels: PixelScores | None
    flagged: bool | None
    counts: tuple[int, int, int] | None  #: Marked defective, marked normal and missed defective pixels.

    @classmethod
    def of(cls, record: Record, points: int) -> _Photo:
        pixels = counts = None
        known = record.is_normal or record.mask is not None
        if record.anomaly_map is not None and known:
            pixels = PixelScores.of(record.anomaly_map, record.mask, points=points)
        marked = record.marked
        if marked is not None and known:
            hits = 0 if record.mask is None else int((marked & record.mask).sum())
            counts = (hits, int(marked.sum()) - hits, (0 if record.mask is None else int(record.mask.sum())) - hits)
        flagged = None if marked is None else bool(marked.any())
        return cls(record.kind, record.is_normal, record.score, pixels, flagged, counts)


def _image_figures(normal: list[_Photo], defective: list[_Photo], resamples: int, seed: int) -> dict[str, Interval]:
    inside, outside = (np.array([photo.score for photo in photos]) for photos in (normal, defective))
    figures = {"image_auroc": image_auroc(inside, outside, resamples=resamples, seed=seed)}
    if any(photo.flagged is None for photo in (*normal, *defective)):
        return figures
    counts = np.array([(0, bool(photo.flagged), 0) for photo in normal])
    counts = np.concatenate([counts, [(bool(photo.flagged), 0, not photo.flagged) for photo in defective]])
    drawn = _stratified(len(normal), len(defective), resamples, seed)
    figures |= _at_the_rate(counts, drawn, "image")
    figures["image_false_alarms"] = _proportion(int(counts[:, 1].sum()), len(normal))
    figures["image_recall"] = _proportion(int(counts[:, 0].sum()), len(defective))
    return figures


def _pixel_figures(
    normal: list[_Photo], defective: list[_Photo], grid: Floats, resamples: int, seed: int
) -> dict[str, Interval]:
    inside, outside = ([photo.pixels for photo in group if photo.pixels is not None] for group in (normal, defective))
    figures: dict[str, Interval] = {}
    if any(photo.num_regions for photo in outside):
        curves = _Curves.of([*inside, *outside], grid)
        drawn = _stratified(len(inside), len(outside), resamples, seed)
        samples = [curves.figures(drawn[i : i + _CHUNK]) for i in range(0, resamples, _CHUNK)]
        for name, value in curves.figures().items():
            figures[name] = _interval(float(value[0]), np.concatenate([sample[name] for sample in samples]))
        if inside:
            recalls = aupimo(inside, [photo for photo in outside if photo.num_regions])
            means = _draws(len(recalls), resamples, np.random.default_rng(seed)) @ recalls / len(recalls)
            figures["aupimo"] = _interval(float(recalls.mean()), means)
    marks = [[photo.counts for photo in group if photo.counts is not None] for group in (normal, defective)]
    if marks[0] and marks[1]:
        drawn = _stratified(len(marks[0]), len(marks[1]), resamples, seed)
        figures |= _at_the_rate(np.array([*marks[0], *marks[1]]), drawn, "pixel")
    return figures


@dataclass(frozen=True, eq=False)
class _Curves:
    """Counts of each photo's pixels that reach each threshold, falling, and in the last column of all.

    Shapes `(photos, thresholds + 1)`; those of defective pixels only of photos that have some.
    """

    false: npt.NDArray[np.float32]
    caught: npt.NDArray[np.float32]
    overlap: npt.NDArray[np.float32]  #: Sum of the shares of regions.
    num_regions: npt.NDArray[np.int64]
    has_defects: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, photos: Sequence[PixelScores], grid: Floats | None = None) -> _Curves:
        grid = _thresholds(photos, POINTS) if grid is None else grid
        num_regions = np.array([photo.num_regions for photo in photos])
        defective = [photo.defective for photo in photos if photo.num_regions]
        return cls(
            _reaching([photo.normal[0] for photo in photos], [photo.normal[1] for photo in photos], grid),
            _reaching([values[0] for values in defective], [values[1] for values in defective], grid),
            _reaching([values[0] for values in defective], [values[2] for values in defective], grid),
            num_regions,
            num_regions > 0,
        )

    def figures(self, drawn: Floats | None = None, *, limit: float = 0.3) -> dict[str, npt.NDArray[np.float64]]:
        """Return the figures where photo i counts `drawn[:, i]` times, once if None; shape `(samples,)` each."""
        if drawn is None:
            false, caught, overlap = (x.sum(0, dtype=np.float64)[None] for x in (self.false, self.caught, self.overlap))
            num_regions = self.num_regions.sum(keepdims=True)
        else:
            own = drawn[:, self.has_defects]
            false, caught, overlap = drawn @ self.false, own @ self.caught, own @ self.overlap
            num_regions = drawn @ self.num_regions
        with np.errstate(invalid="ignore"):  # a sample without any region has no figures
            rates, recall = false / false[:, -1:], caught / caught[:, -1:]
            precision = caught / np.maximum(caught + false, 1e-9)
            overlap = overlap / num_regions[:, None]
        return {
            "pixel_auroc": _area(rates, recall, 1.0),
            "pixel_ap": (np.diff(recall, prepend=0) * precision).sum(1, dtype=np.float64),
            "aupro": _area(rates, overlap, limit),
        }


def _area(x: Floats, y: Floats, limit: float) -> npt.NDArray[np.float64]:
    """Return the area under the lines from (0, 0) through points with rising x, for x up to `limit`, over `limit`."""
    x, y = (np.pad(values, ((0, 0), (1, 0))).astype(np.float64) for values in (x, y))
    width = np.diff(x)
    clipped = np.diff(np.minimum(x, limit))
    part = np.divide(clipped, width, out=np.zeros_like(width), where=width > 0)
    areas: npt.NDArray[np.float64] = (clipped * (y[:, :-1] + 0.5 * part * np.diff(y))).sum(1) / limit
    return areas


def _reaching(values: list[Floats], weights: list[Floats], grid: Floats) -> npt.NDArray[np.float32]:
    """Return for each photo the weight of values that are at least each threshold, and the weight of all."""
    sums = np.zeros((len(values), len(grid) + 1), np.float32)
    for row, own, weight in zip(sums, values, weights, strict=True):
        above = np.append(weight[::-1].cumsum(dtype=np.float64)[::-1], 0)
        row[:-1] = above[np.searchsorted(own, grid, side="left")]
        row[-1] = above[0]
    return sums


def _thresholds(photos: Sequence[PixelScores], num: int) -> Floats:
    """Return thresholds, falling: all values, or if too many those at even ranks of normal and of defective ones."""
    kept = []
    for parts in ([photo.normal[0] for photo in photos], [photo.defective[0] for photo in photos]):
        total = sum(map(len, parts))
        step = max(1, total // 2**22)  # of many photos less: these are only thresholds
        kept.append(np.unique(np.concatenate([part[::step] for part in parts])) if total else np.zeros(0))
    both = np.unique(np.concatenate(kept))
    if len(both) > num:
        even = [
            values[np.unique(np.linspace(0, len(values) - 1, num // 2).astype(int))] for values in kept if len(values)
        ]
        both = np.unique(np.concatenate(even))
    return both[::-1]


def _thinned(values: Floats, shares: Floats | None, points: int) -> npt.NDArray[np.float32]:
    """Return values at even ranks and at ranks even in logarithm from the top, with counts and sums of shares."""
    order = np.argsort(values, kind="stable") if shares is not None else None
    ordered = np.sort(values) if order is None else values[order]
    n = len(values)
    if n <= points:
        ranks = np.arange(n)
    else:
        even = np.arange(points - points // 2) * n // (points - points // 2)
        ranks = np.union1d(even, n - np.unique(np.geomspace(1, n, points // 2).astype(int)))
    counts = np.diff(ranks, append=n)
    rows = [ordered[ranks], counts]
    if shares is not None:
        rows.append(np.add.reduceat(shares[order], ranks) if n else np.zeros(0))
    return np.stack(rows).astype(np.float32)


def _share_above(photo: PixelScores, limits: Floats) -> npt.NDArray[np.float64]:
    """Return the share of defective pixels above each limit, NaN if there are none."""
    values, counts = photo.defective[:2]
    if len(values) == 0:
        return np.full(len(limits), np.nan)
    above = np.append(counts[::-1].cumsum(dtype=np.float64)[::-1], 0)
    shares: npt.NDArray[np.float64] = above[np.searchsorted(values, limits, side="right")] / above[0]
    return shares


def _at_the_rate(counts: npt.NDArray[np.int64], drawn: Floats, unit: str) -> dict[str, Interval]:
    """Return precision, recall and F1 of hits, false alarms and misses of each photo; 0 where nothing is marked."""
    ratios: dict[str, Callable[[Floats, Floats, Floats], tuple[Floats, Floats]]] = {
        "precision": lambda hits, false, missed: (hits, hits + false),
        "recall": lambda hits, false, missed: (hits, hits + missed),
        "f1": lambda hits, false, missed: (2 * hits, 2 * hits + false + missed),
    }
    figures = {}
    sums = np.concatenate([counts.sum(0)[None], drawn.astype(np.float64) @ counts])
    for name, ratio in ratios.items():
        part, whole = ratio(*sums.T)
        value, *samples = np.divide(part, whole, out=np.zeros(len(sums)), where=whole > 0)
        figures[f"{unit}_{name}"] = _interval(float(value), np.array(samples))
    return figures


def _proportion(count: int, num: int) -> Interval:
    from scipy.stats import binomtest

    exact = binomtest(count, num).proportion_ci(0.95)
    return Interval(count / num, float(exact.low), float(exact.high))


def _interval(value: float, samples: Floats) -> Interval:
    low, high = np.nanquantile(samples, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def _draws(num: int, resamples: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return how often each of `num` photos is drawn, shape `(resamples, num)`."""
    return rng.multinomial(num, np.full(num, 1 / num), size=resamples).astype(np.float32)


def _stratified(num_normal: int, num_defective: int, resamples: int, seed: int) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    parts = [_draws(num, resamples, rng) for num in (num_normal, num_defective) if num]
    return np.concatenate(parts, axis=1)
