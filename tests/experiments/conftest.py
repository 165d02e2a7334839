from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from denoising_ebm.experiments.experiment import Experiment, Images
from denoising_ebm.model import DenoisingEBM
from support import Projections, random_pixels


@pytest.fixture
def images() -> Images:
    """Images of 16 pixels."""
    return Images("x", random_pixels(30), random_pixels(30))


@pytest.fixture
def experiment(tmp_path: Path, tiny_model: DenoisingEBM, images: Images) -> Experiment:
    """A given model, few images, and features that cost nothing."""
    made = Experiment(tmp_path / "out", "tiny", images, trained=tiny_model, extractor=Projections(), device="cpu")
    made.sizes = replace(made.sizes, samples=40, reference=12)
    return made
