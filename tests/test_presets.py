from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

from denoising_ebm.config import Config, from_dict, to_dict
from denoising_ebm.presets import PRESETS, preset

#: Every value of every preset, written down once: a change of a default must not change a preset in passing.
EXPECTED: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "presets.json").read_text())


def files() -> dict[str, dict[str, Any]]:
    folder = resources.files("denoising_ebm.presets")
    found = {entry.name: entry for entry in folder.iterdir() if entry.name.endswith(".yaml")}
    return {name.removesuffix(".yaml"): yaml.safe_load(entry.read_text()) for name, entry in found.items()}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_keep_their_values(name: str) -> None:
    assert json.loads(json.dumps(to_dict(preset(name)))) == EXPECTED[name]


def test_names_are_those_of_the_files() -> None:
    assert set(PRESETS) == set(files()) == set(EXPECTED) and len(PRESETS) == len(EXPECTED)


@pytest.mark.parametrize("name", PRESETS)
def test_a_file_states_only_what_differs(name: str) -> None:
    values = files()[name]
    base = to_dict(preset(values.pop("base")) if "base" in values else Config())

    def repeated(values: dict[str, Any], base: dict[str, Any], where: str) -> list[str]:
        found = []
        for key, value in values.items():
            if isinstance(value, dict):
                found += repeated(value, base[key], f"{where}{key}.")
            elif value == base[key]:
                found.append(f"{where}{key}")
        return found

    assert repeated(values, base, "") == []


@pytest.mark.parametrize("name", PRESETS)
def test_presets_round_trip(name: str) -> None:
    assert from_dict(Config, yaml.safe_load(yaml.safe_dump(to_dict(preset(name))))) == preset(name)


def test_papers_numbers() -> None:
    """Section 5 of the paper."""
    for name in ("cifar10-paper", "svhn-paper", "celeba64-paper"):
        config = preset(name)
        assert (config.noise.num_sigmas, config.noise.sigma_max, config.noise.sigma_min) == (128, 1.0, 0.01)
        assert (config.noise.draw, config.noise.weighting, config.energy.inner_noise) == ("grid", "uniform", True)
        assert config.sampling.pixel.method == "annealed-langevin"
        assert (config.sampling.semantic.step_size, config.sampling.pixel.step_size) == (0.1, 0.01)
        assert config.training.learning_rate == 5e-5
        assert config.contrastive.reconstruction_steps == 3
        assert config.contrastive.positive_samples == "clean"
    steps = {n: (preset(n).contrastive.semantic_steps, preset(n).contrastive.texture_steps) for n in PRESETS}
    assert steps["cifar10-paper"] == steps["svhn-paper"] == (20, 90)
    assert steps["celeba64-paper"] == (40, 100)
    assert preset("cifar10-paper").sampling.semantic.steps == 35
    assert preset("cifar10-paper").sampling.pixel.steps == 100
    assert preset("celeba64-paper").network.image_size == 64


def test_unknown_preset() -> None:
    with pytest.raises(ValueError, match=r"unknown preset 'cifar': use one of fashion-mnist,"):
        preset("cifar")
