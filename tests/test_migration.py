"""Files of earlier forms are read as today's: `data/` holds a config.json of form 1 and a detector.json of form 2."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from denoising_ebm import DenoisingEBM, Detector, load_images
from denoising_ebm.config import Config, PixelSampler, SemanticChain, TrainingStage, from_dict, to_dict
from denoising_ebm.hub import CONFIG_FILE, WEIGHTS_FILE, find_model_folder
from denoising_ebm.migration import DETECTOR_FORMAT, MODEL_FORMAT, migrate_config, migrate_detector, migrate_model
from denoising_ebm.training.trainer import train
from support import random_pixels, tiny_config

FORMAT_1 = json.loads((Path(__file__).parent / "data" / "model-format-1.json").read_text())


def old_form(config: Config) -> dict[str, Any]:
    """Return the values of a config as form 1 had them."""
    values = to_dict(config)
    sampling = values["sampling"]
    semantic, pixel = sampling["semantic"], sampling["pixel"]
    assert pixel["method"] == "annealed-langevin" and pixel["step_size"] is None
    values["sampling"] = {f"semantic_{name}": semantic[name] for name in semantic if name != "temperature"} | {
        "texture_steps": pixel["steps"],
        "texture_step_size": 0.01,
        "texture_sigma_max": pixel["sigma_max"],
        "texture_sigma_min": pixel["sigma_min"],
        "texture_levels": pixel["schedule"],
        "renoise": sampling["noise_init"],
        "direction": {"energy": "exact", "denoiser": "first-term"}[pixel["drift"]],
        "consistent": False,
        "texture_order": 1,
        "temperature": pixel["temperature"],
        "cold_temperature": pixel["low_temperature"],
        "cold_sigma": pixel["low_temperature_sigma"],
        "final_denoise": pixel["final_denoise"],
    }
    values["noise"]["levels"] = values["noise"].pop("num_sigmas")
    values["contrastive"]["positives"] = values["contrastive"].pop("positive_samples")
    values["training"]["encoder_learns_decoding"] = values["training"].pop("decoder_loss_trains_encoder")
    values["recipe"] = [{"objective": s["objective"], "share": s["fraction"]} for s in values.pop("stages")]
    return values


def old_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("jacobian_norm", "sensitivity"): tensor for name, tensor in tensors.items()}


def test_a_config_of_form_1_is_todays() -> None:
    values = migrate_model(FORMAT_1)
    config = from_dict(Config, values["config"])
    assert values["format"] == MODEL_FORMAT and values["metadata"] == FORMAT_1["facts"]
    assert config.sampling.pixel == PixelSampler(
        "dpmpp-2m-sde", steps=16, sigma_max=4.0, sigma_min=0.01, schedule="karras", drift="denoiser"
    )
    assert config.sampling.semantic == SemanticChain(5, 0.05, 1.0, 0.3, 1.0) and config.sampling.noise_init
    assert config.stages == (TrainingStage("denoising", 1.0),)
    assert (config.noise.num_sigmas, config.contrastive.positive_samples) == (128, "noisy")
    assert config.training.decoder_loss_trains_encoder
    assert migrate_model(values) == values  # and stays what it is


@pytest.mark.parametrize(
    ("old", "method", "step_size"),
    [
        ({"texture_step_size": 0.3}, "annealed-langevin", 0.3),
        ({"texture_step_size": 0.3, "consistent": True}, "consistent-annealed", 0.3),
        ({"texture_step_size": 0.0, "consistent": True}, "ancestral", None),
        ({"texture_step_size": 0.0, "consistent": True, "texture_order": 2}, "dpmpp-2m-sde", None),
        ({"consistent": True}, "consistent-annealed", 0.01),
    ],
)
def test_switches_of_form_1_are_methods(old: dict[str, Any], method: str, step_size: float | None) -> None:
    config = from_dict(Config, migrate_config({"sampling": old | {"temperature": 0.5, "texture_steps": 7}}))
    pixel = config.sampling.pixel
    assert (pixel.method, pixel.step_size, pixel.steps) == (method, step_size, 7)
    assert pixel.temperature == config.sampling.semantic.temperature == 0.5


def test_todays_values_and_parts_stay() -> None:
    config = tiny_config()
    assert migrate_config(to_dict(config)) == to_dict(config)
    part = {"sampling": {"pixel": {"steps": 3}}, "training": {"seed": 1}}
    assert migrate_config(part) == part and migrate_config({}) == {}


def test_a_model_folder_of_form_1_gives_the_same_images(tiny_model: DenoisingEBM, tmp_path: Path) -> None:
    tiny_model.jacobian_norm.fill_(3.0)
    tiny_model.save_pretrained(tmp_path)
    tensors = safetensors.torch.load_file(tmp_path / WEIGHTS_FILE)
    safetensors.torch.save_file(old_tensors(tensors), tmp_path / WEIGHTS_FILE)
    values = {"format": 1, "config": old_form(tiny_model.config), "facts": {"data": "waves"}}
    (tmp_path / CONFIG_FILE).write_text(json.dumps(values))
    loaded = DenoisingEBM.from_pretrained(tmp_path)
    assert loaded.metadata == {"data": "waves"} and float(loaded.jacobian_norm) == 3.0
    assert loaded.config.sampling.pixel == replace(tiny_model.config.sampling.pixel, step_size=0.01)
    assert torch.equal(loaded.sample(2, seed=1).images, tiny_model.sample(2, seed=1).images)


def test_a_run_of_form_1_goes_on(tmp_path: Path) -> None:
    config, pixels = (
        tiny_config(TrainingStage("denoising"), TrainingStage("contrastive"), max_images=64),
        random_pixels(20),
    )
    config = replace(config, sampling=replace(config.sampling, pixel=replace(config.sampling.pixel, step_size=0.01)))
    straight = train(pixels, config, tmp_path / "straight", quiet=True).model.state_dict()
    shorter = replace(config, training=replace(config.training, max_images=32))
    train(pixels, shorter, tmp_path / "run", quiet=True)
    saved = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    without_step = replace(
        config, sampling=replace(config.sampling, pixel=replace(config.sampling.pixel, step_size=None))
    )
    saved["config"] = old_form(without_step)
    saved["clock"] = {{"stage": "phase", "stage_step": "phase_step"}.get(n, n): v for n, v in saved["clock"].items()}
    for name in ("model", "average"):
        saved[name] = old_tensors(saved[name])
    torch.save(saved, tmp_path / "run" / "state.pt")
    result = train(pixels, config, tmp_path / "run", resume=True, quiet=True)
    assert result.finished and set(straight) == set(result.model.state_dict())
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["images_seen"] == 64


# -- detectors ----------------------------------------------------------------------------------------------------------


def old_detector() -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the bundled detector as form 2 had it."""
    folder = find_model_folder("cifar10-small")
    tensors = safetensors.torch.load_file(folder / "detector.safetensors")
    parts = {
        "lda.adjustment.regression.pca.std": "members.0.expectation.given.spread",
        "lda.adjustment.regression.pca.": "members.0.expectation.given.",
        "lda.adjustment.regression.mean_log_variance": "members.0.expectation.centre",
        "lda.adjustment.regression.": "members.0.expectation.",
        "lda.adjustment.scaler.std": "members.0.spread",
        "lda.adjustment.scaler.": "members.0.",
        "lda.adjustment.residual_scaler.mean": "members.0.centre",
        "lda.adjustment.residual_scaler.std": "members.0.unit",
        "lda.": "members.0.",
        "hashes.": "seen.",
    }
    old = {"scale": torch.stack([tensors.pop("score.mean"), tensors.pop("score.std")])[:, None]}
    for name, tensor in tensors.items():
        start = next((start for start in parts if name.startswith(start)), "")
        old[parts.get(start, "") + name.removeprefix(start)] = tensor
    return json.loads((Path(__file__).parent / "data" / "detector-format-2.json").read_text()), old


def test_a_detector_of_form_2_gives_the_same_scores(tmp_path: Path) -> None:
    values, tensors = old_detector()
    (tmp_path / "detector.json").write_text(json.dumps(values))
    safetensors.torch.save_file(tensors, tmp_path / "detector.safetensors")
    today = Detector.from_pretrained("cifar10-small")
    loaded = Detector.load(tmp_path, today.model)
    assert loaded.config == today.config
    # Transparent images were black before there was a choice.
    assert loaded.preprocessing == replace(today.preprocessing, background="black")
    assert today.preprocessing.background == "white"
    assert loaded.metadata == today.metadata == values["facts"]
    images = load_images("fashion-mnist", split="test", limit=4).pixels.expand(-1, 3, -1, -1)
    rows = loaded.predict(images, fpr=0.05)
    assert rows == today.predict(images, fpr=0.05) and rows[0].nearest_corruption in values["alterations"]
    assert torch.equal(loaded.maps(images), today.maps(images))
    assert torch.equal(loaded.calibration, today.calibration)
    migrated = migrate_detector(values, tensors)
    unnamed = {"format": DETECTOR_FORMAT, "preprocessing": {"resize": "box"}}
    assert migrate_detector(unnamed, {})[0]["preprocessing"] == {"resize": "box", "background": "black"}
    assert migrated[0]["format"] == DETECTOR_FORMAT and migrate_detector(*migrated) == migrated


@pytest.mark.parametrize("changes", [{"density": "mahalanobis"}, {"families": ["energy"]}])
def test_a_detector_of_densities_must_be_fitted_again(changes: dict[str, Any], tmp_path: Path) -> None:
    values, tensors = old_detector()
    values["config"]["members"][0] |= changes
    (tmp_path / "detector.json").write_text(json.dumps(values))
    safetensors.torch.save_file(tensors, tmp_path / "detector.safetensors")
    message = r"detector\.json: made of several detectors or of densities, .*; fit it again with `debm fit-detector`"
    with pytest.raises(ValueError, match=message):
        Detector.load(tmp_path, DenoisingEBM.from_pretrained("cifar10-small"))
