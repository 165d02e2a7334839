"""Denoising-EBM: one energy-based model of images that generates, scores, localises and restores."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "Config",
    "DenoisingEBM",
    "Detector",
    "Energy",
    "ImageSet",
    "PixelSampler",
    "SamplingConfig",
    "SemanticChain",
    "SemanticEnergy",
    "SumEnergy",
    "TextureEnergy",
    "__version__",
    "load_images",
    "preset",
    "to_float",
    "to_uint8",
]

if TYPE_CHECKING:
    from denoising_ebm.config import Config, PixelSampler, SamplingConfig, SemanticChain
    from denoising_ebm.datasets.images import ImageSet, load_images, to_float, to_uint8
    from denoising_ebm.energies import Energy, SemanticEnergy, SumEnergy, TextureEnergy
    from denoising_ebm.model import DenoisingEBM
    from denoising_ebm.ood.detector import Detector
    from denoising_ebm.presets import PRESETS, preset
else:
    # On first use (PEP 562): torch takes seconds to import, and `debm --help` needs none of it.
    _HOMES = {
        "PRESETS": "presets",
        "Config": "config",
        "DenoisingEBM": "model",
        "Energy": "energies",
        "ImageSet": "datasets.images",
        "PixelSampler": "config",
        "SamplingConfig": "config",
        "SemanticChain": "config",
        "Detector": "ood.detector",
        "SemanticEnergy": "energies",
        "SumEnergy": "energies",
        "TextureEnergy": "energies",
        "load_images": "datasets.images",
        "preset": "presets",
        "to_float": "datasets.images",
        "to_uint8": "datasets.images",
    }

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
