from __future__ import annotations

import subprocess
import sys
from pathlib import Path

THIRD_PARTY = (
    "torch,numpy,PIL.Image,lightning_fabric,datasets,huggingface_hub,safetensors.torch,jsonargparse,matplotlib.figure,"
    "jinja2,rich.progress,yaml,scipy.ndimage"
)


def test_modules_import_without_torchvision_and_set_nothing_global() -> None:
    script = Path(__file__).with_name("import_all.py")
    result = subprocess.run([sys.executable, str(script), THIRD_PARTY], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    source = Path(__file__).parents[1] / "src" / "denoising_ebm"
    assert int(result.stdout) >= len(list(source.rglob("*.py"))) - 1
