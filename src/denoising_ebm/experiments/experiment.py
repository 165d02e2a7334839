"""What all studies share: images, an evaluator of samples, models trained once, and the cache of finished rows."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from denoising_ebm.config import Config, SamplingConfig, to_dict
from denoising_ebm.datasets.images import content_hash, to_uint8
from denoising_ebm.experiments.cache import Log, ResultCache, settings_hash
from denoising_ebm.experiments.drawing import Drawn, draw
from denoising_ebm.experiments.prose import prose
from denoising_ebm.experiments.settings import Variant, base_config, sampler_title, sizes_of, variant_config
from denoising_ebm.literals import Scale
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.quality.evaluator import FidelityEvaluator
from denoising_ebm.quality.extractors import FeatureExtractor
from denoising_ebm.quality.inception import InceptionFeatures
from denoising_ebm.training.once import train_once
from denoising_ebm.utils.device import choose_device, describe

#: Of the computation of all rows: raised when scales, presets or the training of models change.
VERSION = 1


@dataclass(frozen=True)
class Images:
    """Images of one data set, uint8 `(n, c, h, w)`.

    Attributes:
        name: Where they come from.
        train: Training images.
        test: Test images; the first ones are the reference of distances.
        ood: OOD sets of table 4, by name.
        labels: Classes of training and of test images.
    """

    name: str
    train: Tensor
    test: Tensor
    ood: Mapping[str, Tensor] = field(default_factory=dict)
    labels: tuple[Sequence[str | None], Sequence[str | None]] = ((), ())


class Experiment:
    """One data set at one scale and seed, in one folder.

    Args:
        folder: For rows and models.
        scale: Counts and budgets.
        images: The data set.
        minutes: Of each training; 0 for the scale's own.
        seed: Of weights, batches and samples.
        trained: Takes the place of the model trained by denoising.
        trained_name: Its name.
        inception: As for `FidelityEvaluator`.
        extractor: As for `FidelityEvaluator`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        train: Makes a model, with the arguments of `train_once`.
        log: Told of every row.

    Raises:
        ValueError: If images or model do not fit, or the folder holds something else.
    """

    def __init__(
        self,
        folder: Path,
        scale: Scale,
        images: Images,
        *,
        minutes: float = 0.0,
        seed: int = 0,
        trained: DenoisingEBM | None = None,
        trained_name: str = "",
        inception: bool | str = False,
        extractor: FeatureExtractor | None = None,
        device: str = "auto",
        train: Callable[..., DenoisingEBM] = train_once,
        log: Log = lambda message: None,
    ) -> None:
        shape = tuple(images.train.shape[1:])
        if trained is not None and trained.image_shape != shape:
            raise ValueError(f"the model takes images of shape {trained.image_shape}, {images.name} has {shape}")
        try:
            self.base = base_config(scale, shape[1], shape[0], minutes, seed)
        except ValueError as error:
            raise ValueError(f"{images.name}: images of {shape[1]}x{shape[2]}: {error}") from None
        # A shell completes the name of a folder with a slash, and means the same folder.
        names = {"data": images.name.rstrip("/"), "model": trained_name.rstrip("/")}
        settings = {"scale": scale, "seed": seed, "minutes": minutes, **names}
        self.cache = ResultCache(folder, settings, version=VERSION, log=log)
        self.sizes, self.images, self.seed = sizes_of(scale), images, seed
        self.train, self.test = images.train[: self.sizes.train_images], images.test
        self._inception, self._extractor, self._device, self._train = inception, extractor, device, train
        self._given = trained
        self._models: dict[str, DenoisingEBM] = {} if trained is None else {"denoising": trained}
        self._missing: dict[str, str] = {}

    # -- what is measured with ----------------------------------------------------------------------------------------

    @cached_property
    def evaluator(self) -> FidelityEvaluator:
        """Measures samples against the test images."""
        return FidelityEvaluator(
            self.test[: self.sizes.reference],
            extractor=self._extractor,
            inception=self._inception,
            device=choose_device(self._device),
        )

    def model(self, variant: Variant) -> DenoisingEBM:
        """Return the model of an objective, trained now or before."""
        if variant not in self._models:
            self._models[variant] = self.train_model(variant, variant_config(self.base, variant))
        return self._models[variant]

    def train_model(self, name: str, config: Config) -> DenoisingEBM:
        """Train a model in `models/NAME`, or go on with it, or load it if it is finished.

        Raises:
            KeyboardInterrupt: If the user interrupted training, after it was saved.
        """
        folder = self.cache.folder / "models" / name
        return self._train(self.train, config, folder, data_name=self.images.name, device=self._device, quiet=True)

    def sampling(self, variant: Variant = "denoising") -> SamplingConfig:
        """Return the sampler of a model, whether or not that is trained yet."""
        return (self.base if self._given is None or variant != "denoising" else self._given.config).sampling

    @cached_property
    def samples(self) -> Drawn:
        """The samples of the model trained by denoising, by its own sampler, which several studies look at."""
        return draw(self.model("denoising"), self.sizes.samples, seed=self.seed)

    @property
    def sample_pixels(self) -> Tensor:
        """These samples as uint8."""
        return to_uint8(self.samples[0].images.cpu())

    @property
    def hardware(self) -> str:
        """The device and torch's version."""
        return describe(choose_device(self._device))

    # -- rows -----------------------------------------------------------------------------------------------------------

    @cached_property
    def depends(self) -> dict[str, str]:
        """Hashes of what all rows are made from."""
        model = ""
        if self._given is not None:
            # By these settings a trained model denoises, samples and scores.
            config = to_dict(self._given.config)
            used = {name: config[name] for name in ("network", "noise", "energy", "sampling")}
            model = f"{self._given.fingerprint()} {settings_hash(used)}"
        return {"train": content_hash(self.train), "test": content_hash(self.test), "model": model}

    def row(self, name: str, make: Callable[[], Mapping[str, Any]], **depends: str) -> dict[str, Any]:
        """Return the figures of a row; see `ResultCache.row`."""
        row = self.cache.row(name, make, self.depends | depends)
        if "missing" in row:
            self._missing[name] = row["missing"]
        return row

    def quality_row(self, name: str, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Return a row of which all figures of the evaluator are asked for."""
        return self.row(name, make, inception="" if self._inception is False else InceptionFeatures.name)

    def measure(self, drawn: Drawn) -> dict[str, Any]:
        """Return quality, network evaluations an image (`nfe`), seconds for 64 images, and on which hardware."""
        samples, seconds = drawn
        result = asdict(self.evaluator(to_uint8(samples.images.cpu())))
        result |= {"nfe": samples.nfe, "s_per_64": 64 * seconds / len(samples.images)}
        # Rows may be made on several machines: their seconds do not compare.
        result["hardware"] = self.hardware
        if samples.semantic is not None:
            semantic = to_uint8(samples.semantic.cpu())
            result["semantic_frechet_distance"] = self.evaluator.frechet_distance(semantic)
        return result

    def pictures(self, name: str, make: Callable[[], Mapping[str, bytes]]) -> dict[str, bytes]:
        """Return PNG files by name, made now or before, kept as a row of the cache.

        Raises:
            ValueError: If they cannot be made: without pictures a figure is none.
        """
        row = self.row(name, lambda: {"pictures": {key: png_text(png) for key, png in make().items()}})
        if "missing" in row:
            raise ValueError(f"{name}: {row['missing']}")
        return {key: base64.b64decode(text) for key, text in row["pictures"].items()}

    def prose(self, name: str, samples: int = 0, **values: Any) -> str:
        """Return a text of `prose.yaml`: seed, sampler, extractor, reference and protocol of so many samples filled in."""
        return prose(
            name,
            samples=samples,
            seed=self.seed,
            sampler=sampler_title("two-stage", self.sampling()),
            extractor=self.evaluator.extractor.name,
            reference=self.evaluator.count,
            protocol=self.evaluator.protocol(samples, "test"),
            **values,
        )

    def left_out(self, start: str) -> str:
        """Return a paragraph on the rows whose names begin with `start` and that could not be made; empty if all were."""
        reasons = [f"{name}: {reason}" for name, reason in self._missing.items() if name.startswith(start)]
        return "\n\nLeft out: " + "; ".join(reasons) + "." if reasons else ""


def png_text(png: bytes) -> str:
    """Return a PNG file as text, for a row."""
    return base64.b64encode(png).decode("ascii")
