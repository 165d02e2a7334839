"""How images were stored, as far as it moves scores: compression and resizing change the detail that a detector judges."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from denoising_ebm.datasets.decode import Stored
from denoising_ebm.datasets.images import ImageSet
from denoising_ebm.ood.corruptions import CORRUPTIONS, corrupt

#: Ways of storing that move scores, by number. Files of detectors hold these numbers: new ones stand at the end.
KINDS = (
    "unknown",
    "lossless",
    "WebP",
    "GIF",
    "JPEG below 50",
    "JPEG 50-69",
    "JPEG 70-79",
    "JPEG 80-89",
    "JPEG 90-100",
    "JPEG",
)
_LOSSLESS = {"PNG", "BMP", "PPM", "TIFF", "lossless WEBP"}
_LEAST_QUALITY = {90: 8, 80: 7, 70: 6, 50: 5}
#: Qualities of the JPEG copies that stand for harmless compression: from the usual web photo to a camera's.
HARMLESS_QUALITIES = (70, 95)
#: Images with at most so many gray levels have few: those of photographs use a hundred and more.
FEW_LEVELS = 16
#: Resizing by a factor that differs by more than this from those of fitting is told.
_SAME_SCALE = 1.25


def kind_of(stored: Stored | None) -> int:
    """Return in which way of `KINDS` an image was stored."""
    if stored is None or not stored.format:
        return 0
    if stored.format in _LOSSLESS:
        return 1
    if stored.format != "JPEG":
        return {"WEBP": 2, "GIF": 3}.get(stored.format, 0)
    if stored.quality is None:
        return KINDS.index("JPEG")
    return next((kind for least, kind in _LEAST_QUALITY.items() if stored.quality >= least), 4)


def kinds_of(stored: Sequence[Stored | None]) -> Tensor:
    """Return in which way of `KINDS` each image was stored, int64."""
    return torch.tensor([kind_of(each) for each in stored], dtype=torch.int64)


def is_jpeg(kinds: Tensor) -> Tensor:
    """Return which images were stored as JPEG."""
    return torch.isin(kinds, torch.tensor([i for i, name in enumerate(KINDS) if name.startswith("JPEG")]))


def jpeg_copies(pixels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return copies of images that were stored as JPEG, of qualities drawn from `HARMLESS_QUALITIES`, and their kinds.

    Args:
        pixels: uint8, shape `(n, channels, height, width)`.
        generator: Of the qualities.
    """
    low, high = HARMLESS_QUALITIES
    qualities = torch.randint(low, high + 1, (len(pixels), 1, 1, 1), generator=generator)
    kinds = kinds_of([Stored("JPEG", 1, 1, quality=quality) for quality in qualities.flatten().tolist()])
    if len(pixels) == 0:
        return pixels, kinds
    return corrupt(pixels, CORRUPTIONS["jpeg"].change, qualities.float(), generator), kinds


@dataclass(frozen=True)
class StorageRecord:
    """How a set of images was stored, in numbers of images.

    Attributes:
        images: All of them.
        kinds: By way of storing, names of `KINDS`.
        formats: By format, `PNG`, `JPEG`, ...; "" where unknown.
        qualities: Of JPEG, by estimated quality to the next multiple of 5.
        sizes: By size as stored, `640x480`, the most frequent ones.
        scales: 5 %, 50 % and 95 % quantile of pixels as stored for one that was given to the model, along a side.
        few_levels: With at most `FEW_LEVELS` gray levels.
    """

    images: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    formats: dict[str, int] = field(default_factory=dict)
    qualities: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    scales: tuple[float, float, float] = (1.0, 1.0, 1.0)
    few_levels: int = 0

    def __post_init__(self) -> None:
        counts = [self.images, self.few_levels]
        for counted in (self.kinds, self.formats, self.qualities, self.sizes):
            counts += counted.values()
        if min(counts) < 0 or not all(math.isfinite(scale) and scale > 0 for scale in self.scales):
            raise ValueError("counts must be >= 0 and scales > 0")

    @classmethod
    def of(cls, images: ImageSet) -> StorageRecord:
        """Summarise a set of images."""
        known = [stored for stored in images.stored if stored is not None and stored.format]
        scales = sorted(stored.scale for stored in known) or [1.0]
        return cls(
            len(images),
            _counted(KINDS[kind] for kind in map(kind_of, images.stored)),
            _counted("" if stored is None else stored.format for stored in images.stored),
            _counted(str(5 * round(s.quality / 5)) for s in known if s.quality is not None),
            dict(Counter(f"{stored.width}x{stored.height}" for stored in known).most_common(5)),
            (_quantile(scales, 0.05), _quantile(scales, 0.5), _quantile(scales, 0.95)),
            _few_levels(images.pixels),
        )

    def joined(self, other: StorageRecord) -> StorageRecord:
        """Return that of both sets; the scales of a set that is far larger weigh as much as the other's."""
        if not (self.images and other.images):
            return self if self.images else other
        counted = {
            name: dict(Counter(getattr(self, name)) + Counter(getattr(other, name)))
            for name in ("kinds", "formats", "qualities", "sizes")
        }
        low, middle, high = zip(self.scales, other.scales, strict=True)
        scales = (min(low), statistics.mean(middle), max(high))
        counted["sizes"] = dict(Counter(counted["sizes"]).most_common(5))
        return StorageRecord(
            self.images + other.images, **counted, scales=scales, few_levels=self.few_levels + other.few_levels
        )

    def share(self, kind: str) -> float:
        """Return the share of images that were stored in one way."""
        return self.kinds.get(kind, 0) / max(self.images, 1)

    @property
    def is_known(self) -> bool:
        """Whether it is known of most images how they were stored."""
        return self.share("unknown") < 0.5 and self.images > 0

    def words(self) -> str:
        """Return formats with counts: `412 PNG, 88 JPEG of quality about 75`."""
        parts = [f"{count:,} {name or 'unknown'}" for name, count in self.formats.items() if name != "JPEG"]
        if jpeg := self.formats.get("JPEG", 0):
            parts.append(f"{jpeg:,} JPEG{_about(self.qualities)}")
        return ", ".join(parts)


class StorageTally:
    """Counts how images were stored, of a stream of any length: by format, JPEG quality, scale and few gray levels."""

    def __init__(self, stored: Iterable[Stored | None] = (), pixels: Tensor | None = None) -> None:
        self.counts: Counter[Stored | None] = Counter()
        self.few_levels = 0  #: Images with at most `FEW_LEVELS` gray levels.
        self.add(stored, pixels)

    def add(self, stored: Iterable[Stored | None], pixels: Tensor | None = None) -> None:
        """Count more images; few gray levels where their pixels are given, uint8 `(n, channels, height, width)`."""
        self.few_levels += 0 if pixels is None else _few_levels(pixels)
        self.counts.update(
            None
            if each is None
            else Stored(each.format, 0, 0, quality=each.quality, scale=round(each.scale, 1 + (each.scale < 2)))
            for each in stored
        )


def unlike_fitting(
    stored: StorageTally, fitted: StorageRecord, covered: Iterable[int], *, harmless: bool
) -> str | None:
    """Return in one phrase how new images were stored otherwise than those of a detector, with counts; None if alike.

    Args:
        stored: Of the new images.
        fitted: Of those that the detector was fitted to and calibrated on.
        covered: Ways of storing, numbers of `KINDS`, whose false-alarm rate the calibration promises by itself.
        harmless: Whether compressed copies took part in fitting.
    """
    known = [each for each in stored.counts.elements() if each is not None and each.format]
    if not known or not fitted.is_known:
        return None
    total, parts = stored.counts.total(), list[str]()
    covered = set(covered)
    counts = Counter(kind_of(each) for each in known)
    foreign = {
        kind
        for kind, count in counts.items()
        # A small share may pass as by chance: what is promised of a mixture holds for the same mixture.
        if kind and kind not in covered and count > 2 * fitted.share(KINDS[kind]) * len(known) + 0.01 * len(known)
    }
    hint = "such images"
    if foreign:
        others = [each for each in known if kind_of(each) in foreign]
        parts.append(f"{len(others):,} of {total:,} images are {_kinds_in_words(others)}")
        parts.append(f"the detector saw {fitted.words()}")
        if not harmless and any(
            each.format == "JPEG" and (each.quality or 0) >= HARMLESS_QUALITIES[0] for each in others
        ):
            hint += " or with --harmless jpeg"
    low, middle, high = fitted.scales
    scaled = [each for each in known if not low / _SAME_SCALE <= each.scale <= high * _SAME_SCALE]
    if len(scaled) > 0.01 * len(known):
        new = statistics.median(each.scale for each in scaled)
        parts.append(f"{len(scaled):,} of {total:,} images were {_scale(new)}, those of the detector {_scale(middle)}")
    seen = fitted.few_levels / fitted.images
    if stored.few_levels > (seen + 0.1) * total:
        parts.append(
            f"{stored.few_levels:,} of {total:,} images have at most {FEW_LEVELS} gray levels (few colours, or drawings), "
            f"{fitted.few_levels:,} of {fitted.images:,} of the detector's"
        )
    if not parts:
        return None
    return f"{'; '.join(parts)}: its false-alarm rate need not hold; fit it with {hint}"


def unlike_scale(scale: float, fitted: StorageRecord) -> str | None:
    """Return how images of fitting were resized, if otherwise than by `scale`; None if alike or unknown."""
    low, middle, high = fitted.scales
    if not fitted.is_known or low / _SAME_SCALE <= scale <= high * _SAME_SCALE:
        return None
    return _scale(middle)


def unlike_each_other(normal: StorageRecord, others: Mapping[str, StorageRecord]) -> str | None:
    """Return in one phrase which sets were stored otherwise than the normal one, with counts; None if all are alike."""
    found = []
    for name, other in others.items():
        if not (normal.is_known and other.is_known):
            continue
        differing = sum(abs(normal.share(kind) - other.share(kind)) for kind in KINDS) / 2
        parts = [other.words()] if differing > 0.1 else []
        ratio = other.scales[1] / normal.scales[1]
        if not 1 / _SAME_SCALE <= ratio <= _SAME_SCALE:
            parts.append(_scale(other.scales[1]))
        if abs(other.few_levels / other.images - normal.few_levels / normal.images) > 0.1:
            parts.append(f"{other.few_levels:,} of {other.images:,} images with at most {FEW_LEVELS} gray levels")
        if parts:
            found.append(f"{name}: {', '.join(parts)}")
    if not found:
        return None
    base = f"normal: {normal.words()}, {_scale(normal.scales[1])}"
    if any("gray levels" in part for part in found):
        base += f", {normal.few_levels:,} of {normal.images:,} images with at most {FEW_LEVELS} gray levels"
    return f"the sets were stored in different ways ({'; '.join([base, *found])}): this may be what tells them apart"


def _kinds_in_words(stored: Sequence[Stored]) -> str:
    formats = Counter(each.format for each in stored)
    words = []
    for name, count in formats.most_common():
        about = _about(
            _counted(str(each.quality) for each in stored if each.format == name and each.quality is not None)
        )
        words.append(f"{name}{about}" + (f" ({count:,})" if len(formats) > 1 else ""))
    return " and ".join(words)


def _about(qualities: Mapping[str, int]) -> str:
    """Return the median of counted qualities in words."""
    if not qualities:
        return ""
    middle = statistics.median_low([int(q) for q, count in qualities.items() for _ in range(count)])
    return f" of quality about {middle}"


def _scale(scale: float) -> str:
    if 1 / 1.02 <= scale <= 1.02:
        return "at their own size"
    return f"shrunk {scale:.1f} times" if scale > 1 else f"enlarged {1 / scale:.1f} times"


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _quantile(values: Sequence[float], share: float) -> float:
    return round(values[min(len(values) - 1, int(share * len(values)))], 4)


def _few_levels(pixels: Tensor) -> int:
    gray = pixels.float().mean(1).round().flatten(1) if len(pixels) else pixels.flatten(1)
    ordered = gray.sort(dim=1).values
    return int((1 + (ordered.diff(dim=1) != 0).sum(1) <= FEW_LEVELS).sum()) if len(pixels) else 0
