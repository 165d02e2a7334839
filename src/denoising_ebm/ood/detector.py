"""The detector of OOD images: from images to scores with a false-alarm rate that is kept, and to maps of where.

features of the model -> residuals given covariates -> projections on Fisher discriminants -> log-mean-exp score -> p-value
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from denoising_ebm.config import from_dict
from denoising_ebm.datasets.decode import Stored
from denoising_ebm.datasets.images import ImageSet, image_hashes
from denoising_ebm.datasets.preprocessing import Images, Preprocessing
from denoising_ebm.hub import find_model_folder, read_preprocessing
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.ood.anomaly_maps import AnomalyMaps
from denoising_ebm.ood.calibration import Calibration, Scores
from denoising_ebm.ood.conformal import benjamini_hochberg, check_rate, flagged
from denoising_ebm.ood.corruptions import corruptions
from denoising_ebm.ood.detector_config import DetectorConfig, Grouping
from denoising_ebm.ood.features import Family, compute_features
from denoising_ebm.ood.groups import find_groups, split_by_groups
from denoising_ebm.ood.image_storage import (
    KINDS,
    StorageRecord,
    StorageTally,
    is_jpeg,
    jpeg_copies,
    kinds_of,
    unlike_fitting,
    unlike_scale,
)
from denoising_ebm.ood.lda import FisherDiscriminants, log_mean_exp
from denoising_ebm.ood.regression import Scaler
from denoising_ebm.ood.storage import (
    CONFIG_FILE,
    TENSORS_FILE,
    check_corruptions,
    check_detector_hashes,
    check_detector_tensors,
    read_detector,
    write_detector,
)
from denoising_ebm.ood.table import Score, energy_rows, with_columns

#: Images that the statistics of maps are taken from, at most.
MAP_IMAGES = 1000
#: Images whose features, some thousand numbers each, are kept at a time in scoring.
SCORED_AT_ONCE = 4096
#: Largest p-value of an image whose row names the corruption that it resembles.
NAMED_BELOW = 0.1

Features = Mapping[Family, Tensor]
Progress = Callable[[int], object]


@dataclass(frozen=True)
class Explanation:
    """Why images are anomalous.

    Attributes:
        maps: z-score of the energy of every pixel, shape `(n, height, width)`; 0 is normal, 3 anomalous.
        nearest_corruption: For each image the corruption of normal images that it resembles most; None for images larger
            than the model's.
    """

    maps: Tensor
    nearest_corruption: list[str] | None


class Detector:
    """Tells OOD images from those like the ones it was fitted to.

    `fit`, `predict` and `explain` take images as pixels, uint8 of shape `(n, channels, height, width)`, as a loaded
    `ImageSet`, or as a source of files, which go through `preprocessing`; the methods on tensors take pixels.

    Args:
        model: The model whose features are used.
        config: What to compute; the default of the package if None.
        preprocessing: How files become images; if None they must have the model's size and channels.
    """

    def __init__(
        self,
        model: DenoisingEBM,
        config: DetectorConfig | None = None,
        *,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        self.model = model
        self.config = config or DetectorConfig()
        self.preprocessing = preprocessing or Preprocessing.of(model)
        self.metadata: dict[str, Any] = {}
        self.storage = StorageRecord()  #: How the images of fitting and calibration were stored.
        self.grouping = Grouping()  #: What is one group among them.
        self._calibration = Calibration()
        self._discriminants: FisherDiscriminants | None = None
        self._scaler: Scaler | None = None
        self._corruptions: tuple[str, ...] = ()
        self._maps = AnomalyMaps(model, self.config.maps)
        self._hashes = {name: torch.empty(0, dtype=torch.int64) for name in ("fitted", "calibrated")}
        self._precision = model.precision

    @property
    def is_fitted(self) -> bool:
        """Whether `fit` was called, or a fitted detector loaded."""
        return self._discriminants is not None

    @property
    def calibration(self) -> Tensor:
        """Scores of the calibration images, for p-values; setting them takes each as a group of its own."""
        return self._calibration.images.values

    @calibration.setter
    def calibration(self, scores: Tensor) -> None:
        self._calibration = Calibration(Scores.of(scores))

    @property
    def num_calibration(self) -> int:
        """Number of calibration groups, which decides what can be promised; that of images where each is its own."""
        return self._calibration.images.num_groups

    @property
    def calibration_unit(self) -> str:
        """What `num_calibration` counts: `images` or `groups`."""
        return "images" if self.num_calibration == len(self.calibration) else "groups"

    def check_rate(self, fpr: float) -> None:
        """Refuse a false-alarm rate that the calibration images, or groups of them, cannot promise.

        Raises:
            ValueError: If so.
        """
        check_rate(fpr, self.num_calibration, self.calibration_unit)

    # -- fitting ----------------------------------------------------------------------------------------------------

    def fit(
        self,
        images: Images,
        *,
        calibration: Images | None = None,
        groups: str | Sequence[Hashable] = "auto",
        seed: int = 0,
        batch_size: int = 256,
        progress: Progress | None = None,
    ) -> Detector:
        """Fit to normal images.

        Images of one group (frames of a scene, parts of a thing) are no independent evidence: fitting and calibration share
        no group, and what is promised counts groups.

        Args:
            images: Normal images (of a source its split `train`); they may be those the model was trained on.
            calibration: Normal images for the p-values (of a source its split `test`), best new to the model. If None a
                fifth of `images`, by `seed`, which takes no part in fitting. Those of groups that are fitted to are left
                out.
            groups: What is one group: `auto` (near copies), `none`, `folder`, `prefix`, a pattern of names, or a label for
                each of `images` and `calibration`; see `find_groups`.
            seed: Of the split and the corruptions.
            batch_size: Images per forward pass.
            progress: Called with the number of images after each batch, `fit_work` in all.

        Returns:
            Itself.

        Raises:
            ValueError: If there are fewer than 20 images, no calibration images or only such as are fitted to, all images
                are one group, or images are of another shape.
        """
        found = self.preprocessing.read(images, default_split="train")
        if len(found) < 20:
            raise ValueError(f"fitting a detector needs at least 20 normal images, got {len(found)}")
        held_out = None if calibration is None else self.preprocessing.read(calibration, normal_only=True)
        if held_out is not None:
            if len(held_out) == 0:
                raise ValueError("there are no calibration images")
            _unknown_to(held_out, image_hashes(found.pixels))  # before any work
        split = split_by_groups(found, held_out, groups, seed=seed)
        if len(split.fitted) < 16:
            raise ValueError(
                f"fitting a detector needs at least 16 images beside those for calibration, got {len(split.fitted)}: most "
                f"of the {len(found):,} images are of one group (by {split.by})"
            )
        pixels = split.fitted.pixels
        options: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
        normal = self._with_harmless(split.fitted, seed)
        features = compute_features(self.model, normal, self.config.features, **options)
        self.fit_features(features, self.corrupted_features(pixels, seed=seed, **options))
        self._maps.fit(normal[:MAP_IMAGES], **options)
        self._hashes["fitted"] = image_hashes(pixels)
        fitted = StorageRecord.of(split.fitted)
        self._calibrate(split.calibration, split.groups, seed=seed, **options)
        self.storage = fitted.joined(self.storage)
        self.grouping = Grouping(
            split.by, split.fitted_groups, self.num_calibration, split.alike, split.lookalikes, split.left_out
        )
        return self

    def _with_harmless(self, images: ImageSet, seed: int) -> Tensor:
        """Return pixels, some of them compressed if that is harmless; those that are already stay as they are."""
        if "jpeg" not in self.config.harmless:
            return images.pixels
        generator = torch.Generator().manual_seed(seed)
        chosen = (torch.rand(len(images), generator=generator) < 0.5) & ~is_jpeg(kinds_of(images.stored))
        copies, _ = jpeg_copies(images.pixels[chosen], generator)
        return images.pixels.index_copy(0, chosen.nonzero()[:, 0], copies)

    def fit_work(self, num: int, num_calibration: int | None = None) -> int:
        """Return how many images `fit` reports to `progress`; about so many where images come in groups.

        Args:
            num: Normal images.
            num_calibration: Calibration images, none of them among the others; None if a fifth of `num` is taken.
        """
        held = num // 5 if num_calibration is None else num_calibration
        fitted = num - held if num_calibration is None else num
        kinds = len(corruptions(self.model.config.network.channels))
        if self.config.harmless:
            held *= 1 + _num_copies(held)
        return fitted + (1 + kinds) * min(self.config.num_corrupted, fitted) + min(MAP_IMAGES, fitted) + held

    def corrupted_features(
        self, images: Tensor, *, seed: int = 0, batch_size: int = 256, progress: Progress | None = None
    ) -> dict[Family, Tensor]:
        """Return what discriminants learn from: features of some images as they are, then under each corruption.

        They are the last images, since scores are scaled on the first ones, and would be too low on images that the
        directions were found on.

        Args:
            images: Normal pixels; the last `DetectorConfig.num_corrupted` images are used.
            seed: Of the corruptions.
            batch_size: Images per forward pass.
            progress: Called with the number of images after each batch.

        Returns:
            For each family float64, shape `(1 + kinds, images, features)`.
        """
        clean, generator = images[-self.config.num_corrupted :].cpu(), torch.Generator().manual_seed(seed)
        kinds = corruptions(images.shape[1]).values()
        tables = [
            compute_features(self.model, pixels, self.config.features, batch_size=batch_size, progress=progress)
            for pixels in (clean, *(corruption(clean, generator) for corruption in kinds))
        ]
        return {family: torch.stack([table[family] for table in tables]) for family in self.config.features.families}

    def fit_features(self, features: Features, corrupted: Features) -> Detector:
        """Find discriminants and the scale of scores, without maps or p-values.

        Args:
            features: Of normal images in random order, as from `compute_features`.
            corrupted: As from `corrupted_features`.

        Raises:
            ValueError: If features do not fit each other, or there are too few images.
        """
        config, families = self.config, self.config.features.families
        # Scores, maps and hashes of an earlier fit are none of this one's.
        self._calibration, self._maps = Calibration(), AnomalyMaps(self.model, config.maps)
        self.storage, self.grouping = StorageRecord(), Grouping()
        self._hashes = {name: hashes[:0] for name, hashes in self._hashes.items()}
        self._precision = self.model.precision
        # A tenth sets the scale of scores: those of images that were fitted to are too low.
        count = len(features[families[0]])
        num_held = max(2, count // 10)
        held_out = {family: table[:num_held] for family, table in features.items()}
        train = {family: table[num_held:] for family, table in features.items()}
        discriminants = FisherDiscriminants.fit(
            _table(train, families),
            _table(train, config.covariates),
            _table(corrupted, families),
            _table(corrupted, config.covariates),
            blocks=_columns_of(config.blocks, train, families),
            ridge=config.ridge,
        )
        projections = discriminants.projections(_table(held_out, families), _table(held_out, config.covariates))
        scores = log_mean_exp(projections, config.shift)
        self._discriminants, self._scaler = discriminants, Scaler(scores.mean(), scores.std().clamp_min(1e-12))
        self._corruptions = tuple(corruptions(self.model.config.network.channels))
        self.metadata = {"fitted on": count - num_held}
        return self

    def calibrate(
        self,
        images: Images,
        *,
        groups: str | Sequence[Hashable] = "auto",
        seed: int = 0,
        batch_size: int = 256,
        progress: Progress | None = None,
    ) -> Detector:
        """Take normal images as what p-values compare with.

        Args:
            images: Best new to the model; those of `fit` are left out.
            groups: What is one group, as for `fit`; near copies of images of `fit` are not known here.
            seed: Of the compressed copies, where these count as harmless.
            batch_size: Images per forward pass.
            progress: Called with the number of images after each batch.

        Raises:
            ValueError: If none is left, or the detector is not fitted.
        """
        self._require()
        found = self.preprocessing.read(images, normal_only=True)
        kept = _unknown_to(found, self._hashes["fitted"])
        labels = find_groups(found, groups).labels[kept]
        before = self.storage
        self._calibrate(found.take(kept), labels, seed=seed, batch_size=batch_size, progress=progress)
        self.storage = before.joined(self.storage)
        self.grouping = replace(self.grouping, calibrated=self.num_calibration)
        return self

    def _calibrate(self, images: ImageSet, groups: Tensor, *, seed: int, **options: Any) -> None:
        kept = _unknown_to(images, self._hashes["fitted"])
        images, groups = images.take(kept), groups[kept]
        kinds = kinds_of(images.stored)
        scores = Scores.of(self.score(images.pixels, **options), groups, kinds)
        copies = Calibration().copies
        if "jpeg" in self.config.harmless:
            plain = ~is_jpeg(kinds)
            times = _num_copies(len(images))
            pixels = images.pixels[plain].repeat(times, 1, 1, 1)
            pixels, of_kind = jpeg_copies(pixels, torch.Generator().manual_seed(seed))
            copies = Scores.of(self.score(pixels, **options), groups[plain].repeat(times), of_kind)
        self._calibration = Calibration(scores, copies)
        self.metadata = {**self.metadata, "calibrated on": len(images)}
        self._hashes["calibrated"] = image_hashes(images.pixels)
        self.storage = StorageRecord.of(images)

    def unlike_fitting(self, stored: StorageTally) -> str | None:
        """Return in one phrase, with counts, how images were stored otherwise than those of fitting; None if alike.

        Compression and resizing change the detail that a detector judges, so its false-alarm rate need not hold for images
        of which it saw none such. None too where it is not known, as of detectors of before.
        """
        covered = [kind for kind in range(len(KINDS)) if self._calibration.covers(kind)]
        return unlike_fitting(stored, self.storage, covered, harmless="jpeg" in self.config.harmless)

    def unlike_normal_maps(self, means: Sequence[float], *, own_size: bool = False) -> str | None:
        """Return in one phrase, with numbers, why maps may show another scale than that of fitting; None if they do not.

        Args:
            means: Mean of each image's map.
            own_size: Whether they were made of images at their own size.
        """
        parts = []
        if means and own_size and (scale := unlike_scale(1.0, self.storage)) is not None:
            parts.append(f"images are taken at their own size, those of the detector were {scale}")
        if (shifted := self._maps.shifted(means, upwards=own_size)) is not None:
            parts.append(shifted)
        if not parts:
            return None
        return f"{'; '.join(parts)}: maps tell what is anomalous only at the scale that the detector was fitted at"

    def was_fitted_on(self, images: Tensor) -> Tensor:
        """Return which images it was fitted to or calibrated on, bool, shape `(n,)`: they say nothing about new ones."""
        return torch.isin(image_hashes(images), torch.cat(list(self._hashes.values())))

    # -- images to rows and maps ------------------------------------------------------------------------------------

    def predict(
        self,
        images: Images,
        *,
        fpr: float | None = None,
        fdr: float | None = None,
        split: str | None = None,
        sigma: float = 0.05,
        num_noise_samples: int = 4,
        seed: int = 0,
        batch_size: int = 256,
        progress: Progress | None = None,
    ) -> list[Score]:
        """Return a row for every image, with score, p-value, energy and percentile; unreadable ones have a row too.

        Args:
            images: Images.
            fpr: False-alarm rate: flag so that at most this share of normal images is, in expectation.
            fdr: False discovery rate instead: flag so that at most this share of the flagged images is normal
                (Benjamini-Hochberg over all of them).
            split: Part of a source, that it must have; if None, `test` of a source that has parts.
            sigma: Noise level of the energy, > 0.
            num_noise_samples: Samples of the energy's inner noise to average over, >= 1, if it has any.
            seed: Of these samples.
            batch_size: Images per forward pass.
            progress: Called with the number of images after each batch, first for energies, then for scores.

        Raises:
            ValueError: If both rates are given, one is out of range or cannot be promised with so few calibration images, or
                the detector is not fitted.
        """
        self._require()
        if fpr is not None and fdr is not None:
            raise ValueError("give a false-alarm rate or a false discovery rate, not both")
        if fpr is not None:
            self.check_rate(fpr)
        rows, p = self.judge(
            self.preprocessing.read(images, split=split, skip_unfit=True),
            sigma=sigma,
            num_noise_samples=num_noise_samples,
            seed=seed,
            batch_size=batch_size,
            resize=None if isinstance(images, Tensor) else self.preprocessing.resize,
            progress=progress,
        )
        if fpr is not None:
            rows = with_columns(
                rows, {"flagged": flagged(p, fpr, self.num_calibration, self.calibration_unit).tolist()}
            )
        elif fdr is not None:
            rows = with_columns(rows, {"flagged": benjamini_hochberg(p, fdr).tolist()})
        return rows

    def judge(
        self,
        images: ImageSet,
        *,
        sigma: float = 0.05,
        num_noise_samples: int = 4,
        seed: int = 0,
        batch_size: int = 256,
        resize: str | None = None,
        progress: Progress | None = None,
    ) -> tuple[list[Score], Tensor]:
        """Return the rows of `predict` without flags, which may need those of images to come, and exact p-values.

        Args:
            images: Images of the model's size and channels.
            sigma: As for `predict`, like all others.
            num_noise_samples: Samples of the energy's inner noise.
            seed: Of these samples.
            batch_size: Images per forward pass.
            resize: Name of the filter used, for the table.
            progress: Called with the number of images after each batch, first for energies, then for scores.

        Returns:
            A row for every image, and the p-values of the readable ones, float64, shape `(n,)`.
        """
        rows = energy_rows(
            self.model,
            images,
            sigma,
            num_noise_samples=num_noise_samples,
            seed=seed,
            batch_size=batch_size,
            resize=resize,
            progress=progress,
        )
        projections = self.projections(images.pixels, batch_size=batch_size, progress=progress)
        scores = self._score(projections)
        p = self.p_values(scores, images.stored)
        columns: dict[str, list[Any]] = {
            "score": [round(score, 4) for score in scores.tolist()],
            "p_value": [float(f"{value:.4g}") for value in p.tolist()],
            "nearest_corruption": [
                name if value <= NAMED_BELOW else None
                for name, value in zip(self._nearest(projections), p.tolist(), strict=True)
            ],
        }
        return with_columns(rows, columns), p

    def explain(self, images: Images, *, split: str | None = None, batch_size: int = 128) -> Explanation:
        """Return where images are anomalous, and what they resemble.

        Args:
            images: Images; pixels may also be of images larger than the model's.
            split: Part of a source, that it must have; if None, `test` of a source that has parts.
            batch_size: Images per forward pass.
        """
        pixels = self.preprocessing.read(images, split=split).pixels
        fits = tuple(pixels.shape[1:]) == self.model.image_shape
        return Explanation(
            self.maps(pixels, batch_size=batch_size),
            self._nearest(self.projections(pixels, batch_size=batch_size)) if fits else None,
        )

    # -- tensors ----------------------------------------------------------------------------------------------------

    def score(self, images: Tensor, *, batch_size: int = 256, progress: Progress | None = None) -> Tensor:
        """Return the score of each image, float64 on the CPU, shape `(n,)`; 0 is normal, larger is more anomalous.

        Raises:
            ValueError: If the detector is not fitted or the images are of another shape.
        """
        return self._score(self.projections(images, batch_size=batch_size, progress=progress))

    def projections(self, images: Tensor, *, batch_size: int = 256, progress: Progress | None = None) -> Tensor:
        """Return how many standard deviations each image lies in the direction of each corruption, float64 `(n, kinds)`."""
        self._require()
        self._check_precision()
        parts = [torch.empty(0, len(self._corruptions), dtype=torch.float64)]
        # Their features are thousands of numbers an image: not all at once.
        for part in torch.split(images, SCORED_AT_ONCE) if len(images) else ():
            features = compute_features(
                self.model, part, self.config.features, batch_size=batch_size, progress=progress
            )
            parts.append(self.project_features(features))
        return torch.cat(parts)

    def project_features(self, features: Features) -> Tensor:
        """Return the `projections` of images with these features, as from `compute_features`."""
        tables = _table(features, self.config.features.families), _table(features, self.config.covariates)
        return self._require()[0].projections(*tables)

    def score_features(self, features: Features) -> Tensor:
        """Return the `score` of images with these features, as from `compute_features`."""
        self._require()
        return self._score(self.project_features(features))

    def nearest_corruption(self, images: Tensor, *, batch_size: int = 256) -> list[str]:
        """Return for each image the corruption of normal images that it resembles most, a hint at why it is anomalous."""
        return self._nearest(self.projections(images, batch_size=batch_size))

    def p_values(self, scores: Tensor, stored: Sequence[Stored | None] | None = None) -> Tensor:
        """Return the conformal p-value of each score: at most alpha with a probability of at most alpha for a normal image.

        The probability is over the calibration images too, and holds if these (their groups, if any) and the image are
        exchangeable.

        Args:
            scores: Scores of new images.
            stored: How these were stored: an image is compared with calibration images that were stored alike, if there are
                enough of them.
        """
        return self._calibration.p_values(scores, None if stored is None else kinds_of(stored))

    def flag(self, scores: Tensor, fpr: float, stored: Sequence[Stored | None] | None = None) -> Tensor:
        """Return which images to flag so that at most a share `fpr` of normal ones is expected to be, bool, shape `(n,)`.

        The expectation is over the calibration images too: the rate of one detector varies around it, see
        `conformal.fpr_interval`.

        Args:
            scores: Scores of the images.
            fpr: The false-alarm rate to keep.
            stored: As for `p_values`.

        Raises:
            ValueError: If there are too few calibration images, or groups of them, for that rate.
        """
        return flagged(self.p_values(scores, stored), fpr, self.num_calibration, self.calibration_unit)

    def maps(self, images: Tensor, *, batch_size: int = 128, progress: Progress | None = None) -> Tensor:
        """Return anomaly maps, z-scores of shape `(n, height, width)`; larger images than the model's are tiled."""
        self._check_precision()
        return self._maps.maps(images, batch_size=batch_size, progress=progress)

    def _require(self) -> tuple[FisherDiscriminants, Scaler]:
        if self._discriminants is None or self._scaler is None:
            raise ValueError("the detector is not fitted: call fit first")
        return self._discriminants, self._scaler

    def _score(self, projections: Tensor) -> Tensor:
        return self._require()[1](log_mean_exp(projections, self.config.shift))

    def _nearest(self, projections: Tensor) -> list[str]:
        return [self._corruptions[i] for i in projections.argmax(1).tolist()]

    def _check_precision(self) -> None:
        if self.model.precision != self._precision:
            raise ValueError(
                f"the detector was fitted in {self._precision}, the model is in {self.model.precision} now, which moves "
                f'scores: call model.set_precision("{self._precision}")'
            )

    # -- files ------------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write `detector.json` and `detector.safetensors` into a folder, most often the model's."""
        discriminants, scaler = self._require()
        fitted = {"lda": discriminants.tensors(), "maps": self._maps.tensors()}
        # Statistics need no more than float32; the scores that are compared with later ones do.
        tensors = {f"{part}.{name}": t.float() for part, found in fitted.items() for name, t in found.items()}
        tensors |= {f"score.{name}": tensor for name, tensor in scaler.tensors().items()}
        tensors |= {f"hashes.{name}": hashes for name, hashes in self._hashes.items()}
        values = {
            "model": self.model.fingerprint(),
            "precision": self._precision,
            "config": asdict(self.config),
            "corruptions": self._corruptions,
            "metadata": self.metadata,
            "preprocessing": asdict(self.preprocessing),
            "storage": asdict(self.storage),
            "groups": asdict(self.grouping),
        }
        write_detector(Path(folder), values, tensors | self._calibration.tensors())

    @classmethod
    def load(cls, folder: str | Path, model: DenoisingEBM) -> Detector:
        """Read a detector, and bring the model to the precision that it was fitted in.

        Args:
            folder: Where `save` wrote it.
            model: The model it was fitted with.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If a file is damaged, or the detector belongs to other weights.
        """
        folder = Path(folder)
        values, tensors = read_detector(folder, fingerprint=model.fingerprint())
        config = from_dict(DetectorConfig, values["config"], where=f"{folder / CONFIG_FILE}: config")
        where = f"{folder / CONFIG_FILE}: preprocessing"
        preprocessing = read_preprocessing(values.get("preprocessing"), model.config, where)
        # Older files have neither record.
        storage = from_dict(StorageRecord, values.get("storage", {}), where=f"{folder / CONFIG_FILE}: storage")
        grouping = from_dict(Grouping, values.get("groups", {}), where=f"{folder / CONFIG_FILE}: groups")
        names = check_corruptions(values["corruptions"], model.config.network.channels, folder / CONFIG_FILE)
        check_detector_tensors(tensors, config, model, len(names), folder / TENSORS_FILE)
        check_detector_hashes(folder)
        detector = cls(model, config, preprocessing=preprocessing)
        detector.metadata = values["metadata"]
        detector.storage, detector.grouping = storage, grouping
        detector._corruptions = names
        detector._hashes = {name: tensors.get(f"hashes.{name}", none) for name, none in detector._hashes.items()}
        detector._discriminants = FisherDiscriminants.from_tensors(tensors, "lda.")
        detector._scaler = Scaler.from_tensors(tensors, "score.")
        detector._calibration = Calibration.from_tensors(tensors)
        # A detector that was fitted to features alone has no maps.
        if maps := {name.removeprefix("maps."): t for name, t in tensors.items() if name.startswith("maps.")}:
            detector._maps.load(maps)
        detector._precision = model.set_precision(values["precision"]).precision
        return detector

    @classmethod
    def from_pretrained(cls, name: str | Path, *, device: str = "cpu", revision: str | None = None) -> Detector:
        """Load a model with the detector that its folder holds; arguments and errors as for `DenoisingEBM`."""
        folder = find_model_folder(str(name), revision)
        return cls.load(folder, DenoisingEBM.from_pretrained(folder, device=device))


def _table(features: Features, families: tuple[Family, ...]) -> Tensor:
    """Return the features of some families side by side."""
    return torch.cat([features[family] for family in families], dim=-1)


def _columns_of(
    blocks: tuple[tuple[Family, ...], ...], features: Features, families: tuple[Family, ...]
) -> list[list[int]]:
    """Return where the features of each block stand in the table of `families`."""
    places, start = {}, 0
    for family in families:
        places[family] = range(start, start + features[family].shape[1])
        start = places[family].stop
    return [[column for family in block for column in places[family]] for block in blocks]


def _num_copies(count: int) -> int:
    """Return how many compressed copies of each calibration image there are: of few images more, to have each quality."""
    return 1 if count >= 100 else 3


def _unknown_to(calibration: ImageSet, fitted: Tensor) -> Tensor:
    """Return the places of calibration images whose hashes are not among those of fitting, which look too normal.

    Raises:
        ValueError: If there is none.
    """
    kept = (~torch.isin(image_hashes(calibration.pixels), fitted)).nonzero()[:, 0]
    if len(kept) == 0:
        raise ValueError("the calibration images are those of fitting: no false-alarm rate could be promised")
    return kept
