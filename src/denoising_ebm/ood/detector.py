"""A detector of odd images: opinions on features of a model, a false-alarm rate that is kept, maps of where."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from denoising_ebm.config import from_dict
from denoising_ebm.datasets.images import image_hashes
from denoising_ebm.hub import DETECTOR_FILES, find_model_folder
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.ood.alterations import alterations
from denoising_ebm.ood.anomaly_maps import AnomalyMapConfig, AnomalyMaps
from denoising_ebm.ood.conformal import flagged, p_values
from denoising_ebm.ood.features import Family, FeatureConfig, compute_features
from denoising_ebm.ood.lda import FisherDiscriminants
from denoising_ebm.ood.members import Member, table_of
from denoising_ebm.utils.io import read_json, write_atomically, write_text_atomically

CONFIG_FILE, TENSORS_FILE = DETECTOR_FILES
FORMAT = 2
#: Images that the statistics of maps are taken from, at most.
MAP_IMAGES = 1000
#: Images whose features, some thousand numbers each, are kept at a time in scoring.
SCORED_AT_ONCE = 4096

Progress = Callable[[int], object]


_ENERGIES: tuple[Family, ...] = ("energy", "noised-energy")
_SUMS: tuple[Family, ...] = (*_ENERGIES, "score", "curvature", "spectrum", "channels")
_ALL: tuple[Family, ...] = (*_SUMS, "latent", "pooled")
_DEFAULT = Member(_ALL, "discriminants", given=_ENERGIES, blocks=(_ALL, (*_SUMS, "latent"), ("latent", "pooled")))


@dataclass(frozen=True)
class DetectorConfig:
    """What a detector computes.

    Attributes:
        features: The features and their noise levels.
        members: The opinions. Each one's score is standardised on normal images.
        combine: `max`: an image is as odd as its oddest opinion; `mean`: the opinions' mean.
        altered: Normal images that are altered in every way of `alterations.py` to find `discriminants`.
        maps: How maps of where an image is odd are made.
    """

    features: FeatureConfig = field(
        default_factory=lambda: FeatureConfig(sigmas=(0.02, 0.05, 0.1, 0.4), families=_ALL, inner_sigmas=(0.05,))
    )
    members: tuple[Member, ...] = (_DEFAULT,)
    combine: Literal["max", "mean"] = "max"
    altered: int = 100
    maps: AnomalyMapConfig = field(default_factory=AnomalyMapConfig)

    def __post_init__(self) -> None:
        if not self.members:
            raise ValueError("detector.members needs at least one member")
        if self.altered < 1:
            raise ValueError(f"detector.altered must be >= 1, got {self.altered}")
        for member in self.members:
            missing = [name for name in (*member.families, *member.given) if name not in self.features.families]
            if missing:
                raise ValueError(
                    f"detector.members: {', '.join(missing)} is not among the computed features "
                    f"({', '.join(self.features.families)})"
                )

    def num_altered(self, num: int, channels: int) -> int:
        """Return how many images `Detector.altered_columns` looks at, given `num` normal ones."""
        if not any(member.density == "discriminants" for member in self.members):
            return 0
        return (1 + len(alterations(channels))) * min(self.altered, num)


class Detector:
    """Scores how odd images are beside those it was fitted on; larger = more odd.

    Args:
        model: The model whose features are used.
        config: Features and opinions; the default of the package if None.
    """

    def __init__(self, model: DenoisingEBM, config: DetectorConfig | None = None) -> None:
        self.model = model
        self.config = config or DetectorConfig()
        self.metadata: dict[str, Any] = {}
        #: How files became the images that it was fitted to (`resize`, `center_crop`, `convert`); so must others be.
        self.preprocessing: dict[str, Any] = {}
        self._seen = {name: torch.empty(0, dtype=torch.int64) for name in ("fitted", "calibrated")}
        self._opinions = [member.build() for member in self.config.members]
        self._scale: Tensor | None = None
        self._precision = model.precision
        self._kinds: tuple[str, ...] = ()
        self._maps = AnomalyMaps(model, self.config.maps)
        self.calibration = torch.empty(0, dtype=torch.float64)  #: Scores of the calibration images, for p-values.

    @property
    def is_fitted(self) -> bool:
        """Whether `fit` was called, or a fitted detector loaded."""
        return self._scale is not None

    # -- fitting ----------------------------------------------------------------------------------------------------

    def fit(
        self,
        images: Tensor,
        *,
        calibration: Tensor | None = None,
        seed: int = 0,
        batch_size: int = 256,
        progress: Progress | None = None,
    ) -> Detector:
        """Fit to normal images.

        Args:
            images: Normal images, uint8, shape `(n, channels, height, width)`. They may be those the model was trained on.
            calibration: Normal images for the p-values, best not among those of training; if None a fifth of `images`, by
                `seed`, which then takes no part in fitting. Those that are fitted to as well are left out.
            seed: Of the split and the alterations.
            batch_size: Images per forward pass.
            progress: Called with the number of images after each batch: those of fitting, `DetectorConfig.num_altered`
                altered ones, up to `MAP_IMAGES` of fitting again for the maps, those of calibration.

        Returns:
            Itself.

        Raises:
            ValueError: If there are fewer than 20 images, no calibration images or only such as are fitted to, or images
                are of another shape.
        """
        if len(images) < 20:
            raise ValueError(f"fitting a detector needs at least 20 normal images, got {len(images)}")
        if calibration is not None and len(calibration) == 0:
            raise ValueError("there are no calibration images")
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        if calibration is None:
            num = len(images) // 5
            calibration, order = images[order[:num]], order[num:]
        fitted = image_hashes(images[order])
        _without(calibration, fitted)  # before any work
        columns = compute_features(
            self.model, images[order], self.config.features, batch_size=batch_size, progress=progress
        )
        altered = self.altered_columns(images[order], seed=seed, batch_size=batch_size, progress=progress)
        self.fit_columns(columns, altered)
        self._maps.fit(images[order[:MAP_IMAGES]], batch_size=batch_size, progress=progress)
        self._seen["fitted"] = fitted
        return self.calibrate(calibration, batch_size=batch_size, progress=progress)

    def was_fitted_on(self, images: Tensor) -> Tensor:
        """Return which images it was fitted to or calibrated on, bool, shape `(n,)`: they say nothing about new ones.

        Args:
            images: uint8, shape `(n, channels, height, width)`.
        """
        return torch.isin(image_hashes(images), torch.cat(list(self._seen.values())))

    def altered_columns(
        self, images: Tensor, *, seed: int = 0, batch_size: int = 256, progress: Progress | None = None
    ) -> dict[Family, Tensor]:
        """Return what `discriminants` learn from: features of the last images as they are, then of each alteration.

        The last ones, since the first ones set the scale of scores, which those that a score was found on would make too
        small.

        Args:
            images: Normal images, uint8, shape `(n, channels, height, width)`; the last `DetectorConfig.altered` are used.
            seed: Of the alterations.
            batch_size: Images per forward pass.
            progress: Called with the number of images after each batch.

        Returns:
            For each family float64, shape `(1 + kinds, images, columns)`; nothing if no member is `discriminants`.
        """
        config = self.config
        if not config.num_altered(len(images), images.shape[1]):
            return {}
        originals, generator = images[-config.altered :].cpu(), torch.Generator().manual_seed(seed)
        sets = [originals] + [alter(originals, generator) for alter in alterations(images.shape[1]).values()]
        tables = [
            compute_features(self.model, pixels, config.features, batch_size=batch_size, progress=progress)
            for pixels in sets
        ]
        return {family: torch.stack([table[family] for table in tables]) for family in config.features.families}

    def fit_columns(self, columns: Mapping[Family, Tensor], altered: Mapping[Family, Tensor] | None = None) -> Detector:
        """Fit the members to features of normal images, without maps or p-values.

        Args:
            columns: Features of normal images in random order, as from `compute_features`.
            altered: As from `altered_columns`, where a member needs it.

        Raises:
            ValueError: If a member needs `altered` and it is missing, or features do not fit each other.
        """
        # Scores, maps and hashes of an earlier fit are none of this one's.
        self.calibration, self._maps = self.calibration[:0], AnomalyMaps(self.model, self.config.maps)
        self._seen = {name: hashes[:0] for name, hashes in self._seen.items()}
        self._precision = self.model.precision
        # A tenth sets the scale of the members' scores: those of images a density was fitted to are too low.
        count = len(next(iter(columns.values())))
        num = max(2, count // 10)
        fitted = {family: table[num:] for family, table in columns.items()}
        fresh = {family: table[:num] for family, table in columns.items()}
        table = torch.stack([opinion.fit(fitted, altered or {}).score(fresh) for opinion in self._opinions])
        self._scale = torch.stack([table.mean(1), table.std(1).clamp_min(1e-12)])
        self._kinds = tuple(alterations(self.model.config.network.channels)) if altered else ()
        self.metadata = {"fitted on": count - num}
        return self

    def calibrate(self, images: Tensor, *, batch_size: int = 256, progress: Progress | None = None) -> Detector:
        """Take normal images as what p-values compare with.

        Args:
            images: uint8, shape `(n, channels, height, width)`, best new to the model; those of `fit` are left out.
            batch_size: Images per forward pass.
            progress: Called with the number of images after each batch.

        Raises:
            ValueError: If none is left, or the detector is not fitted.
        """
        images = _without(images, self._seen["fitted"])
        self.calibration = self.score(images, batch_size=batch_size, progress=progress)
        self.metadata = {**self.metadata, "calibrated on": len(images)}
        self._seen["calibrated"] = image_hashes(images)
        return self

    # -- scoring ----------------------------------------------------------------------------------------------------

    def score(self, images: Tensor, *, batch_size: int = 256, progress: Progress | None = None) -> Tensor:
        """Return how odd each image is, float64 on the CPU, shape `(n,)`; 0 is usual, larger is more odd.

        Args:
            images: uint8, shape `(n, channels, height, width)`.
            batch_size: Images per forward pass.
            progress: Called with the number of images after each batch.

        Raises:
            ValueError: If the detector is not fitted or the images are of another shape.
        """
        if len(images) == 0:
            return torch.empty(0, dtype=torch.float64)
        parts = torch.split(images, SCORED_AT_ONCE)
        return torch.cat([self.combine(self.columns(part, batch_size=batch_size, progress=progress)) for part in parts])

    def columns(
        self, images: Tensor, *, batch_size: int = 256, progress: Progress | None = None
    ) -> dict[Family, Tensor]:
        """Return the features that `combine` and `nearest_corruption` take; arguments and errors as for `score`."""
        if self._scale is None:
            raise ValueError("the detector is not fitted: call fit first")
        self._check_precision()
        return compute_features(self.model, images, self.config.features, batch_size=batch_size, progress=progress)

    def combine(self, columns: Mapping[Family, Tensor]) -> Tensor:
        """Return the scores of images whose features are `columns`, as from `compute_features`."""
        if self._scale is None:
            raise ValueError("the detector is not fitted: call fit first")
        mean, std = self._scale
        scores = (torch.stack([opinion.score(columns) for opinion in self._opinions], dim=1) - mean) / std
        combined: Tensor = scores.mean(1) if self.config.combine == "mean" else scores.max(1).values
        return combined

    def nearest_corruption(self, columns: Mapping[Family, Tensor]) -> list[str] | None:
        """Return for each image the alteration that it resembles most, as a hint at why it is odd.

        Args:
            columns: Features of images, as from `columns`.

        Returns:
            Names of `alterations.py`; None if the detector has no `discriminants`.
        """
        for opinion in self._opinions:
            if isinstance(opinion.density, FisherDiscriminants):
                heads = opinion.density.heads(
                    table_of(columns, opinion.member.families), table_of(columns, opinion.member.given)
                )
                return [self._kinds[i] for i in heads.argmax(1).tolist()]
        return None

    def p_values(self, scores: Tensor) -> Tensor:
        """Return the conformal p-value of each score: at most alpha with a probability of at most alpha for a normal image.

        The probability is over the calibration images too, and holds if these and the image are exchangeable.
        """
        return p_values(self.calibration, scores)

    def flag(self, scores: Tensor, fpr: float) -> Tensor:
        """Return which images to flag so that at most a share `fpr` of normal ones is expected to be, bool, shape `(n,)`.

        The expectation is over the calibration images too: the rate of one detector varies around it, see
        `conformal.fpr_interval`.

        Raises:
            ValueError: If there are too few calibration images for that rate.
        """
        return flagged(self.p_values(scores), fpr, len(self.calibration))

    def maps(self, images: Tensor, *, batch_size: int = 128, progress: Progress | None = None) -> Tensor:
        """Return how odd every pixel is, as `AnomalyMaps.maps`: z-scores, shape `(n, height, width)`, larger images tiled."""
        self._check_precision()
        return self._maps.maps(images, batch_size=batch_size, progress=progress)

    def _check_precision(self) -> None:
        if self.model.precision != self._precision:
            raise ValueError(
                f"the detector was fitted in {self._precision}, the model is in {self.model.precision} now, which moves "
                f'scores: call model.set_precision("{self._precision}")'
            )

    # -- files ------------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write `detector.json` and `detector.safetensors` into a folder, most often the model's."""
        if self._scale is None:
            raise ValueError("the detector is not fitted: call fit first")
        tensors = {"scale": self._scale, "calibration": self.calibration}
        for i, opinion in enumerate(self._opinions):
            tensors |= {f"members.{i}.{name}": tensor for name, tensor in opinion.density.tensors().items()}
        tensors |= {f"maps.{name}": tensor for name, tensor in self._maps.tensors().items()}
        # Distances need no more than float32; the scores that are compared with later ones do.
        tensors = {name: t if name in ("scale", "calibration") else t.float() for name, t in tensors.items()}
        tensors |= {f"seen.{name}": hashes for name, hashes in self._seen.items()}
        values = {
            "format": FORMAT,
            "model": self.model.fingerprint(),
            "precision": self._precision,
            "config": asdict(self.config),
            "alterations": self._kinds,
            "metadata": self.metadata,
            "preprocessing": self.preprocessing,
        }
        content = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
        # One file may be written and the other not.
        values["tensors"] = hashlib.sha256(content).hexdigest()
        write_atomically(Path(folder) / TENSORS_FILE, lambda path: path.write_bytes(content))
        text = json.dumps(values, indent=2) + "\n"
        write_text_atomically(Path(folder) / CONFIG_FILE, text)

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
        path = Path(folder) / CONFIG_FILE
        for file in (path, path.with_name(TENSORS_FILE)):
            if not file.is_file():
                raise FileNotFoundError(f"{file}: missing; `debm fit-detector` makes it")
        values = read_json(path)
        try:
            content = path.with_name(TENSORS_FILE).read_bytes()
            tensors = safetensors.torch.load(content)
        except SafetensorError as error:
            raise ValueError(f"{path.with_name(TENSORS_FILE)}: not a readable safetensors file ({error})") from None
        if values.get("format") != FORMAT:
            raise ValueError(f"{path}: not a detector of format {FORMAT}; fit it again with `debm fit-detector`")
        lacking = [name for name in ("model", "precision", "config", "alterations") if name not in values]
        if lacking:
            raise ValueError(f"{path}: {lacking[0]!r} is missing")
        digest = hashlib.sha256(content).hexdigest()
        if values.get("tensors", digest) != digest:  # files of before have none
            raise ValueError(
                f"{path}: belongs to another {TENSORS_FILE} than the one beside it; fit the detector again with "
                "`debm fit-detector`"
            )
        if values["model"] != model.fingerprint():
            raise ValueError(
                f"{path}: fitted for other weights ({values['model']}) than those given ({model.fingerprint()}); "
                "fit it again with `debm fit-detector`"
            )
        detector = cls(model, from_dict(DetectorConfig, values["config"], where=f"{path}: config"))
        detector.metadata = dict(values.get("metadata", {}))
        detector.preprocessing = dict(values.get("preprocessing", {}))
        detector._seen = {name: tensors.get(f"seen.{name}", hashes) for name, hashes in detector._seen.items()}
        detector._kinds = tuple(values["alterations"])
        try:
            detector._scale, detector.calibration = tensors["scale"], tensors["calibration"]
            for i, opinion in enumerate(detector._opinions):
                prefix = f"members.{i}."
                opinion.density.load({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
            # A detector that was fitted to columns alone has no maps.
            if any(name.startswith("maps.") for name in tensors):
                detector._maps.load({n: tensors[f"maps.{n}"] for n in ("mean", "std")})
        except KeyError as error:
            raise ValueError(f"{path.with_name(TENSORS_FILE)}: {error} is missing") from None
        model.set_precision(values["precision"])
        detector._precision = model.precision
        return detector

    @classmethod
    def from_pretrained(cls, name: str | Path, *, device: str = "cpu", revision: str | None = None) -> Detector:
        """Load a model with the detector that its folder holds; arguments and errors as for `DenoisingEBM`."""
        folder = find_model_folder(str(name), revision)
        return cls.load(folder, DenoisingEBM.from_pretrained(folder, device=device))


def _without(calibration: Tensor, fitted: Tensor) -> Tensor:
    """Return the calibration images whose hashes are not among those of fitting, which look too normal.

    Raises:
        ValueError: If none is left.
    """
    kept = calibration[~torch.isin(image_hashes(calibration), fitted)]
    if len(kept) == 0:
        raise ValueError("the calibration images are those of fitting: no false-alarm rate could be promised")
    return kept
