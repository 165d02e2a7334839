from __future__ import annotations

import pytest
import torch

from denoising_ebm.model import DenoisingEBM
from denoising_ebm.networks.precondition import DenoisingAutoencoder
from support import TINY_NETWORK, randomise, tiny_config

# On these tiny networks two threads mostly wait for each other (40 times slower beside another busy process).
torch.set_num_threads(1)


@pytest.fixture
def generator() -> torch.Generator:
    """A source of random numbers with a fixed seed."""
    return torch.Generator().manual_seed(20240607)


@pytest.fixture
def tiny_dae() -> DenoisingAutoencoder:
    """A real autoencoder of 16x16 gray images in float64, with no zero weights."""
    dae = DenoisingAutoencoder(TINY_NETWORK)
    randomise(dae)
    return dae.double().eval()


@pytest.fixture
def tiny_model() -> DenoisingEBM:
    """A real model of 16x16 gray images in float32, with no zero weights."""
    torch.manual_seed(0)
    model = DenoisingEBM(tiny_config())
    randomise(model)
    return model
