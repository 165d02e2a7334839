"""Build the wheel, look into it, install it into an environment of its own, and draw images by it without a network.

What an editable install cannot show: that the package data is in the wheel, and that the declared dependencies are enough.
It takes some 6 GB in the temporary folder, nearly all of it torch, and two to three minutes: python scripts/check_wheel.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "denoising_ebm"
#: Ends of the names of what the package needs beside its code: each must be in the wheel.
DATA = (
    "model.safetensors",
    "config.json",
    "cifar10-paper.yaml",
    "prose.yaml",
    "scales.yaml",
    ".parquet",
    ".html.j2",
    "py.typed",
)

# Python imports a module of this name when it starts. An image drawn with its help was drawn offline.
NO_NETWORK = """
import socket

def connect(*arguments):
    raise OSError("the network is switched off")

socket.socket.connect = socket.socket.connect_ex = connect
"""

CHECK_INSTALLED = """
import sys
from pathlib import Path

import numpy as np
from PIL import Image

import denoising_ebm

assert Path(sys.prefix) in Path(denoising_ebm.__file__).parents, denoising_ebm.__file__
with Image.open("grid.png") as image:
    assert image.format == "PNG" and min(image.size) >= 64, (image.format, image.size)
    assert np.asarray(image).std() > 10, "the picture is blank"
print(denoising_ebm.__version__, image.size)
"""


def build(folder: Path) -> Path:
    """Build the wheel of the working tree into `folder`."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder), str(ROOT)], check=True
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


def check_content(wheel: Path) -> None:
    """Compare the names in the wheel with the files of the package."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not PurePosixPath(name).parts[0].endswith(".dist-info")}
    files = {
        path.relative_to(SOURCE.parent).as_posix()
        for path in SOURCE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    if names != files:
        sys.exit(f"{wheel.name}: lacks {sorted(files - names)}, holds besides {sorted(names - files)}")
    for end in DATA:
        if not any(name.endswith(end) for name in names):
            sys.exit(f"{wheel.name}: holds no file *{end}")


def check_installed(wheel: Path, folder: Path) -> None:
    """Install the wheel with its dependencies alone, and draw images from a folder outside the repository."""
    venv.create(folder / "venv", with_pip=True)
    binaries = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    subprocess.run([binaries / "python", "-m", "pip", "install", "--quiet", str(wheel)], check=True)
    outside, offline = folder / "outside", folder / "offline"
    outside.mkdir()
    offline.mkdir()
    (offline / "sitecustomize.py").write_text(NO_NETWORK)
    environment = os.environ | {"PYTHONPATH": str(offline), "HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}

    def run(*command: str | Path) -> None:
        subprocess.run(command, cwd=outside, env=environment, check=True)

    run(binaries / "debm", "sample", "fashion-mnist", "--n", "4", "--out", "grid.png")
    run(binaries / "python", "-c", CHECK_INSTALLED)


def main() -> None:
    """Check the wheel, and say how long it took."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = build(folder)
        check_content(wheel)
        check_installed(wheel, folder)
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, checked in {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
