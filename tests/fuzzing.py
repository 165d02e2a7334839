"""Hostile changes of files: structure-aware ones of JSON and YAML trees, of bytes, and of what a state holds.

`judge` says what a reader made of a changed file. `benchmarks/reliability/fuzz.py` runs all readers for long.
"""

from __future__ import annotations

import copy
import io
import json
import random
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml
from torch import Tensor

#: What stands in place of any value.
HOSTILE: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    3.5,
    1e-300,
    1e300,
    float("nan"),
    float("inf"),
    -float("inf"),
    2**31,
    2**63,
    10**30,
    10**400,
    "",
    "0",
    "nan",
    "1e5",
    "a" * 100_000,
    "\x00\x1b[31m\n\u202e",
    "=cmd|' /C calc'!A0",
    "../../etc/passwd",
    [],
    {},
    [[]],
    [None] * 5000,
    [1] * 5000,
    {"a": {"b": {"c": {}}}},
    {"__class__": "os.system"},
)


def paths_of(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of every value in a tree, the tree's own first."""
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    for key, value in items:
        yield from paths_of(value, (*path, key))


def changed_tree(tree: Any, rng: random.Random) -> Any:
    """Return a copy of a tree with one to three hostile changes."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        *parents, last = rng.choice([path for path in paths_of(tree) if path] or [("",)])
        place = tree
        for key in parents:
            place = place[key]
        kind = rng.randrange(6)
        if not isinstance(place, dict | list) or not place:
            continue
        if kind <= 2:
            place[last] = copy.deepcopy(rng.choice(HOSTILE))
        elif kind == 3:
            del place[last]
        elif kind == 4 and isinstance(place, dict):
            place[rng.choice(["x", "", "\x1b", "format", "config", "a" * 1000])] = copy.deepcopy(rng.choice(HOSTILE))
        elif isinstance(place[last], bool | int | float):
            place[last] = place[last] * rng.choice([-1, 0, 2, 1000, 1e9])
        else:
            paths = list(paths_of(tree))
            value = tree
            for key in rng.choice(paths):
                value = value[key]
            place[last] = copy.deepcopy(value)
    return tree


def changed_bytes(content: bytes, rng: random.Random) -> bytes:
    """Return bytes with bits flipped, parts cut out, doubled, zeroed or put in."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        if not data:
            break
        # Heads hold what is most worth damaging.
        place = rng.randrange(len(data)) if rng.random() < 0.5 else min(rng.randrange(200), len(data) - 1)
        length = rng.choice((1, 2, 8, 64, 1000))
        kind = rng.randrange(6)
        if kind == 0:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[place : place + length]
        elif kind == 2:
            data[place:place] = data[place : place + length]
        elif kind == 3:
            data[place : place + length] = bytes(min(length, len(data) - place))
        elif kind == 4:
            data[place:place] = bytes(rng.randrange(256) for _ in range(min(length, 64)))
        else:
            data[place : place + 8] = rng.choice((0, 1, 2**31, 2**40, 2**63, 2**64 - 1)).to_bytes(8, "little")
    return bytes(data)


def changed_tensors(tensors: dict[str, Tensor], rng: random.Random) -> dict[str, Tensor]:
    """Return tensors of which one is gone, renamed, of another shape or type, or holds something else."""
    tensors = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    name = rng.choice(list(tensors))
    tensor = tensors.pop(name)
    kind = rng.randrange(7)
    if kind == 1:
        tensors[rng.choice(("x", "", name + ".x", "a" * 500))] = tensor
    elif kind == 2:
        tensors[name] = tensor.reshape(-1)[: max(0, tensor.numel() - 1)]
    elif kind == 3:
        tensors[name] = tensor[None]
    elif kind == 4:
        tensors[name] = tensor.to(rng.choice((torch.float64, torch.int64, torch.uint8, torch.bool, torch.float16)))
    elif kind >= 5:
        value = rng.choice((float("nan"), float("inf"), -float("inf"), 1e38, -1e38))
        tensors[name] = tensor.float().fill_(value) if rng.random() < 0.5 else tensor
        if tensors[name].numel() and tensors[name].is_floating_point():
            tensors[name].view(-1)[0] = value
    return tensors


def json_bytes(tree: Any, rng: random.Random) -> bytes:
    """Return a tree as JSON text, now and then with what JSON texts can be hostile by."""
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.5)
    kind = rng.randrange(12)
    if kind == 0:
        text = text.replace("{", '{"format": 1, ', 1)
    elif kind == 1:
        text = text.replace(": ", ": " + "[" * 100_000, 1)
    elif kind == 2:
        text = text.replace(": ", ": " + "9" * 5000, 1)
    elif kind == 3:
        text = text.replace(": ", ": 1e400, ", 1)
    content = text.encode(errors="surrogatepass")
    return (b"\xef\xbb\xbf" + content) if kind == 4 else content + b"\xff" if kind == 5 else content


def yaml_bytes(tree: Any, rng: random.Random) -> bytes:
    """Return a tree as YAML text, now and then with anchors, tags or nesting."""
    text = yaml.safe_dump(tree, sort_keys=False)
    kind = rng.randrange(14)
    if kind == 0:
        text += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else 'x'] * 9)}]\n" for i in range(9))
    elif kind == 1:
        text += "x: " + "[" * 5000
    elif kind == 2:
        text = text.replace(": ", rng.choice((": !!python/name:os.system ", ": !!binary ", ": !!timestamp ")), 1)
    elif kind == 3:
        text = text.replace(
            ": ", rng.choice((": !!bool ", ": !!int ", ": !!float ", ": 2001-99-99 #", ": 0x" + "f" * 999)), 1
        )
    elif kind == 4:
        text += "? [1, 2]\n: 3\n? {a: b}\n: 4\n"
    elif kind == 5:
        text += text
    return text.encode(errors="surrogatepass")


class MisreadError(AssertionError):
    """A reader did what it must not."""


def judge(read: Callable[[], Any], equal: Callable[[Any], bool], folder: Path) -> str:
    """Return `sound` or `refused`.

    Args:
        read: Reads the changed file.
        equal: Whether what was read is what the sound file holds.
        folder: Of the file, which the message must name.

    Raises:
        MisreadError: If something else was read, or another error than one line that names the file was raised.
    """
    try:
        found = read()
    except (ValueError, OSError) as error:
        line = str(error)
        if "\n" in line or len(line) > 2000 or not line.isprintable():
            raise MisreadError(f"no plain line: {line[:300]!r}") from error
        if str(folder) not in line and str(folder) not in str(getattr(error, "filename", "")):
            raise MisreadError(f"names no file: {line[:300]}") from error
        return "refused"
    except Exception as error:
        raise MisreadError("".join(traceback.format_exception(error))[-1500:]) from error
    if not equal(found):
        raise MisreadError("read without a word, and other than it was written")
    return "sound"


class Readers:
    """Sound files in a folder, and for each a reader and a way to change it.

    Args:
        folder: Where to put the files.
    """

    def __init__(self, folder: Path) -> None:
        from denoising_ebm.config import to_dict
        from denoising_ebm.model import DenoisingEBM
        from denoising_ebm.ood.anomaly_maps import AnomalyMapConfig
        from denoising_ebm.ood.detector import Detector
        from denoising_ebm.ood.detector_config import DetectorConfig
        from denoising_ebm.ood.features import FeatureConfig
        from denoising_ebm.training import trainer
        from support import random_pixels, tiny_config

        small = DetectorConfig(
            FeatureConfig(sigmas=(0.1, 0.5), families=("energy", "noisy-energy", "latent"), feature_sigmas=(0.1,)),
            covariates=("energy",),
            blocks=(("noisy-energy", "energy"),),
            num_corrupted=10,
            maps=AnomalyMapConfig(sigmas=(0.2,), clean_sigmas=(0.2,), num_noise_samples=1, blur=1.0),
        )
        self.pixels, self.config = random_pixels(60), tiny_config(max_images=16)
        self.run, self.models = folder / "run", folder / "run" / "model"
        trainer.train(self.pixels, self.config, self.run, device="cpu", precision="fp32", quiet=True)
        model = DenoisingEBM.from_pretrained(self.run)
        Detector(model, small).fit(self.pixels).save(self.models)
        self.sound = {
            path: path.read_bytes() for path in (*self.run.glob("*.*"), *self.models.glob("*.*")) if path.is_file()
        }
        self.weights = model.state_dict()
        self.detector = Detector.load(self.models, model)
        self.settings = to_dict(self.config)
        self.model = model

    def restore(self) -> None:
        """Write all files as they were."""
        for path, content in self.sound.items():
            path.write_bytes(content)
        (self.run / "state-previous.pt").unlink(missing_ok=True)

    # -- readers ------------------------------------------------------------------------------------------------------

    def read_model(self) -> str:
        """Read the model folder; return how that ended."""
        from denoising_ebm.model import DenoisingEBM

        def equal(found: DenoisingEBM) -> bool:
            same = found.config == self.model.config and found.preprocessing == self.model.preprocessing
            return same and same_tensors(found.state_dict(), self.weights)

        return judge(lambda: DenoisingEBM.from_pretrained(self.models), equal, self.models)

    def read_detector(self) -> str:
        """Read the detector; return how that ended."""
        from denoising_ebm.ood.detector import Detector

        def equal(found: Detector) -> bool:
            parts = ("config", "preprocessing", "_corruptions", "_precision")
            scores = torch.equal(found.calibration, self.detector.calibration)
            mine, other = self.detector._require()[0].tensors(), found._require()[0].tensors()
            return (
                scores
                and same_tensors(mine, other)
                and all(getattr(found, part) == getattr(self.detector, part) for part in parts)
            )

        return judge(lambda: Detector.load(self.models, self.model), equal, self.models)

    def read_state(self) -> str:
        """Read the state of the run; return how that ended."""
        from denoising_ebm.datasets.images import content_hash
        from denoising_ebm.training.checkpoint import read_state

        sound = torch.load(io.BytesIO(self.sound[self.run / "state.pt"]), weights_only=True)

        def equal(found: dict[str, Any]) -> bool:
            return same_tensors(found["model"], sound["model"]) and found["clock"] == sound["clock"]

        return judge(lambda: read_state(self.config, self.run, content_hash(self.pixels)), equal, self.run)

    def read_settings(self) -> str:
        """Read config.yaml, and compare it with the state as a resumed run does; return how that ended."""
        from denoising_ebm.cli.train import _base_settings
        from denoising_ebm.config import Config, from_dict

        # Settings are the user's to change: what counts is that they are settings.
        return judge(
            lambda: from_dict(Config, _base_settings(None, None, None, self.run / "config.yaml", False, None) or {}),
            lambda found: isinstance(found, Config),
            self.run,
        )

    # -- changes ------------------------------------------------------------------------------------------------------

    def config_json(self, rng: random.Random) -> str:
        """Change `config.json`."""
        return self._json(self.models / "config.json", rng, self.read_model)

    def detector_json(self, rng: random.Random) -> str:
        """Change `detector.json`."""
        return self._json(self.models / "detector.json", rng, self.read_detector)

    def model_safetensors(self, rng: random.Random) -> str:
        """Change `model.safetensors`, or what it holds."""
        return self._tensors(self.models / "model.safetensors", rng, self.read_model)

    def detector_safetensors(self, rng: random.Random) -> str:
        """Change `detector.safetensors`, or what it holds."""
        return self._tensors(self.models / "detector.safetensors", rng, self.read_detector)

    def state_pt(self, rng: random.Random) -> str:
        """Change `state.pt`, or what it holds, with a seal that fits half of the time."""
        from denoising_ebm.training.checkpoint import _seal

        path = self.run / "state.pt"
        if rng.random() < 0.4:
            path.write_bytes(changed_bytes(self.sound[path], rng))
        else:
            saved = torch.load(io.BytesIO(self.sound[path]), weights_only=True)
            saved = {key: value for key, value in saved.items()}
            part = rng.choice(list(saved))
            if part in ("model", "average") and rng.random() < 0.7:
                saved[part] = changed_tensors(saved[part], rng)
            else:
                saved = changed_tree(saved, rng)
            buffer = io.BytesIO()
            torch.save(saved, buffer)
            if rng.random() < 0.5:
                _seal(buffer)
            content = buffer.getvalue()
            path.write_bytes(content if rng.random() < 0.9 else changed_bytes(content, rng))
            return self._lenient(self.read_state)
        return self.read_state()

    def config_yaml(self, rng: random.Random) -> str:
        """Change `config.yaml`."""
        path = self.run / "config.yaml"
        if rng.random() < 0.3:
            path.write_bytes(changed_bytes(self.sound[path], rng))
        else:
            path.write_bytes(yaml_bytes(changed_tree(yaml.safe_load(self.sound[path]), rng), rng))
        return self.read_settings()

    def _json(self, path: Path, rng: random.Random, read: Callable[[], str]) -> str:
        if rng.random() < 0.3:
            path.write_bytes(changed_bytes(self.sound[path], rng))
            return read()
        tree = changed_tree(json.loads(self.sound[path]), rng)
        unsealed = rng.random() < 0.5 and isinstance(tree, dict)
        if unsealed:
            # As who means harm would: without hashes any value that is a valid one is taken.
            tree.pop("sha256", None)
            tree.pop("tensors", None)
        path.write_bytes(json_bytes(tree, rng))
        return self._lenient(read) if unsealed or "sha256" not in tree else read()

    def _tensors(self, path: Path, rng: random.Random, read: Callable[[], str]) -> str:
        if rng.random() < 0.5:
            path.write_bytes(changed_bytes(self.sound[path], rng))
            return read()
        path.write_bytes(safetensors.torch.save(changed_tensors(safetensors.torch.load(self.sound[path]), rng)))
        other = path.with_name({"model": "config"}.get(path.stem, path.stem) + ".json")
        values = json.loads(self.sound[other])
        values.pop("sha256", None)
        values.pop("tensors", None)
        other.write_text(json.dumps(values))
        return self._lenient(read)

    @staticmethod
    def _lenient(read: Callable[[], str]) -> str:
        """Take values that are other than before but valid."""
        try:
            return read()
        except MisreadError as failure:
            if "other than it was written" not in str(failure):
                raise
            return "valid"


KINDS = ("config_json", "detector_json", "model_safetensors", "detector_safetensors", "state_pt", "config_yaml")


def same_tensors(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Say whether tensors are the same to the bit; NaN is equal to itself."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name].nan_to_num(), other[name].nan_to_num())
        for name in one
    )
