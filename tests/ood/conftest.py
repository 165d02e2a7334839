"""A model that several tests give a detector."""

from __future__ import annotations

import pytest

from denoising_ebm import DenoisingEBM
from support import randomise, tiny_config


@pytest.fixture(scope="module")
def model() -> DenoisingEBM:
    model = DenoisingEBM(tiny_config())
    randomise(model.dae)
    return model.eval()
