"""What SECURITY.md promises of files that come from strangers."""

from __future__ import annotations

import io
import pickle
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from PIL import Image

import datasets
from command import TRAIN
from denoising_ebm import DenoisingEBM, load_images


class Opens:
    """As a pickle it makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (str(self.path), "w"))


@pytest.fixture
def trap(tmp_path: Path) -> tuple[bytes, Path]:
    """A pickle, and the file that exists once it was loaded."""
    made = tmp_path / "made-by-a-pickle"
    pickled = pickle.dumps(Opens(made), protocol=2)  # torch's own
    pickle.loads(pickled).close()
    assert made.exists(), "the trap works"
    made.unlink()
    return pickled, made


def test_a_pickle_in_a_model_folder_is_not_loaded(
    trap: tuple[bytes, Path], tiny_model: DenoisingEBM, tmp_path: Path
) -> None:
    pickled, made = trap
    folder = tmp_path / "model"
    tiny_model.save_pretrained(folder)
    for name in ("pytorch_model.bin", "state.pt", "model.pkl"):
        (folder / name).write_bytes(pickled)
    DenoisingEBM.from_pretrained(folder)
    (folder / "model.safetensors").write_bytes(pickled)
    with pytest.raises(ValueError, match=r"model\.safetensors: not a readable safetensors file"):
        DenoisingEBM.from_pretrained(folder)
    tiny_model.save_pretrained(folder)
    (folder / "config.json").write_bytes(pickled)
    with pytest.raises(ValueError, match=r"config\.json"):
        DenoisingEBM.from_pretrained(folder)
    assert not made.exists()


def test_a_pickled_state_is_not_loaded(
    debm: Any, run: Path, folder: Path, trap: tuple[bytes, Path], tmp_path: Path
) -> None:
    pickled, made = trap
    mine = tmp_path / "run"
    shutil.copytree(run, mine)
    torch.save(Opens(made), tmp_path / "zipped.pt")
    for content in (pickled, (tmp_path / "zipped.pt").read_bytes()):
        for name in ("state.pt", "state-previous.pt"):
            (mine / name).write_bytes(content)
        result = debm("train", folder, *TRAIN, "--out", mine, "--resume", "--max-images", 1280)
        assert "state.pt: not a readable state" in result.error
    assert not made.exists()


def test_settings_make_no_objects(debm: Any, folder: Path, tmp_path: Path) -> None:
    made, settings = tmp_path / "made-by-yaml", tmp_path / "settings.yaml"
    settings.write_text(f"!!python/object/apply:builtins.open ['{made}', 'w']\n")
    result = debm("train", folder, "--config", settings, "--out", tmp_path / "run")
    assert "settings.yaml" in result.error
    assert not made.exists()


@pytest.mark.parametrize("name", ["page.png", "page.jpg", "page.eps"])
def test_other_readers_of_pillow_are_not_started(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostScript is a program that Ghostscript would run, whatever the file is called."""
    from PIL import EpsImagePlugin

    def started(*_: object, **__: object) -> None:
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", started)
    Image.new("L", (8, 8), 90).save(tmp_path / "a.png")
    Image.new("L", (8, 8), 90).save(tmp_path / name, format="EPS")
    images = load_images(tmp_path)
    assert images.names == ("a.png",)
    # A name that no image has is passed over; under the name of an image it counts as one that cannot be read.
    assert [image.name for image in images.unreadable] == ([] if name.endswith(".eps") else [name])


def test_images_that_would_fill_the_memory_are_unreadable(tmp_path: Path) -> None:
    """A file of some kilobytes can claim any size; here the limit is that of images of 8 x 8."""
    Image.new("L", (8, 8), 90).save(tmp_path / "a.png")
    Image.new("L", (24, 24), 90).save(tmp_path / "bomb.png")
    images = load_images(tmp_path, max_pixels=64)
    assert images.names == ("a.png",)
    reason = "is 24x24, more than the 64 pixels that are decoded; --max-pixels raises the limit"
    assert images.unreadable[0].reason == reason


def test_only_data_is_taken_from_a_model_of_the_hub(
    trap: tuple[bytes, Path], tiny_model: DenoisingEBM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub is a folder here, and downloading copies from it the files that were asked for."""
    pickled, made = trap
    hub, local = tmp_path / "hub", tmp_path / "local"
    tiny_model.save_pretrained(hub)
    for name in ("pytorch_model.bin", "modeling.py", "requirements.txt"):
        (hub / name).write_bytes(pickled)

    def download(repository: str, *, revision: str | None, allow_patterns: list[str], **_: Any) -> str:
        assert (repository, revision) == ("owner/name", "v1")
        local.mkdir()
        for path in hub.iterdir():
            if any(fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copy(path, local)
        return str(local)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    model = DenoisingEBM.from_pretrained("owner/name", revision="v1")
    assert {path.name for path in local.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    for name, value in tiny_model.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=0, equal_nan=True)
    assert not made.exists()


def test_data_sets_of_the_hub_run_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def load(name: str, **options: Any) -> datasets.Dataset:
        asked.append(options)
        png = io.BytesIO()
        Image.new("L", (8, 8)).save(png, "PNG")
        rows = {"image": [{"bytes": png.getvalue(), "path": None}]}
        return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, timeout: None)
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert load_images("hf://owner/name").names == ("train#0",)
    assert not asked[0].get("trust_remote_code")
