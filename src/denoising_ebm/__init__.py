"""Denoising-EBM: one energy-based model of images, trained without labels, that generates, scores, shows where, restores."""

from denoising_ebm.config import Config
from denoising_ebm.energies import Energy, SemanticEnergy, TextureEnergy
from denoising_ebm.images import ImageSet, load_images, to_float, to_uint8
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.presets import PRESETS, preset

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "Config",
    "DenoisingEBM",
    "Energy",
    "ImageSet",
    "SemanticEnergy",
    "TextureEnergy",
    "__version__",
    "load_images",
    "preset",
    "to_float",
    "to_uint8",
]
