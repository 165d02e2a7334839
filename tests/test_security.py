"""What SECURITY.md promises of files that come from strangers."""

from __future__ import annotations

import ast
import io
import os
import pickle
import re
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
from denoising_ebm.utils.parsing import parse_json, parse_yaml


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


# -- nothing that runs what it reads ----------------------------------------------------------------------------------


def test_no_code_unpickles_or_evaluates_what_it_reads() -> None:
    """Of the package and the benchmarks: no pickle, eval or unsafe YAML; torch reads weights only."""
    root = Path(__file__).parents[1]
    files = [path for name in ("src", "benchmarks", "scripts", "examples") for path in (root / name).rglob("*.py")]
    assert len(files) > 100
    refused = {"eval", "exec", "compile", "pickle.load", "pickle.loads", "marshal.loads", "yaml.load_all"}
    refused |= {"yaml.unsafe_load", "yaml.full_load", "joblib.load", "os.system", "torch.jit.load"}
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            place = f"{path.relative_to(root)}:{node.lineno}: {name}"
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert name not in refused, place
            assert name != "torch.load" or keywords.get("weights_only") == "True", place
            assert name not in ("np.load", "numpy.load") or keywords.get("allow_pickle") == "False", place
            assert keywords.get("trust_remote_code", "False") == "False", place
            # The one of `parse_yaml`, whose loader is a SafeLoader that refuses more.
            assert name != "yaml.load" or path.name == "parsing.py", place


# -- JSON and YAML ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "nested more than 32 levels deep"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "nested more than 32 levels deep"),
        (b'{"a": 1, "a": 2}', "'a' is given twice"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a number of 5,000 digits"),
        (b'{"a": "\xff"}', "not UTF-8: byte 0xff at 7"),
        (b'{"a": "\x1b[31m"}', "Invalid control character"),
        (b"", "Expecting value"),
    ],
)
def test_json_of_strangers(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_json(content)


def test_json_with_the_mark_of_some_editors() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": [1, 1.5, null]}') == {"a": [1, 1.5, None]}


BILLION = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else 'x'] * 9)}]\n" for i in range(9)).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BILLION, "aliases (*name) are not read"),
        (b"a: &a [*a]", "aliases (*name) are not read"),
        (b"a: " + b"[" * 2000, "nested more than 32 levels deep"),
        (b"a: 1\na: 2", "'a' is given twice"),
        (b"training: {seed: 1, seed: 2}", "'seed' is given twice"),
        (b"a: !!python/name:os.system x", "could not determine a constructor"),
        (b"a: !!timestamp x", "NoneType"),
        (b"a: !!bool x", "x"),
        (b'a: !!int ""', "index out of range"),
        (b"a: 2001-99-99", "month must be in 1..12"),
        (b"a: \xff", "not UTF-8"),
        (b"a: \x1b", "special characters are not allowed"),
        (b"? [1]\n: 2", "unhashable"),
    ],
)
def test_yaml_of_strangers(content: bytes, message: str, debm: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        parse_yaml(content)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    (tmp_path / "config.yaml").write_bytes(content)
    result = debm("train", "--config", tmp_path / "config.yaml", "--print_config")
    assert f"{tmp_path / 'config.yaml'}: not valid YAML: " in result.error


def test_large_and_special_settings(debm: Any, tmp_path: Path) -> None:
    (tmp_path / "large.yaml").write_bytes(b"#" * (2**18 + 1))
    assert (
        "more than the 262,144 that are read"
        in debm("train", "--config", tmp_path / "large.yaml", "--print_config").error
    )
    os.mkfifo(tmp_path / "pipe.yaml")
    result = debm("train", "--config", tmp_path / "pipe.yaml", "--print_config")
    assert "pipe.yaml: is a named pipe, not a file" in result.error
    (tmp_path / "deep.yaml").write_text("sampling: {semantic: 5, temperature: 1.0}\n")
    result = debm("train", "--config", tmp_path / "deep.yaml", "--print_config")
    assert "deep.yaml: a part is missing, or of another kind" in result.error
    (tmp_path / "long.yaml").write_text("sampling: {pixel: {steps: 1000000000}}\n")
    result = debm("train", "--config", tmp_path / "long.yaml", "--print_config")
    assert "sampling.pixel.steps must be <= 10,000, got 1000000000" in result.error


def test_config_of_a_model_that_is_no_file(tiny_model: DenoisingEBM, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path)
    for name in ("config.json", "model.safetensors"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).unlink()
        os.mkfifo(tmp_path / name)
        with pytest.raises((ValueError, FileNotFoundError), match=name.replace(".", r"\.")):
            DenoisingEBM.from_pretrained(tmp_path)
        (tmp_path / name).unlink()
        (tmp_path / name).write_bytes(content)
    (tmp_path / "config.json").write_bytes(b" " * (2**22 + 1))
    with pytest.raises(ValueError, match="more than the 4,194,304 that are read"):
        DenoisingEBM.from_pretrained(tmp_path)
