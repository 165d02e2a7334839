"""What the files of a detector may hold: everything else is refused in one line that names the file and the field."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from denoising_ebm import DenoisingEBM
from denoising_ebm.config import TrainingStage
from denoising_ebm.ood.anomaly_maps import AnomalyMapConfig
from denoising_ebm.ood.detector import Detector
from denoising_ebm.ood.detector_config import DetectorConfig
from denoising_ebm.ood.features import FAMILIES, FeatureConfig, compute_features, feature_counts
from support import random_pixels, randomise, tiny_config

SMALL = DetectorConfig(
    FeatureConfig(sigmas=(0.1, 0.5), families=("energy", "noisy-energy", "latent"), feature_sigmas=(0.1,)),
    covariates=("energy",),
    blocks=(("noisy-energy", "energy"),),
    num_corrupted=10,
    maps=AnomalyMapConfig(sigmas=(0.2,), clean_sigmas=(0.2, 0.4), num_noise_samples=1, blur=1.0),
)
REGRESSION = "lda.adjustment.regression"


@pytest.fixture(scope="module")
def detector(model: DenoisingEBM) -> Detector:
    return Detector(model, SMALL).fit(random_pixels(60))


@pytest.fixture
def folder(detector: Detector, tmp_path: Path) -> Path:
    detector.save(tmp_path)
    return tmp_path


def change_values(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "detector.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change tensors as who means harm would: hashes fit again."""
    path = folder / "detector.safetensors"
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file(tensors, path)
    change_values(folder, lambda values: (values.pop("tensors"), values.pop("sha256")))


def refuse(folder: Path, model: DenoisingEBM, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Detector.load(folder, model)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["precision"], "fp8", "precision: expected one of auto, fp32, bf16, got 'fp8'"),
        (["precision"], None, "precision: expected one of"),
        (["model"], 7, "fitted for other weights (7)"),
        (["model"], ["x" * 10_000], "fitted for other weights"),
        (["metadata"], [1], "metadata: expected a mapping, got list"),
        (["config"], None, "config: expected a mapping, got NoneType"),
        (["config", "ridge"], "5", "config: ridge: expected float, got '5'"),
        (["config", "ridge"], 1e400, "config: ridge: expected a finite number, got inf"),
        (["config", "ridge"], 10**400, "10**400"),
        (["config", "shift"], float("nan"), "config: shift: expected a finite number, got nan"),
        (["config", "shift"], 0.0, "config: detector.ridge and detector.shift must be > 0"),
        (["config", "num_corrupted"], True, "config: num_corrupted: expected int, got True"),
        (["config", "blocks"], [["energy", "smell"]], "config: blocks: expected one of energy, "),
        (["config", "features", "sigmas"], [0.1, 1e-300], "features.sigmas must be at most 100 noise levels within"),
        (["config", "features", "sigmas"], [0.1] * 5000, "config: features: sigmas: expected at most 1,000 values"),
        (["config", "maps", "num_noise_samples"], 10**9, "maps.num_noise_samples and maps.blur must be <= 100"),
        (["config", "maps", "sigmas"], {}, "config: maps: sigmas: expected a list, got {}"),
        (["corruptions"], "blur", "corruptions: expected a list of names, got 'blur'"),
        (["corruptions"], [], "corruptions: expected a list of names"),
        (["corruptions"], ["blur", "=cmd()"], "corruptions: '=cmd()' is none of images with 1 channel"),
        (["corruptions"], ["blur", {}], "corruptions: {} is none"),
        (["corruptions"], ["blur", "blur"], "corruptions: a name is given twice"),
        (["corruptions"], ["more red"], "corruptions: 'more red' is none of images with 1 channel"),
        (["preprocessing"], [], "preprocessing: expected a mapping, got list"),
        (["preprocessing", "image_size"], 64, "preprocessing: image_size is 64, the model's images have 16"),
        (["preprocessing", "channels"], 3, "preprocessing: channels is 3"),
        (["preprocessing", "convert"], "yes", "preprocessing: convert: expected bool, got 'yes'"),
        (["sha256"], 5, "sha256: expected a mapping"),
        (["config", "shift"], 1.25, "was changed after it was written"),
    ],
)
def test_wrong_values(path: list[str], value: Any, message: str, folder: Path, model: DenoisingEBM) -> None:
    def change(values: dict[str, Any]) -> None:
        *parents, last = path
        for name in parents:
            values = values[name]
        values[last] = value

    if message == "10**400":
        change_values(folder, lambda values: values["config"].update(ridge=12345))
        text = (folder / "detector.json").read_text().replace("12345", "1" + "0" * 400)
        (folder / "detector.json").write_text(text)
        message = "detector.json: not valid JSON (a number of 401 digits)"
    else:
        change_values(folder, change)
    refuse(folder, model, message)


def test_calibration_and_statistics_that_are_not_finite(folder: Path, model: DenoisingEBM, detector: Detector) -> None:
    """No tensor of a detector may be NaN: its scores would be, and nothing is at least as anomalous as NaN."""
    names = [
        n for n, t in safetensors.torch.load_file(folder / "detector.safetensors").items() if t.is_floating_point()
    ]
    assert len(names) == 18
    for name in names:
        for value in (float("nan"), float("inf")):
            detector.save(folder)
            change_tensors(folder, lambda tensors, name=name, value=value: tensors[name].view(-1)[-1:].fill_(value))
            refuse(folder, model, f"detector.safetensors: {name} holds values that are not finite")


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("lda.directions", torch.zeros(3, 2), "lda.directions has shape (3, 2), expected (8, "),
        ("lda.offset", torch.zeros(1), "lda.offset has shape (1,), expected ("),
        ("calibration", torch.zeros(4, 4), "calibration has shape (4, 4), expected (any,)"),
        ("calibration", torch.zeros(12, dtype=torch.int64), "calibration is of type int64"),
        ("score.std", torch.zeros(()), "score.std must be > 0 throughout"),
        ("score.mean", torch.zeros(1), "score.mean has shape (1,), expected ()"),
        ("lda.adjustment.scaler.std", -torch.ones(8), "lda.adjustment.scaler.std must be > 0"),
        (f"{REGRESSION}.mean", torch.zeros(2, 8), f"{REGRESSION}.mean has shape (2, 8), expected (6, 8)"),
        (f"{REGRESSION}.pca.components", torch.zeros(2, 900), f"{REGRESSION}.pca.components has shape (2, 900)"),
        (f"{REGRESSION}.pca.components", torch.zeros(()), f"{REGRESSION}.pca.components has shape ()"),
        (f"{REGRESSION}.mean_log_variance", torch.full((8,), 1e30), "mean_log_variance must be within -100..100"),
        ("maps.mean", torch.zeros(3, 15, 16), "maps.mean has shape (3, 15, 16), expected (3, 16, 16)"),
        ("maps.std", torch.zeros(3, 16, 16), "maps.std must be > 0 throughout"),
        ("hashes.fitted", torch.zeros(3), "hashes.fitted is of type float32, expected int64"),
        ("extra", torch.zeros(3), "extra is unknown"),
        ("x" * 10_000, torch.zeros(3), "xxx... is unknown"),
    ],
)
def test_wrong_tensors(name: str, tensor: Tensor, message: str, folder: Path, model: DenoisingEBM) -> None:
    change_tensors(folder, lambda tensors: tensors.update({name: tensor}))
    refuse(folder, model, message)


def test_half_of_the_maps(folder: Path, model: DenoisingEBM) -> None:
    change_tensors(folder, lambda tensors: tensors.pop("maps.std"))
    refuse(folder, model, "does not fit detector.json: maps.std is missing")


def test_any_flipped_bit_is_noticed(folder: Path, model: DenoisingEBM, detector: Detector) -> None:
    for name, step in (("detector.json", 37), ("detector.safetensors", 641)):
        path = folder / name
        content = path.read_bytes()
        for place in range(0, len(content), step):
            changed = bytearray(content)
            changed[place] ^= 1 << (place % 7)
            path.write_bytes(changed)
            try:
                loaded = Detector.load(folder, model)
            except ValueError as error:
                assert str(folder / "detector.") in str(error) and "\n" not in str(error)
            else:
                # White space says nothing, and an entry of hashes by another name is none.
                assert name == "detector.json"
                for part in ("config", "metadata", "preprocessing", "_corruptions"):
                    assert getattr(loaded, part) == getattr(detector, part)
                assert torch.equal(loaded.calibration, detector.calibration)
        path.write_bytes(content)


def test_counts_of_features_are_those_that_are_computed() -> None:
    for channels, config in ((1, FeatureConfig()), (3, FeatureConfig((0.1, 0.3), FAMILIES, (0.3,)))):
        base = tiny_config()
        network = type(base.network)(**{**vars(base.network), "channels": channels})
        model = DenoisingEBM(type(base)(**{**vars(base), "network": network}))
        features = compute_features(model, random_pixels(2, channels=channels), config)
        assert {family: table.shape[1] for family, table in features.items()} == feature_counts(config, network)


def test_maps_of_a_model_trained_by_score_are_read(tmp_path: Path) -> None:
    """It has each level once, whichever of both kinds names it."""
    model = DenoisingEBM(tiny_config(TrainingStage("score")))
    randomise(model.dae)
    detector = Detector(model.eval(), SMALL).fit(random_pixels(60))
    detector.save(tmp_path)
    loaded = Detector.load(tmp_path, model)
    images = random_pixels(2, seed=5)
    # Statistics are stored in float32.
    torch.testing.assert_close(loaded.maps(images), detector.maps(images), rtol=0, atol=1e-4)
