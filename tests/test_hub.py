from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import torch

from denoising_ebm import DenoisingEBM, hub, to_float
from denoising_ebm.config import to_dict
from denoising_ebm.datasets.preprocessing import Preprocessing
from denoising_ebm.hub import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, find_model_folder
from denoising_ebm.training.calibration import calibrate
from denoising_ebm.utils.io import write_atomically
from dying_disk import Disk, write_tree
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


def test_a_mistyped_path_is_not_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def download(name: str, **options: Any) -> str:
        asked.append((name, options))
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    refuse("runs/tinny", FileNotFoundError, "runs/tinny: no such model folder in runs", "hf://runs/tinny")
    assert not asked
    refuse("someone/tiny", FileNotFoundError, "someone/tiny: no such folder here, and the Hub could not be asked")
    refuse("hf://runs/tiny", FileNotFoundError, "the Hub could not be asked (no connection)")
    assert [name for name, _ in asked] == ["someone/tiny", "runs/tiny"]
    assert all(options["etag_timeout"] == 5 for _, options in asked)


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


# -- hashes ---------------------------------------------------------------------------------------------------------


def flip(path: Path, place: int, bit: int = 0) -> bytes:
    """Flip one bit of a file and return what it held."""
    content = path.read_bytes()
    changed = bytearray(content)
    changed[place] ^= 1 << bit
    path.write_bytes(changed)
    return content


def test_any_flipped_bit_of_the_weights_is_noticed(folder: Path) -> None:
    path, size = folder / WEIGHTS_FILE, (folder / WEIGHTS_FILE).stat().st_size
    for i in range(40):
        content = flip(path, i if i < 10 else (i * 7919 * 31) % size, i % 8)
        refuse(folder, ValueError, str(path))
        path.write_bytes(content)
    DenoisingEBM.from_pretrained(folder)


def test_weights_of_another_model_are_named(folder: Path, tiny_model: DenoisingEBM, tmp_path: Path) -> None:
    old = (folder / CONFIG_FILE).read_bytes()
    with torch.no_grad():
        next(tiny_model.parameters()).add_(1)
    tiny_model.save_pretrained(folder)
    DenoisingEBM.from_pretrained(folder)
    (folder / CONFIG_FILE).write_bytes(old)
    refuse(folder, ValueError, str(folder / WEIGHTS_FILE), "not the file that config.json was written with")


def test_a_model_can_be_read_whenever_its_writer_dies(
    tiny_model: DenoisingEBM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "disk"
    tiny_model.save_pretrained(root / "model")
    weight = next(tiny_model.parameters()).detach()
    known = {float(weight.flatten()[0])}
    for _ in range(2):  # the second time from where the first died, before its weights were there
        weight.add_(1)
        known.add(float(weight.flatten()[0]))
        with monkeypatch.context() as patch:
            disk = Disk(root, patch)
            tiny_model.save_pretrained(root / "model")
        disk.close()
        found = []
        for tree in [tree for moment in disk.moments for tree in (moment.killed, moment.without_power)]:
            write_tree(root, tree)
            found.append(float(next(DenoisingEBM.from_pretrained(root / "model").parameters()).detach().flatten()[0]))
        assert known >= set(found) and len(set(found)) > 1
        between = [moment for moment in disk.moments if moment.operation == "replace .model.safetensors"]
        write_tree(root, between[0].killed)


def test_a_changed_config_is_named_and_can_be_meant(folder: Path) -> None:
    values = json.loads((folder / CONFIG_FILE).read_text())
    values["config"]["sampling"]["pixel"]["steps"] = 3
    change_config(folder, config=values["config"])
    refuse(folder, ValueError, str(folder / CONFIG_FILE), 'delete "config.json" from its entry sha256')
    del values["sha256"][CONFIG_FILE]
    change_config(folder, sha256=values["sha256"])
    assert DenoisingEBM.from_pretrained(folder).config.sampling.pixel.steps == 3


def test_folders_of_before_have_no_hashes(folder: Path, tiny_model: DenoisingEBM) -> None:
    values = json.loads((folder / CONFIG_FILE).read_text())
    del values["sha256"], values["preprocessing"]
    (folder / CONFIG_FILE).write_text(json.dumps(values))
    change_weights(folder, lambda tensors: tensors["decoder.head.bias"].fill_(0.25))
    model = DenoisingEBM.from_pretrained(folder)
    assert model.preprocessing is None and model.config == tiny_model.config
    assert bool((model.decoder.head.bias == 0.25).all())


def test_another_config_keeps_what_is_known_of_the_weights(folder: Path, tiny_model: DenoisingEBM) -> None:
    config = replace(tiny_model.config, stages=(*tiny_model.config.stages, *tiny_model.config.stages))
    hub.rewrite_config(folder, config)
    loaded = DenoisingEBM.from_pretrained(folder)
    assert loaded.config == config and loaded.metadata == tiny_model.metadata
    # Damage since then is no weight of the model, whatever is written beside it.
    flip(folder / WEIGHTS_FILE, (folder / WEIGHTS_FILE).stat().st_size - 1)
    hub.rewrite_config(folder, config)
    refuse(folder, ValueError, str(folder / WEIGHTS_FILE), "is damaged")


def test_preprocessing_stays_with_the_model(tiny_model: DenoisingEBM, tmp_path: Path) -> None:
    tiny_model.preprocessing = Preprocessing.of(tiny_model, resize="lanczos", center_crop=140)
    tiny_model.save_pretrained(tmp_path / "model")
    hub.copy_model_folder(tmp_path / "model", tmp_path / "copy")
    for name in ("model", "copy"):
        assert DenoisingEBM.from_pretrained(tmp_path / name).preprocessing == tiny_model.preprocessing
    hub.rewrite_config(tmp_path / "copy", tiny_model.config)
    assert DenoisingEBM.from_pretrained(tmp_path / "copy").preprocessing == tiny_model.preprocessing
    assert "| images prepared | resize lanczos, center_crop 140 |" in (tmp_path / "model" / CARD_FILE).read_text()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "preprocessing: expected a mapping, got list"),
        ({"resize": "magic"}, "preprocessing: resize: expected one of"),
        ({"image_size": 32}, "preprocessing: image_size is 32, the model's images have 16"),
        ({"channels": True}, "preprocessing: channels: expected int, got True"),
        ({"crop": 3}, "preprocessing: unknown field 'crop'"),
    ],
)
def test_wrong_preprocessing(values: Any, message: str, folder: Path) -> None:
    change_config(folder, preprocessing=values)
    refuse(folder, ValueError, f"{folder / CONFIG_FILE}: {message}")


# -- sizes before memory --------------------------------------------------------------------------------------------


def test_no_model_is_made_before_its_sizes_are_those_of_the_file(
    folder: Path, tiny_model: DenoisingEBM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A config of six gigabytes beside a file of kilobytes."""
    network = replace(tiny_model.config.network, widths=(2048, 4096), decoder_widths=(2048, 4096))
    change_config(folder, config=to_dict(replace(tiny_model.config, network=network)))

    def made(*_: object, **__: object) -> None:
        raise AssertionError("memory was taken")

    for name in ("load_file", "load"):
        monkeypatch.setattr(safetensors.torch, name, made)
    monkeypatch.setattr(DenoisingEBM, "load_state_dict", made)
    refuse(folder, ValueError, str(folder / WEIGHTS_FILE), "has shape", "expected (2048")
    values = to_dict(tiny_model.config)
    values["network"]["widths"] = [1_000_000, 1_000_000]
    change_config(folder, config=values)
    refuse(folder, ValueError, str(folder / CONFIG_FILE), "network.widths must be <= 4,096, got (1000000, 1000000)")


def test_a_head_beyond_all_bounds_is_not_read(folder: Path) -> None:
    path = folder / WEIGHTS_FILE
    with open(path, "wb") as file:
        file.write((5 * 2**20).to_bytes(8, "little"))
        file.write(b'{"a":' + b" " * (5 * 2**20 - 6) + b"}")
    refuse(folder, ValueError, str(path), "its head is larger than 4,194,304 bytes")


def test_types_of_tensors(folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors.update({"decoder.head.bias": torch.zeros(1, dtype=torch.int64)}))
    refuse(
        folder, ValueError, str(folder / WEIGHTS_FILE), "decoder.head.bias is of type int64, expected floating-point"
    )
    change_weights(folder, lambda tensors: tensors.update({"decoder.head.bias": torch.zeros(1, dtype=torch.int8)}))
    refuse(folder, ValueError, str(folder / WEIGHTS_FILE), "'decoder.head.bias' is of type I8, expected one of F64")
    # Finite as it stands, infinite as what the model computes with.
    change_weights(
        folder, lambda tensors: tensors.update({"decoder.head.bias": torch.full((1,), 1e300, dtype=torch.float64)})
    )
    refuse(folder, ValueError, str(folder / WEIGHTS_FILE), "decoder.head.bias holds values that are not finite")


# -- the card -------------------------------------------------------------------------------------------------------

HOSTILE = {
    "data": "a | b\n---\ntags: [x]\n# big <script>alert(1)</script> [link](https://e.org) ![i](x) `code` www.e.org \x1b[31m",
    "k|ey\n\n<img src=x>": "*bold* _it_ ~~s~~ &lt; http://e.org \\| trailing\\",
}


def test_names_are_no_markup_in_the_card(tiny_model: DenoisingEBM, tmp_path: Path) -> None:
    tiny_model.metadata.update(HOSTILE)
    tiny_model.save_pretrained(tmp_path)
    card = (tmp_path / CARD_FILE).read_text()
    lines = card.splitlines()
    # The front matter is ours, and each entry is one row of two cells.
    assert lines[0] == lines[3] == "---" and lines.count("---") == 2
    rows = lines[lines.index("## Training and figures") + 4 :]
    assert len(rows) == 2
    for row in rows:
        cells = re.split(r"(?<!\\)(?:\\\\)*\|", row)
        assert len(cells) == 4 and cells[0] == cells[3] == ""
    text = "\n".join(rows)
    for bare in (r"(?<!\\)[<>\[\]`*_~&]", r"[a-z]://", r"www\.", r"\x1b"):
        assert not re.search(bare, text), bare
    assert DenoisingEBM.from_pretrained(tmp_path).metadata == tiny_model.metadata


def test_figures_that_are_not_finite_are_told_as_texts(tiny_model: DenoisingEBM, tmp_path: Path) -> None:
    tiny_model.metadata["held-out denoising loss"] = float("nan")
    tiny_model.save_pretrained(tmp_path)
    assert "NaN" not in (tmp_path / CONFIG_FILE).read_text()
    assert DenoisingEBM.from_pretrained(tmp_path).metadata["held-out denoising loss"] == "nan"
