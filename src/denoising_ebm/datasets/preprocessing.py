"""How files become images: the same way for those that a model learns from and those that it judges."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from torch import Tensor

from denoising_ebm.datasets.decode import Decoding
from denoising_ebm.datasets.images import ImageSet, ImageStream, load_images, stream_images
from denoising_ebm.datasets.levels import ValueRange
from denoising_ebm.literals import Aspect, Frames, Resize

#: uint8 pixels `(n, channels, height, width)`, a loaded set, or where `load_images` finds one.
Images = Tensor | ImageSet | str | Path


class _Model(Protocol):
    """What has a `config.network` with `image_size` and `channels`: a `DenoisingEBM`, which this room may not import."""

    config: Any


@dataclass(frozen=True)
class Preprocessing:
    """Settings of `load_images` that change pixels.

    Attributes:
        image_size: Height and width, in pixels.
        channels: 1 or 3.
        resize: Filter that brings the central square of other sizes to `image_size`; None: other sizes are refused.
        center_crop: Side in pixels of the central square that is cut out first; None for all of the image.
        convert: Bring gray images to RGB, or RGB to gray, where `channels` asks for it.
        value_range: Levels that become black and white in files of more than 8 bits.
        background: Colour that transparent images are laid over; `ignore` reads their colours as if they were opaque.
        frames: `first` or `all` of a file of several.
        aspect: How an image that is not square becomes it: `crop`, `stretch` or `pad`; None for its central square where
            that is at least half of it.
    """

    image_size: int
    channels: int
    resize: Resize | None = None
    center_crop: int | None = None
    convert: bool = False
    value_range: ValueRange | None = None
    background: str = "white"
    frames: Frames = "first"
    aspect: Aspect | None = None

    def __post_init__(self) -> None:
        if self.center_crop is not None and self.center_crop < 1:
            raise ValueError(f"center_crop must be >= 1, got {self.center_crop}")
        Decoding(self.value_range, self.background, self.frames)

    @classmethod
    def of(cls, model: _Model, **settings: Any) -> Self:
        """Return that of images of a model's size and channels, with other settings as given."""
        network = model.config.network
        return cls(network.image_size, network.channels, **settings)

    def described(self) -> str:
        """Return the settings that are not the usual ones in a phrase, such as `resize lanczos, center_crop 140`."""
        usual = type(self)(self.image_size, self.channels)
        names = (name for name, value in asdict(self).items() if value != getattr(usual, name))
        return ", ".join(f"{name} {getattr(self, name)}" for name in names) or "taken as they are"

    def load(self, source: str | Path, **options: Any) -> ImageSet:
        """Load images; options (`split`, `limit`, `sample`, `strict`, ...) and errors as for `load_images`."""
        return load_images(source, **asdict(self), **options)

    def stream(self, source: str | Path, **options: Any) -> ImageStream:
        """Load images in chunks; options (`chunk`, `split`, ...) and errors as for `stream_images`."""
        return stream_images(source, **asdict(self), **options)

    def read(
        self, images: Images, *, split: str | None = None, default_split: str = "test", **options: Any
    ) -> ImageSet:
        """Return images as a set: those of a source loaded by `load`, others as they are; a tensor's named by number."""
        if isinstance(images, ImageSet):
            return images
        if isinstance(images, Tensor):
            return ImageSet(images, tuple(map(str, range(len(images)))))
        return self.load(images, split=split, default_split=default_split, **options)
