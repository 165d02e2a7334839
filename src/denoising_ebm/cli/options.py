"""Options that several commands share, each with what is done with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from denoising_ebm.cli.common import note
from denoising_ebm.literals import Aspect, Frames, Precision, Resize

if TYPE_CHECKING:
    from denoising_ebm.config import NetworkConfig
    from denoising_ebm.datasets.images import ImageSet, ImageStream
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
        sample: Use N images drawn at random, of the first --limit if that is given.
        sample_seed: Seed of that draw.
        resize: Bring images of other sizes to the model's by this filter, see --aspect for those that are not square.
        center_crop: First cut out the central square of N pixels.
        aspect: How images that are not square become it: crop (the central square), stretch, or pad (borders of the
            background's colour). By default crop where that keeps at least half of an image; others are not read.
        convert: Turn gray images into RGB, or RGB into gray, where the model takes the other.
        range: Levels that become black and white in files of more than 8 bits: HIGH or LOW,HIGH, such as 4095 for 12
            bits. By default 0,65535; files of 32 bits or floating-point numbers are not read without it.
        background: What partly transparent images are laid over: white (the default), black or '#rrggbb'; ignore reads
            their colours as if they were opaque.
        frames: Which frames of animations and pages of documents are read: the first (the default), or all, each as an
            image NAME#0, NAME#1, ...
        max_pixels: Leave out images of more pixels than this, by default 67,108,864 (half as many of more than 8 bits, a
            quarter of WebP), which need less than 0.7 GB of memory. Large JPEG files are decoded at a smaller scale.
        strict: Stop at an unreadable image. By default it is left out and counted.
    """

    default_split: ClassVar[str] = "test"  #: Taken if none is given and the source has parts.

    split: str | None = None
    limit: int | None = None
    sample: int | None = None
    sample_seed: int = 0
    resize: Resize | None = None
    center_crop: int | None = None
    aspect: Aspect | None = None
    convert: bool = False
    range: str | None = None
    background: str | None = None
    frames: Frames | None = None
    max_pixels: int | None = None
    strict: bool = False

    def load(self, source: str, image_shape: tuple[int, int, int], **options: Any) -> ImageSet:
        """Load images as these options say; the user is told what was taken, decided and left out.

        Args:
            source: Folder, file, bundled dataset or `hf://owner/name`.
            image_shape: (channels, height, width) of the model's images.
            options: Further ones of `load_images`, such as `sample` and `generator`.
        """
        return load_and_note(source, **self._arguments(image_shape, options))

    def stream(self, source: str, image_shape: tuple[int, int, int], **options: Any) -> ImageStream:
        """Load images as `load` does, in chunks; what `note_images` says of them is known when all have come.

        Args:
            source: Folder, file, bundled dataset or Hub id.
            image_shape: (channels, height, width) of the model's images.
            options: Further ones of `stream_images`, such as `chunk`.
        """
        return open_images(source, **self._arguments(image_shape, options))

    def _arguments(self, image_shape: tuple[int, int, int], further: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of `load_images`."""
        import torch

        channels, size, _ = image_shape
        arguments: dict[str, Any] = {"image_size": size, "channels": channels, "default_split": self.default_split}
        arguments |= {"split": self.split, "limit": self.limit, "strict": self.strict, **self._pixels()}
        if self.max_pixels is not None:
            arguments["max_pixels"] = self.max_pixels
        if self.sample is not None:
            arguments |= {"sample": self.sample, "generator": torch.Generator().manual_seed(self.sample_seed)}
            if further.get("sample") is not None:
                # The command draws as well: of no more than these options allow.
                further = {**further, "sample": min(self.sample, further["sample"])}
        arguments |= further
        arguments["skip_unfit"] = further.get("skip_unfit", False) and not self.strict
        return arguments

    def _pixels(self) -> dict[str, Any]:
        """Return the arguments of `Preprocessing` by which images of any model become pixels."""
        from denoising_ebm.datasets.levels import parse_range

        return {
            "resize": self.resize,
            "center_crop": self.center_crop,
            "aspect": self.aspect,
            "convert": self.convert,
            "value_range": None if self.range is None else parse_range(self.range),
            "background": self.background or "white",
            "frames": self.frames or "first",
        }

    def preprocessing(self, model: DenoisingEBM) -> Preprocessing:
        """Return how these options make images of a model's size and channels."""
        return self.preprocessing_for(model.config.network)

    def preprocessing_for(self, network: NetworkConfig) -> Preprocessing:
        """Return how these options make images of the size and channels of a model to be."""
        from denoising_ebm.datasets.preprocessing import Preprocessing

        return Preprocessing(network.image_size, network.channels, **self._pixels())

    def as_fitted(self, detector: Detector | None, model: DenoisingEBM) -> ImageOptions:
        """Return the options by which the images of a detector, else of its model, were prepared, where these say nothing.

        Args:
            detector: The detector; None for images of the model alone.
            model: The model, which may not know it.
        """
        if detector is not None:
            return self.like(detector.preprocessing)
        if model.preprocessing is None:
            return self
        consequence = "what it says of images that were prepared in another way need not hold"
        return self.like(model.preprocessing, "the model was trained on", consequence)

    def like(
        self,
        before: Preprocessing,
        whose: str = "the detector was fitted to",
        consequence: str = "images prepared in another way look anomalous to it, and its false-alarm rate need not hold",
        *,
        refuse: bool = False,
    ) -> ImageOptions:
        """Return the options by which other images were prepared, where these options say nothing else.

        What is given and is another than before stays; the user is told.

        Args:
            before: How the others were prepared.
            whose: Which those are.
            consequence: What follows from another preparation.
            refuse: Refuse another one.

        Raises:
            ValueError: If another one is given and `refuse` is on.
        """
        others = {
            "resize": before.resize,
            "center_crop": before.center_crop,
            "aspect": before.aspect,
            "range": None if before.value_range is None else ",".join(f"{value:g}" for value in before.value_range),
            "background": before.background,
            "frames": before.frames,
        }
        given = {name: getattr(self, name) for name in others}
        if self.range is not None:
            from denoising_ebm.datasets.levels import parse_range

            given["range"] = ",".join(f"{value:g}" for value in parse_range(self.range))
        # A size is cut out and resized in one: a part of it is not taken over.
        together = given["resize"] is None and given["center_crop"] is None
        taken: dict[str, Any] = {"convert": self.convert or before.convert}
        for name, other in others.items():
            if given[name] is None and (together or name not in ("resize", "center_crop")):
                taken[name] = other
            elif given[name] != other and (refuse or name not in self._of_no_effect(before)):
                option = f"--{name.replace('_', '-')}"
                now, then = (f"{option} {value}" if value else f"no {option}" for value in (given[name], other))
                message = f"{now}: {whose} images with {then}; {consequence}"
                if refuse:
                    raise ValueError(message)
                note(message)
        return replace(self, **taken)

    @staticmethod
    def _of_no_effect(before: Preprocessing) -> list[str]:
        """Return the options that do not change what was prepared as it was before."""
        names = ["frames"]
        names += ["aspect"] if before.resize is None else []
        # Images of 8 bits need none, and those of more are brought to the same 8.
        names += ["range"] if before.value_range is None else []
        return names

    def given(self) -> list[str]:
        """Return the options that say something else than their defaults, as words of a command line."""
        words = []
        for option in fields(self):
            value = getattr(self, option.name)
            if value != option.default:
                name = f"--{option.name.replace('_', '-')}"
                words += [name] if value is True else [name, str(value)]
        return words


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


def open_images(source: str, **options: Any) -> ImageStream:
    """Open a source.

    Args:
        source: Folder, file, bundled dataset or Hub id.
        options: Those of `stream_images`.

    Raises:
        ValueError: As `stream_images`, and if `source` is both a bundled dataset and a local path.
    """
    from denoising_ebm.datasets.images import stream_images
    from denoising_ebm.datasets.sources import BUNDLED

    if source in BUNDLED and Path(source).exists():
        raise ValueError(f"{source} is both a bundled dataset and a local path; use ./{source} for the path")
    return stream_images(source, **options)


def note_images(source: str, images: ImageStream) -> None:
    """Tell the user what was taken of a source, decided on it and left out, once all its images have come."""
    for line in (images.source.summary(images.taken), *images.source.notes, *images.remarks(), *images.left_out()):
        note(f"{source}: {line}")


def load_and_note(source: str, **options: Any) -> ImageSet:
    """Load images, and tell the user what was taken, decided and left out.

    Args:
        source: Folder, file, bundled dataset or `hf://owner/name`.
        options: Those of `load_images`.

    Raises:
        ValueError: As `open_images`.
    """
    stream = open_images(source, chunk=16, **options)
    images = stream.joined()
    note_images(source, stream)
    return images
