"""Options that several commands share, each with what is done with them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from denoising_ebm.cli.common import note
from denoising_ebm.literals import Precision, Resize

if TYPE_CHECKING:
    from denoising_ebm.datasets.images import ImageSet
    from denoising_ebm.datasets.preprocessing import Preprocessing
    from denoising_ebm.model import DenoisingEBM
    from denoising_ebm.ood.detector import Detector


@dataclass(frozen=True)
class ImageOptions:
    """Images.

    Attributes:
        split: Part of the source, such as train, validation or test, that it must have; `all` takes every image. By
            default train to learn from and test to judge, or all images of a source without parts.
        limit: Use the first N images only.
        resize: Bring images of other sizes to the model's: the central square, then this filter.
        center_crop: First cut out the central square of N pixels.
        convert: Turn gray images into RGB, or RGB into gray, where the model takes the other.
        strict: Stop at an unreadable image. By default it is left out and counted.
    """

    default_split: ClassVar[str] = "test"  #: Taken if none is given and the source has parts.

    split: str | None = None
    limit: int | None = None
    resize: Resize | None = None
    center_crop: int | None = None
    convert: bool = False
    strict: bool = False

    def load(self, source: str, image_shape: tuple[int, int, int], **options: Any) -> ImageSet:
        """Load images as these options say; the user is told what was left out.

        Args:
            source: Folder, file, bundled dataset or Hub id.
            image_shape: (channels, height, width) of the model's images.
            options: Further ones of `load_images`, such as `sample` and `generator`.
        """
        channels, size, _ = image_shape
        options = {"default_split": self.default_split, **options}
        options["skip_unfit"] = options.get("skip_unfit", False) and not self.strict
        return load_and_note(source, image_size=size, channels=channels, **vars(self), **options)

    def preprocessing(self, model: DenoisingEBM) -> Preprocessing:
        """Return how these options make images of a model's size and channels."""
        from denoising_ebm.datasets.preprocessing import Preprocessing

        return Preprocessing.of(model, resize=self.resize, center_crop=self.center_crop, convert=self.convert)

    def as_fitted(self, detector: Detector | None) -> ImageOptions:
        """Return the options by which a detector's images were prepared, where these options say nothing else.

        A size or filter that is given and is another than the detector's stays; the user is told.
        """
        if detector is None:
            return self
        fitted = detector.preprocessing
        options = replace(self, convert=self.convert or fitted.convert)
        if self.resize is None and self.center_crop is None:
            return replace(options, resize=fitted.resize, center_crop=fitted.center_crop)
        for name in ("resize", "center_crop"):
            given, before = getattr(self, name), getattr(fitted, name)
            if given != before:
                option = f"--{name.replace('_', '-')}"
                now, then = (f"{option} {value}" if value else f"no {option}" for value in (given, before))
                note(
                    f"{now}: the detector was fitted to images with {then}; images prepared in another way look "
                    "anomalous to it, and its false-alarm rate need not hold"
                )
        return options


@dataclass(frozen=True)
class HardwareOptions:
    """Hardware.

    Attributes:
        device: auto, cpu, cuda or cuda:N; auto takes a GPU if there is one.
        precision: Of the networks; auto is bf16 where that is fast.
    """

    device: str = "auto"
    precision: Precision = "auto"

    def load_model(self, name: str) -> DenoisingEBM:
        """Load a model onto the device, in the precision."""
        from denoising_ebm.model import DenoisingEBM

        return DenoisingEBM.from_pretrained(name, device=self.device).set_precision(self.precision)


class LearningImages(ImageOptions):
    """Images to learn from."""

    default_split: ClassVar[str] = "train"


TRAIN_IMAGES = LearningImages()
TEST_IMAGES = ImageOptions()
HARDWARE = HardwareOptions()


def load_and_note(source: str, **options: Any) -> ImageSet:
    """Load images, and tell the user what was left out.

    Args:
        source: Folder, file, bundled dataset or Hub id.
        options: Those of `load_images`.

    Raises:
        ValueError: As `load_images`, and if `source` is both a bundled dataset and a local path.
    """
    from denoising_ebm.datasets.images import load_images
    from denoising_ebm.datasets.sources import BUNDLED

    if source in BUNDLED and Path(source).exists():
        raise ValueError(f"{source} is both a bundled dataset and a local path; use ./{source} for the path")
    images = load_images(source, **options)
    if images.unreadable:
        first, kind = images.unreadable[0], "unreadable or unfit" if options.get("skip_unfit") else "unreadable"
        note(f"{source}: {len(images.unreadable)} {kind} image(s) left out, first {first.name}: {first.reason}")
    return images
