"""Run the quick tests with the lowest versions that pyproject.toml allows.

    python scripts/check_lower_bounds.py [PYTEST OPTIONS]

Direct dependencies are taken at their lowest versions, those of extras included, and what they depend on themselves as
new as they allow. The environment takes 6 GB in the temporary folder. Old versions warn of what newer ones around them
deprecate, so warnings are no errors here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("eval", "fid", "tensorboard", "pytorch-ood")
#: What tests compare with, from the extra `dev`.
ORACLES = ("diffusers", "torch-fidelity")
#: Of the tools only what runs the tests, in their newest versions.
TOOLS = ("pytest", "pytest-xdist", "hypothesis")


def main() -> None:
    """Install, print the versions, run the tests, and exit with their status."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        venv.create(folder / "uv", with_pip=True)
        venv.create(folder / "venv")
        scripts = "Scripts" if os.name == "nt" else "bin"
        subprocess.run([folder / "uv" / scripts / "python", "-m", "pip", "install", "--quiet", "uv"], check=True)
        python = folder / "venv" / scripts / "python"

        def uv(*arguments: str) -> None:
            command = [str(folder / "uv" / scripts / "uv"), "pip", *arguments, "--python", str(python)]
            subprocess.run(command, cwd=ROOT, check=True)

        dev = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["dev"]
        oracles = [requirement for requirement in dev if requirement.startswith(ORACLES)]
        uv("install", "--quiet", "--resolution", "lowest-direct", f".[{','.join(EXTRAS)}]", *oracles)
        uv("install", "--quiet", *TOOLS)
        uv("freeze")
        tests = [str(python), "-m", "pytest", "-m", "not slow", "-o", "filterwarnings=default", *sys.argv[1:]]
        status = subprocess.run(tests, cwd=ROOT).returncode
        print(f"lower bounds: checked in {time.monotonic() - start:.0f} s")
    sys.exit(status)


if __name__ == "__main__":
    main()
