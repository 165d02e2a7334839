from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from denoising_ebm import DenoisingEBM, hub, to_float
from denoising_ebm.config import to_dict
from denoising_ebm.hub import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, find_model_folder
from denoising_ebm.training.calibration import calibrate
from denoising_ebm.utils.io import write_atomically
from support import random_pixels, tiny_config


@pytest.fixture
def folder(tiny_model: DenoisingEBM, tmp_path: Path) -> Path:
    tiny_model.metadata["data"] = "waves"
    calibrate(tiny_model, to_float(random_pixels(20)))
    tiny_model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change_config(folder: Path, **values: Any) -> None:
    path = folder / CONFIG_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def change_weights(folder: Path, change: Any) -> None:
    tensors = safetensors.torch.load_file(folder / WEIGHTS_FILE)
    change(tensors)
    safetensors.torch.save_file(tensors, folder / WEIGHTS_FILE)


def test_reloaded_model_is_the_same_to_the_bit(folder: Path, tiny_model: DenoisingEBM) -> None:
    loaded = DenoisingEBM.from_pretrained(folder)
    assert loaded.config == tiny_model.config and loaded.metadata == tiny_model.metadata and not loaded.training
    saved = tiny_model.state_dict()
    assert list(saved) == list(loaded.state_dict())
    for name, value in loaded.state_dict().items():
        assert value.dtype == saved[name].dtype
        torch.testing.assert_close(value, saved[name], rtol=0, atol=0, equal_nan=True)
    x = to_float(random_pixels(5, seed=1))
    noise = tiny_model.scoring_noise()
    for sigma in (0.05, 0.7):
        assert torch.equal(loaded.energy(x, sigma, noise), tiny_model.energy(x, sigma, noise))
        assert torch.equal(loaded.encode(x, sigma), tiny_model.encode(x, sigma))
    energy = loaded.energy(x, 0.05, noise).detach()
    assert torch.equal(loaded.percentile(energy, 0.05), tiny_model.percentile(energy, 0.05))
    assert torch.equal(loaded.sample(2, seed=3).images, tiny_model.sample(2, seed=3).images)


def test_saving_again_writes_the_same_files(folder: Path, tmp_path: Path) -> None:
    DenoisingEBM.from_pretrained(folder).save_pretrained(tmp_path / "again")
    for name in (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == sorted([CONFIG_FILE, WEIGHTS_FILE, CARD_FILE])


def test_card_names_the_metadata(folder: Path) -> None:
    card = (folder / CARD_FILE).read_text()
    assert card.startswith("---\n") and "| data | waves |" in card
    assert "16 x 16 x 1" in card and "denoising (fraction 1)" in card


def test_run_folder_stands_for_its_model(folder: Path) -> None:
    assert find_model_folder(str(folder.parent)) == folder
    x = to_float(random_pixels(2))
    there, here = (DenoisingEBM.from_pretrained(path).energy(x, 0.3) for path in (folder, folder.parent))
    assert torch.equal(there, here)


def test_bundled_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = folder.parent
    models = package / "assets" / "models"
    (models / "not-a-model").mkdir(parents=True)
    folder.rename(models / "waves")
    monkeypatch.setattr(hub.resources, "files", lambda name: package)
    assert hub.bundled_models() == ["waves"]
    assert DenoisingEBM.from_pretrained("waves").metadata == {"data": "waves"}
    with pytest.raises(FileNotFoundError, match=r"no bundled model of that name \(bundled: waves\)"):
        DenoisingEBM.from_pretrained("wave")


def test_every_bundled_model_loads() -> None:
    for name in hub.bundled_models():
        model = DenoisingEBM.from_pretrained(name)
        x = to_float(random_pixels(2, size=model.image_shape[1], channels=model.image_shape[0]))
        assert bool(model.energy(x, 0.05).isfinite().all())


# -- what is refused, in one line that names the file ---------------------------------------------------------------


def refuse(folder: Path | str, kind: type[Exception], *parts: str) -> None:
    with pytest.raises(kind) as caught:
        DenoisingEBM.from_pretrained(folder)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_missing_file(name: str, folder: Path) -> None:
    (folder / name).unlink()
    refuse(folder, FileNotFoundError, str(folder / name), "missing")


def test_missing_folder(tmp_path: Path) -> None:
    refuse(str(tmp_path / "nowhere"), FileNotFoundError, "nowhere: no such model folder")
    # No Hub id, whose rules would be no help.
    for name in ("./nowhere", "../nowhere"):
        refuse(name, FileNotFoundError, f"{name}: no such model folder")
    refuse("someone/a--b..c", FileNotFoundError, "someone/a--b..c: no such folder here")


def test_file_in_place_of_a_folder(folder: Path, tiny_model: DenoisingEBM) -> None:
    refuse(folder / WEIGHTS_FILE, FileNotFoundError, WEIGHTS_FILE, "is a file")
    with pytest.raises(ValueError, match=r"config\.json: is a file, not a folder"):
        tiny_model.save_pretrained(folder / CONFIG_FILE)


def test_unknown_field(folder: Path) -> None:
    values = to_dict(tiny_config())
    values["network"]["wdiths"] = [8, 16]
    change_config(folder, config=values)
    refuse(folder, ValueError, f"{folder / CONFIG_FILE}: config: network: unknown field 'wdiths'")


def test_wrong_type(folder: Path) -> None:
    values = to_dict(tiny_config())
    values["network"]["latent_dim"] = "four"
    change_config(folder, config=values)
    refuse(folder, ValueError, f"{folder / CONFIG_FILE}: config: network: latent_dim: expected int, got 'four'")


@pytest.mark.parametrize(
    "values",
    [{"metadata": "waves"}, {"metadata": [1, 2]}, {"config": None}, {"config": [1]}],
    ids=lambda value: str(value),
)
def test_wrong_sections(values: dict[str, Any], folder: Path) -> None:
    change_config(folder, **values)
    refuse(folder, ValueError, f"{folder / CONFIG_FILE}: {next(iter(values))}")


def test_value_out_of_range_names_file_and_field(folder: Path) -> None:
    values = to_dict(tiny_config())
    values["noise"]["sigma_min"] = -1.0
    change_config(folder, config=values)
    refuse(folder, ValueError, str(folder / CONFIG_FILE), "noise.sigma_min must be > 0, got -1.0")


@pytest.mark.parametrize("text", ["{", "\xff", "[]", '{"format": 7}', "null"])
def test_damaged_config(text: str, folder: Path) -> None:
    (folder / CONFIG_FILE).write_bytes(text.encode("latin-1"))
    refuse(folder, ValueError, str(folder / CONFIG_FILE))


def test_mismatching_shape(folder: Path) -> None:
    config = tiny_config()
    change_config(folder, config=to_dict(replace(config, network=replace(config.network, latent_dim=5))))
    refuse(folder, ValueError, str(folder / WEIGHTS_FILE), CONFIG_FILE, "to_code.weight has shape", "expected (5,")


def test_missing_and_unknown_weights(folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors.pop("dae.unet.encoder.stem.bias"))
    refuse(folder, ValueError, str(folder / WEIGHTS_FILE), "dae.unet.encoder.stem.bias is missing")
    change_weights(folder, lambda t: t.update({"dae.unet.encoder.stem.bias": torch.zeros(8), "extra": torch.ones(1)}))
    refuse(folder, ValueError, str(folder / WEIGHTS_FILE), "extra is unknown")


@pytest.mark.parametrize("keep", [0, 5, 100, 5000])
def test_truncated_weights(keep: int, folder: Path) -> None:
    path = folder / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:keep])
    refuse(folder, ValueError, str(path), "not a readable safetensors file")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(bad: float, folder: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["decoder.head.bias"][0] = bad

    change_weights(folder, spoil)
    refuse(folder, ValueError, str(folder / WEIGHTS_FILE), "decoder.head.bias holds values that are not finite")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    write_atomically(path, lambda temporary: temporary.write_text("new"))
    assert path.read_text() == "new"


def test_half_precision_keeps_weights_to_three_digits_and_statistics_exactly(
    tiny_model: DenoisingEBM, tmp_path: Path
) -> None:
    tiny_model.save_pretrained(tmp_path / "full")
    tiny_model.save_pretrained(tmp_path / "half", dtype=torch.bfloat16)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.8 * sizes[0]
    loaded = DenoisingEBM.from_pretrained(tmp_path / "half")
    for name, weight in tiny_model.named_parameters():
        torch.testing.assert_close(loaded.state_dict()[name], weight.detach(), rtol=2**-8, atol=0)
    for name, buffer in tiny_model.named_buffers():
        if name in loaded.state_dict():
            assert torch.equal(loaded.state_dict()[name].nan_to_num(), buffer.nan_to_num())
