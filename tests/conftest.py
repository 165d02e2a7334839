from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from command import TRAIN, Outcome
from denoising_ebm import load_images
from denoising_ebm.cli import main
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.networks.precondition import DenoisingAutoencoder
from support import TINY_NETWORK, randomise, tiny_config

# On these tiny networks two threads mostly wait for each other (40 times slower beside another busy process).
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def hears_closed_terminals() -> Iterator[None]:
    """Tests under `nohup` would hand on that SIGHUP is ignored, to every run that they start."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


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


@pytest.fixture
def debm(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 real images as PNG files, two of them damaged."""
    folder = tmp_path_factory.mktemp("images")
    for i, pixels in enumerate(load_images("fashion-mnist", limit=300).pixels):
        Image.fromarray(pixels[0].numpy()).save(folder / f"{i:03d}.png")
    whole = (folder / "000.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_bytes(b"no image at all")
    return folder


@pytest.fixture(scope="session")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run folder, trained through the command line."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["train", str(folder), *TRAIN, "--out", str(out), "--max-images", "640", "--seed", "3"]) == 0
    return out
