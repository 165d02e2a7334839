"""`debm info`, and model folders that are damaged."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from denoising_ebm import DenoisingEBM
from denoising_ebm.config import Config, from_dict


def test_model_folder_without_or_with_other_weights(debm: Any, folder: Path, run: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(run / "model", model)
    weights = model / "model.safetensors"
    values = json.loads((model / "config.json").read_text())
    values["config"]["network"]["latent_dim"] = 12
    (model / "config.json").write_text(json.dumps(values))
    for arguments in (["info", model], ["sample", model], ["score", model, folder]):
        error = debm(*arguments).error
        assert error.startswith(f"{weights}: weights do not fit config.json") and "expected" in error
    weights.write_bytes(weights.read_bytes()[:1000])
    assert debm("info", model).error.startswith(f"{weights}: not a readable safetensors file")
    weights.unlink()
    assert debm("info", model).error.startswith(f"{weights}: missing")
    (model / "config.json").write_text("{")
    weights.touch()
    assert debm("info", model).error.startswith(f"{model / 'config.json'}: not valid JSON")


def test_info_shows_every_figure_of_a_bundled_model(debm: Any) -> None:
    """Also those whose names are long: in the 80 columns of a terminal they once left no room for values."""
    for name in ("cifar10-small", "fashion-mnist"):
        lines = debm("info", name).out.splitlines()
        for value in json.loads(debm("info", name, "--json").out)["metadata"].values():
            start = f"{value:,}" if isinstance(value, int) else str(value).split()[0]
            assert any(start in line for line in lines), value


def test_info_counts_parameters(debm: Any, run: Path) -> None:
    model = DenoisingEBM.from_pretrained(run)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    values = json.loads(debm("info", run, "--json").out)
    assert values["parameters"] == {"total": sum(counts.values()), "phi": counts["dae"], "gamma": counts["decoder"]}
    assert from_dict(Config, values["config"]) == model.config and values["metadata"] == model.metadata
    # Six steps in z with an exact gradient, three evaluations each; six in pixels by the denoiser; a denoising step.
    assert values["NFE"] == 6 * 3 + 6 + 1
    text = debm("info", run).out
    assert re.search(r"NFE per image +25 *\n", text)
    assert f"{counts['dae']:,}" in text and "0.01 to 10" in text and "images seen" in text
    assert (
        "SDE-DPM-Solver++(2M) from h(z) plus noise, 6 steps, sigma 4 to 0.01, karras schedule, drift of the denoiser"
        in " ".join(text.split())
    )
