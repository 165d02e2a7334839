"""The inspector of photos: from a photo to a map, a p-value, and regions with a promise.

evidence of the model -> logits of the head -> standardised at each place (aligned sets) -> map -> maximum -> p-value
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from denoising_ebm.config import from_dict
from denoising_ebm.datasets.images import ImageSet, to_uint8
from denoising_ebm.datasets.levels import ValueRange, check_range
from denoising_ebm.datasets.photos import Photo, PhotoSet
from denoising_ebm.hub import INSPECTOR_FILES, find_model_folder
from denoising_ebm.inspection.bank import PhotoBank
from denoising_ebm.inspection.defects import DEFECTS, Defect
from denoising_ebm.inspection.evidence import evidence, tiled
from denoising_ebm.inspection.head import Head, HeadConfig, fit_head
from denoising_ebm.inspection.regions import content_hash_of, find_regions, promise, refuse_known, threshold
from denoising_ebm.inspection.results import InspectedPhoto
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.ood.blur import gaussian_blur
from denoising_ebm.ood.conformal import check_rate, p_values
from denoising_ebm.ood.groups import Groups, find_groups
from denoising_ebm.schema import TensorSpec, check_tensors, checked_metadata, load_tensors, module_specs, plain_metadata
from denoising_ebm.utils.hashes import check_file_hash, check_own_hash, sealed
from denoising_ebm.utils.io import read_json, write_together
from denoising_ebm.utils.parsing import MAX_JSON, shown_name

CONFIG_FILE, TENSORS_FILE = INSPECTOR_FILES
FORMAT = 1
#: Fewest normal photos that an inspector is fitted to.
MIN_PHOTOS = 10
#: Share of normal photos that is kept out of fitting, for the promise.
CALIBRATION_SHARE = 0.25
#: Mean correlation between small copies of photos above which a set counts as aligned.
ALIGNED_ABOVE = 0.8
#: Photos that this is found out from, and that the statistics of places are taken from, at most.
_STATISTICS_PHOTOS = 200
_HINT = "fit it again with `debm inspect --train`"
_MAX_TENSORS = 2**28

#: Called with what is being done, and the share of it that is done.
Progress = Callable[[str, float], object]


@dataclass(frozen=True)
class InspectorConfig:
    """What an inspector computes.

    Attributes:
        head: What the head reads and how it learns.
        blur: Standard deviation in pixels of the Gaussian that logits are blurred by, >= 0.
        aligned: Whether photos show the same thing at the same place, so that a place is judged by what is normal there;
            if None that is found out.
        value_range: Levels of the photos that were black and white, where that was told: new ones are read alike.
    """

    head: HeadConfig = field(default_factory=HeadConfig)
    blur: float = 1.0
    aligned: bool | None = None
    value_range: ValueRange | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.blur) and 0 <= self.blur <= 100):
            raise ValueError(f"blur must be within 0..100, got {self.blur}")
        check_range(self.value_range)


class Inspector:
    """Finds what is odd in photos, and keeps a promise about false alarms.

    Args:
        model: A model of images of any size, trained on crops of normal photos.
        head: What reads its evidence.
        config: What to compute; `aligned` as it was found out.
        places: Mean and standard deviation of the map at every place of aligned photos, shape `(2, height, width)`.
    """

    def __init__(self, model: DenoisingEBM, head: Head, config: InspectorConfig, places: Tensor | None = None) -> None:
        self.model, self.head, self.config, self.places = model, head.eval(), config, places
        self.metadata: dict[str, Any] = {}
        self.maxima = torch.empty(0, dtype=torch.float64)  #: Largest values of the maps of calibration photos.
        self.groups: Tensor | None = None  #: Group of each of these photos; None where each stands for itself.
        self._fitted = torch.empty(0, dtype=torch.int64)
        self._precision = model.precision

    # -- fitting ----------------------------------------------------------------------------------------------------

    @classmethod
    def fit(
        cls,
        model: DenoisingEBM,
        photos: Sequence[Photo],
        *,
        calibration: Sequence[Photo],
        groups: Tensor | None = None,
        config: InspectorConfig | None = None,
        bank: PhotoBank | None = None,
        defects: Mapping[str, Defect] | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Inspector:
        """Train a head on normal photos with made defects, and calibrate it on others.

        Args:
            model: A model of images of any size, trained on crops of `photos`.
            photos: Normal photos.
            calibration: Normal photos that neither the model nor the head has seen.
            groups: Number of the group of each of these, as from `split_photos`; None where each stands for itself.
            config: What to compute.
            bank: Windows of `photos`, if they were read before.
            defects: Kinds of made defects; `defects.DEFECTS` if None.
            seed: Of all draws.
            progress: Called with what is being done and the share of it that is done.

        Raises:
            ValueError: If the model takes images of one size only, there are too few photos, or calibration photos are
                among those of fitting.
        """
        network = model.config.network
        if not network.any_size:
            raise ValueError(
                "the model takes images of one size only: train one with network.any_size (--preset photo)"
            )
        if len(photos) < MIN_PHOTOS:
            raise ValueError(f"fitting an inspector needs at least {MIN_PHOTOS} normal photos, got {len(photos)}")
        config = config or InspectorConfig()
        rng = np.random.default_rng([seed, 2**31])
        bank = bank or PhotoBank.of(photos, rng, least_side=max(config.head.crop, network.image_size))
        report = progress or (lambda what, share: None)

        def learning(share: float, loss: float) -> None:
            report(f"learning made defects, loss {loss:.2f}", share)

        head = fit_head(model, bank, config.head, defects=defects, seed=seed, progress=learning)
        found = config.aligned if config.aligned is not None else is_aligned(photos)
        inspector = cls(model, head, replace(config, aligned=found))
        inspector._fitted = torch.tensor([content_hash_of(photo.pixels) for photo in photos])
        if found:
            inspector._fit_places(photos, report)
        inspector.calibrate(calibration, groups, progress=progress)
        inspector.metadata = {
            "photos fitted to": len(photos),
            "kinds of made defects": list(DEFECTS if defects is None else defects),
        }
        return inspector

    def _fit_places(self, photos: Sequence[Photo], report: Progress) -> None:
        """Take mean and spread of the map at every place; photos must have one size.

        Raises:
            ValueError: If they have not.
        """
        count = min(len(photos), _STATISTICS_PHOTOS)
        total = square = torch.zeros(())
        for i in range(count):
            photo = photos[i]
            values = self._logits(photo.x).double()
            if i and values.shape != total.shape:
                tall, wide = total.shape
                raise ValueError(
                    f"{photo.name}: is {values.shape[1]} x {values.shape[0]}, the photos before are {wide} x {tall}: an "
                    "aligned set has one size"
                )
            total, square = total + values, square + values.square()
            report("learning what is normal where", (i + 1) / count)
        mean = total / count
        variance = (square / count - mean.square()).clamp_min(0)
        # Neighbours share their statistics: few photos say little about one pixel, and objects move a little.
        mean, variance = (gaussian_blur(part[None, None].float(), 4.0)[0, 0] for part in (mean, variance))
        # Places where nothing ever varies must not answer to the faintest change.
        spread = (variance + 0.25 * variance.mean() + 1e-6).sqrt()
        self.places = torch.stack([mean, spread])

    def calibrate(
        self, photos: Sequence[Photo], groups: Tensor | None = None, *, progress: Progress | None = None
    ) -> Inspector:
        """Take normal photos as what p-values compare with; copies of photos that were fitted to are left out.

        Args:
            photos: The photos.
            groups: Number of the group of each; None where each stands for itself.
            progress: Called with what is being done and the share of it that is done.

        Raises:
            ValueError: If there is none, or most of them were fitted to.
        """
        if len(photos) == 0:
            raise ValueError("there are no calibration photos")
        maxima, known, taken = [], {}, []
        fitted = set(self._fitted.tolist())
        for i in range(len(photos)):
            photo = photos[i]
            number = content_hash_of(photo.pixels)
            if number in fitted:
                known[photo.name] = number
                continue
            maxima.append(float(self.map(photo.x).max()))
            taken.append(i)
            if progress is not None:
                progress("calibrating", (i + 1) / len(photos))
        if 2 * len(known) > len(photos):
            refuse_known(known, fitted)
        self.maxima = torch.tensor(maxima, dtype=torch.float64)
        self.groups = None if groups is None else groups[taken]
        return self

    # -- judging ----------------------------------------------------------------------------------------------------

    @property
    def num_calibration(self) -> int:
        """Number of calibration photos, or groups of them, which decides what can be promised."""
        return len(self.maxima) if self.groups is None else len(set(self.groups.tolist()))

    @property
    def calibration_unit(self) -> str:
        """What `num_calibration` counts: `photos` or `groups of photos`."""
        return "photos" if self.groups is None else "groups of photos"

    def promise(self) -> str:
        """Return in words which rates can be promised."""
        return promise(self.num_calibration, f"normal {self.calibration_unit}")

    def check_rate(self, rate: float) -> None:
        """Refuse a rate that the calibration photos cannot promise.

        Raises:
            ValueError: If so.
        """
        check_rate(rate, self.num_calibration, self.calibration_unit)

    def threshold(self, rate: float) -> float:
        """Return the value of maps from which pixels are marked at a rate."""
        return threshold(self.maxima, rate, groups=self.groups)

    @torch.no_grad()
    def map(self, x: Tensor) -> Tensor:
        """Return the anomaly map of a photo, float32 on the CPU, shape `(height, width)`, large = anomalous.

        It is the logit of a defect; of aligned photos, its z-score at each place. Large photos are read in tiles.

        Args:
            x: The photo in [-1, 1], shape `(channels, height, width)`.

        Raises:
            ValueError: If it has other channels than the model, or an aligned set's photo another size.
        """
        values = self._logits(x)
        if self.places is None:
            return values
        mean, spread = self.places
        if values.shape != mean.shape:
            raise ValueError(
                f"the photo is {values.shape[1]} x {values.shape[0]}, those of this aligned set are "
                f"{mean.shape[1]} x {mean.shape[0]}"
            )
        standardised: Tensor = (values - mean) / spread
        return standardised

    def _logits(self, x: Tensor) -> Tensor:
        channels = self.model.config.network.channels
        if x.ndim != 3 or len(x) != channels:
            raise ValueError(f"photos must have shape ({channels}, height, width), got {tuple(x.shape)}")
        if self.model.precision != self._precision:
            raise ValueError(
                f"the inspector was fitted in {self._precision}, the model is in {self.model.precision} now: call "
                f'model.set_precision("{self._precision}")'
            )

        def logits(part: Tensor) -> Tensor:
            part = part.to(self.model.device)
            with torch.no_grad():
                found = evidence(self.model, part, self.config.head.sigmas)
                bf16 = self._precision == "bf16"
                with torch.autocast(part.device.type, torch.bfloat16, enabled=bf16):
                    values: Tensor = self.head(found)
            # Tile by tile, since on whole photos it would take gigabytes.
            return gaussian_blur(values.float()[:, None], self.config.blur)[:, 0].cpu()

        return tiled(logits, x)

    def score(self, x: Tensor) -> float:
        """Return the score of a photo: the largest value of its map."""
        return float(self.map(x).max())

    def inspect(self, photo: Photo, rate: float, *, min_area: int = 1) -> InspectedPhoto:
        """Judge a photo.

        Args:
            photo: The photo.
            rate: Share of normal photos in which anything may be marked.
            min_area: Smaller regions are not marked, in pixels.

        Raises:
            ValueError: If the rate cannot be promised, or the photo does not fit the model; it names the photo.
        """
        x = photo.x
        try:
            values = self.map(x)
        except ValueError as error:
            raise ValueError(f"{photo.name}: {error}") from None
        mask, regions = find_regions(values, self.maxima, rate, min_area=min_area, groups=self.groups)
        score = float(values.max())
        p = float(p_values(self.maxima, torch.tensor([score], dtype=torch.float64), groups=self.groups)[0])
        return InspectedPhoto(
            name=photo.name,
            x=x,
            kind=photo.kind,
            is_normal=photo.is_normal,
            notes=photo.notes,
            score=score,
            p_value=p,
            map=values,
            mask=mask,
            regions=regions,
            truth=photo.mask,
        )

    # -- files ------------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write `inspector.json` and `inspector.safetensors` into a folder, most often the model's."""
        folder = Path(folder)
        tensors = {f"head.{name}": tensor.contiguous() for name, tensor in self.head.state_dict().items()}
        tensors |= {"maxima": self.maxima, "hashes": self._fitted}
        if self.places is not None:
            tensors["places"] = self.places
        if self.groups is not None:
            tensors["groups"] = self.groups
        content = safetensors.torch.save(tensors)
        values = {
            "format": FORMAT,
            "model": self.model.fingerprint(),
            "precision": self._precision,
            "config": asdict(self.config),
            "metadata": plain_metadata(self.metadata),
        }
        values = sealed(values, CONFIG_FILE, {TENSORS_FILE: hashlib.sha256(content).hexdigest()})
        text = json.dumps(values, indent=2) + "\n"
        write_together({folder / TENSORS_FILE: content, folder / CONFIG_FILE: text.encode()})

    @classmethod
    def load(cls, folder: str | Path, model: DenoisingEBM) -> Inspector:
        """Read an inspector, and bring the model to the precision that it was fitted in.

        Args:
            folder: Where `save` wrote it.
            model: The model it was fitted with.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If a file is damaged, or the inspector belongs to other weights.
        """
        path, tensors_path = Path(folder) / CONFIG_FILE, Path(folder) / TENSORS_FILE
        for file in (path, tensors_path):
            if not file.exists():
                raise FileNotFoundError(f"{file}: missing; `debm inspect --train` makes it")
        values = read_json(path, max_bytes=MAX_JSON)
        check_own_hash(values, path)
        check_file_hash(values, path, tensors_path, _HINT)
        if values.get("format") != FORMAT:
            raise ValueError(f"{path}: not an inspector of format {FORMAT}; {_HINT}")
        for name in ("model", "precision", "config"):
            if name not in values:
                raise ValueError(f"{path}: {name!r} is missing")
        if values["precision"] not in ("fp32", "bf16"):
            raise ValueError(f"{path}: precision: expected fp32 or bf16")
        if values["model"] != (own := model.fingerprint()):
            raise ValueError(
                f"{path}: fitted for other weights ({shown_name(values['model'])}) than those given ({own})"
            )
        config = from_dict(InspectorConfig, values["config"], where=f"{path}: config")
        tensors, _ = load_tensors(tensors_path, _MAX_TENSORS)
        head = Head(model.config.network.channels * (1 + len(config.head.sigmas)), config.head.widths)
        specs = {f"head.{name}": spec for name, spec in module_specs(head).items()}
        specs |= {"maxima": TensorSpec((None,)), "hashes": TensorSpec((None,), whole=True)}
        if config.aligned:
            specs["places"] = TensorSpec((2, None, None))
        if "groups" in tensors:
            specs["groups"] = TensorSpec(tuple(tensors["maxima"].shape) if "maxima" in tensors else (None,), whole=True)
        check_tensors(specs, tensors, tensors_path, misfit=f"does not fit {CONFIG_FILE}")
        head.load_state_dict({name.removeprefix("head."): t for name, t in tensors.items() if name.startswith("head.")})
        model.set_precision(values["precision"])
        inspector = cls(model, head.to(model.device), config, tensors.get("places"))
        inspector.maxima, inspector._fitted = tensors["maxima"].double(), tensors["hashes"]
        inspector.groups = tensors.get("groups")
        inspector.metadata = checked_metadata(values.get("metadata", {}), f"{path}: metadata")
        return inspector

    @classmethod
    def from_pretrained(cls, name: str | Path, *, device: str = "cpu", revision: str | None = None) -> Inspector:
        """Load a model with the inspector that its folder holds; arguments and errors as for `DenoisingEBM`."""
        folder = find_model_folder(str(name), revision)
        return cls.load(folder, DenoisingEBM.from_pretrained(folder, device=device))


@dataclass(frozen=True)
class Split:
    """Which photos to fit to, and which to keep for calibration: no group is in both.

    Attributes:
        fitted: Places of the former.
        kept: Places of the latter.
        groups: Number of the group of each of the latter, int64; None where each photo stands for itself.
        by: What groups were found by, in plain words.
    """

    fitted: list[int]
    kept: list[int]
    groups: Tensor | None
    by: str

    def check_rate(self, rate: float) -> None:
        """Refuse a rate that so many photos, or groups of them, cannot promise.

        Raises:
            ValueError: If so.
        """
        if self.groups is None:
            check_rate(rate, len(self.kept), "photos")
        else:
            check_rate(rate, len(set(self.groups.tolist())), "groups of photos")


def split_photos(photos: Sequence[Photo], rule: str = "none", *, seed: int = 0) -> Split:
    """Split normal photos by whole groups, since crops of a sheet or shots of a part are no independent evidence.

    A quarter of the groups is kept, of few groups half, since 19 are needed to promise a rate of .05.

    Args:
        photos: Normal photos.
        rule: What is one group: `none` (each photo stands for itself), `folder`, `prefix`, a pattern, or `auto` (near
            copies), see `ood.groups.find_groups`. Parts before one camera look alike without being copies.
        seed: Of the draw.

    Raises:
        ValueError: If the rule does not fit the names, or all photos are of one group.
    """
    found = Groups(torch.arange(len(photos)))
    if rule != "none":
        found = find_groups(_thumbnails(photos, pixels=rule == "auto"), rule)
    numbers = sorted(set(found.labels.tolist()))
    if len(numbers) < 2:
        raise ValueError(
            f"all {len(photos):,} normal photos are of one group (by {found.by}): none is left for the promise"
        )
    num_kept = max(round(CALIBRATION_SHARE * len(numbers)), min(19, len(numbers) // 2))
    order = np.random.default_rng([seed, 1]).permutation(len(numbers))
    chosen = {numbers[int(i)] for i in order[:num_kept]}
    kept = [i for i, label in enumerate(found.labels.tolist()) if label in chosen]
    fitted = [i for i, label in enumerate(found.labels.tolist()) if label not in chosen]
    alone = len(numbers) == len(photos)
    return Split(fitted, kept, None if alone else found.labels[kept], found.by)


def _thumbnails(photos: Sequence[Photo], *, pixels: bool) -> ImageSet:
    """Return small gray copies of photos with their names; blank ones where only names matter."""
    small = torch.zeros(len(photos), 1, 32, 32, dtype=torch.uint8)
    names = list(photos.names) if isinstance(photos, PhotoSet) else []
    for i in range(len(photos)) if pixels or not names else ():
        photo = photos[i]
        gray = photo.x.mean(0, keepdim=True)[None]
        small[i] = to_uint8(torch.nn.functional.adaptive_avg_pool2d(gray, 32)[0])
        if len(names) <= i:
            names.append(photo.name)
    return ImageSet(small, tuple(names))


def is_aligned(photos: Sequence[Photo], *, most: int = 24) -> bool:
    """Say whether photos show the same at the same place: their small gray copies correlate, and they have one size."""
    small: list[Tensor] = []
    shape: torch.Size | None = None
    for i in np.linspace(0, len(photos) - 1, min(most, len(photos))).round().astype(int):
        x = photos[int(i)].x
        if shape is not None and x.shape != shape:
            return False
        shape = x.shape
        gray = torch.nn.functional.adaptive_avg_pool2d(x.mean(0, keepdim=True)[None], 16).flatten()
        small.append(gray - gray.mean())
    table = torch.stack(small)
    table = table / table.norm(dim=1, keepdim=True).clamp_min(1e-6)
    count = len(table)
    mean = (float((table @ table.T).sum()) - count) / max(count * (count - 1), 1)
    return mean > ALIGNED_ABOVE
