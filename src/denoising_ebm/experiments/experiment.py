"""What all studies share: images, a judge of samples, models trained once, and the ledger of finished rows."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

from torch import Tensor

from denoising_ebm.config import Config
from denoising_ebm.datasets.images import content_hash
from denoising_ebm.experiments.cache import ResultCache, identity, settings_hash
from denoising_ebm.experiments.samplers import Drawn, draw
from denoising_ebm.experiments.settings import Sizes, Variant, variant_config
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.quality.evaluator import FidelityEvaluator
from denoising_ebm.training.once import train_once
from denoising_ebm.utils.device import choose_device, describe


class Experiment:
    """One data set, one scale, one seed.

    Args:
        ledger: Finished rows, and the folder for models.
        sizes: Counts of the scale.
        base: Configuration that variants change.
        train: Training images, uint8 `(n, c, h, w)`.
        test: Test images; the first ones are the reference of distances.
        data_name: Where they come from.
        odd: Odd sets of table 4, uint8.
        labels: Classes of training and of test images.
        trained: Takes the place of the model trained by denoising.
        inception: As for `FidelityEvaluator`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
    """

    def __init__(
        self,
        result_cache: ResultCache,
        sizes: Sizes,
        base: Config,
        train: Tensor,
        test: Tensor,
        *,
        data_name: str,
        odd: Mapping[str, Tensor] | None = None,
        labels: tuple[Sequence[str | None], Sequence[str | None]] = ((), ()),
        trained: DenoisingEBM | None = None,
        inception: bool | str = False,
        device: str = "auto",
    ) -> None:
        self.result_cache, self.sizes, self.base = result_cache, sizes, base
        self.train, self.test, self.odd = train[: sizes.train_images], test, dict(odd or {})
        self.labels, self.seed = labels, base.training.seed
        self._data_name, self._inception, self._device = data_name, inception, device
        self._models: dict[str, DenoisingEBM] = {} if trained is None else {"denoising": trained}
        self._is_given = trained is not None
        self._missing: dict[str, str] = {}

    @cached_property
    def evaluator(self) -> FidelityEvaluator:
        """Measures samples against the test images."""
        device = choose_device(self._device)
        return FidelityEvaluator(self.test[: self.sizes.reference], inception=self._inception, device=device)

    @cached_property
    def depends(self) -> dict[str, str]:
        """Hashes of what all rows are made from."""
        trained = self._models.get("denoising") if self._is_given else None
        return {
            "train": content_hash(self.train, ""),
            "test": content_hash(self.test, ""),
            "model": "" if trained is None else f"{trained.fingerprint()} {_settings_hash(trained.config)}",
        }

    @property
    def ood_hash(self) -> str:
        """A hash of the odd sets and their names."""
        return " ".join(f"{name}:{content_hash(pixels, '')}" for name, pixels in self.odd.items())

    def row(self, name: str, make: Callable[[], Mapping[str, Any]], **depends: str) -> dict[str, Any]:
        """Return the figures of a row; see `ResultCache.row`."""
        figures = self.result_cache.row(name, make, **self.depends, **depends)
        if "missing" in figures:
            self._missing[name] = figures["missing"]
        return figures

    def left_out(self, start: str) -> str:
        """Return a paragraph on the rows whose names begin with `start` and that could not be made; empty if all were."""
        reasons = [f"{name}: {reason}" for name, reason in self._missing.items() if name.startswith(start)]
        return "\n\nLeft out: " + "; ".join(reasons) + "." if reasons else ""

    def quality_row(self, name: str, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Return a row of which all figures of `FidelityEvaluator` are asked for."""
        return self.row(name, make, inception="" if self._inception is False else "yes")

    def pictures(self, name: str, make: Callable[[], Mapping[str, bytes]]) -> dict[str, bytes]:
        """Return PNG files by name, made now or before, kept as a row of the ledger.

        Raises:
            ValueError: If they cannot be made: without pictures a figure is none.
        """
        row = self.row(name, lambda: {"pictures": {key: png_text(png) for key, png in make().items()}})
        if "missing" in row:
            raise ValueError(f"{name}: {row['missing']}")
        return {key: base64.b64decode(text) for key, text in row["pictures"].items()}

    @cached_property
    def samples(self) -> Drawn:
        """The two-stage samples of the model trained by denoising, which several studies look at."""
        return draw(self.model("denoising"), self.sizes.samples, "two-stage", seed=self.seed)

    def measured(self, make: Callable[[], Drawn]) -> dict[str, Any]:
        """Draw, and return quality, network evaluations an image, seconds for 64 images, and on which hardware."""
        drawn = make()
        result = asdict(self.evaluator(drawn.images))
        result |= {"nfe": drawn.nfe, "s_per_64": 64 * drawn.seconds / len(drawn.images)}
        # Rows may be made on several machines: their seconds do not compare.
        result["hardware"] = describe(choose_device(self._device))
        if drawn.semantic is not None:
            result["semantic_distance"] = self.evaluator.frechet_distance(drawn.semantic)
        return result

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
        folder = self.result_cache.folder / "models" / name
        return train_once(self.train, config, folder, data_name=self._data_name, device=self._device, quiet=True)


def _settings_hash(config: Config) -> str:
    """Return a hash of the settings by which a trained model denoises, samples and scores."""
    unused = ("training", "contrastive", "stages")
    used = {name: value for name, value in identity(config).items() if name not in unused}
    return settings_hash(used)


def png_text(png: bytes) -> str:
    """Return a PNG file as text, for a row."""
    return base64.b64encode(png).decode("ascii")
