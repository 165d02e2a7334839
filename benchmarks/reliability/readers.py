"""The readers that `fuzz.py` tries: sound files for each, how they are damaged, and what must hold of what is read."""

from __future__ import annotations

import contextlib
import io
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import yaml
from mutations import mutate_bytes, mutate_json, mutate_safetensors, mutate_tree
from PIL import Image
from pyarrow import parquet

from denoising_ebm import DenoisingEBM, Detector, load_images
from denoising_ebm.cli.train import train as train_command
from denoising_ebm.config import (
    Config,
    NetworkConfig,
    PixelSampler,
    SamplingConfig,
    SemanticChain,
    TrainingConfig,
    to_dict,
)
from denoising_ebm.training.trainer import train

Files = Mapping[Path, bytes]


@dataclass(frozen=True)
class Reader:
    """A reader of files.

    Attributes:
        prepare: Makes sound files in a folder and returns those that are to be damaged.
        mutate: Returns the damaged content of a file, from the sound contents of all.
        read: Reads the file; ValueError and OSError refuse it, and AssertionError says that a wrong result was returned.
    """

    prepare: Callable[[Path], Sequence[Path]]
    mutate: Callable[[random.Random, Path, Files], bytes]
    read: Callable[[Path, random.Random], None]


def _mutate(rng: random.Random, file: Path, sound: Files) -> bytes:
    if file.suffix == ".json":
        return mutate_json(rng, sound[file])
    if file.suffix == ".safetensors":
        return mutate_safetensors(rng, sound[file])
    return mutate_bytes(rng, sound[file], [*sound.values()])


# -- images -----------------------------------------------------------------------------------------------------------


def _images(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    gray = Image.fromarray(rng.integers(0, 256, (24, 32), dtype=np.uint8))
    rgb = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    rgba = Image.fromarray(rng.integers(0, 256, (24, 32, 4), dtype=np.uint8))
    deep = Image.fromarray(rng.integers(0, 4096, (24, 32), dtype=np.uint16))
    real = Image.fromarray(rng.random((24, 32), dtype=np.float32))
    exif = Image.Exif()
    exif[0x0112] = 6
    made: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("gray.png", gray, {}),
        ("rgb.png", rgb, {}),
        ("rgba.png", rgba, {}),
        ("palette.png", rgb.quantize(16), {"transparency": 3}),
        ("bit.png", gray.convert("1"), {}),
        ("deep.png", deep, {}),
        ("apng.png", rgb, {"save_all": True, "append_images": [rgb.rotate(90), rgb]}),
        ("gray.jpg", gray, {}),
        ("rgb.jpg", rgb, {"exif": exif}),
        ("progressive.jpg", rgb, {"progressive": True}),
        ("cmyk.jpg", rgb.convert("CMYK"), {}),
        ("animated.gif", gray, {"save_all": True, "append_images": [gray.rotate(90), gray]}),
        ("rgb.webp", rgb, {}),
        ("lossless.webp", rgba, {"lossless": True}),
        ("rgb.bmp", rgb, {}),
        ("gray.pgm", gray, {}),
        ("deep.pgm", deep, {}),
        ("rgb.ppm", rgb, {}),
        ("rgb.tif", rgb, {"compression": "tiff_lzw"}),
        ("deep.tif", deep, {}),
        ("real.tif", real, {}),
        ("pages.tif", gray, {"save_all": True, "append_images": [gray, gray]}),
        ("jpeg.tif", rgb, {"compression": "jpeg"}),
        ("cmyk.tif", rgb.convert("CMYK"), {}),
    ]
    for name, image, options in made:
        image.save(folder / name, **options)
    return [folder / name for name, _, _ in made]


def _read_image(file: Path, rng: random.Random) -> None:
    options: dict[str, Any] = rng.choice(({}, {"frames": "all"}, {"value_range": "4095"}, {"background": "ignore"}))
    images = load_images(file, image_size=16, channels=3, convert=True, resize="bilinear", skip_unfit=True, **options)
    assert images.pixels.shape[1:] == (3, 16, 16), images.pixels.shape
    assert len(images) + len(images.unreadable) >= 1, "no row"
    for unreadable in images.unreadable:
        assert " at 0x" not in unreadable.reason and "\n" not in unreadable.reason, unreadable.reason
        assert 0 < len(unreadable.reason) < 500, unreadable.reason


# -- tables of images -------------------------------------------------------------------------------------------------


def _parquets(folder: Path) -> list[Path]:
    rng, encoded = np.random.default_rng(0), []
    for _ in range(6):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    rows = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(encoded)]
    labels = [0, 1, 0, 1, 0, 1]
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["a", "b"]}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    hub = pa.table({"image": rows, "label": labels}).replace_schema_metadata(metadata)
    made = {"hub": (hub, "snappy"), "plain": (pa.table({"image": encoded, "label": labels}), "none")}
    made["zstd"] = (pa.table({"image": rows, "name": ["x"] * 6}), "zstd")
    for name, (table, compression) in made.items():
        parquet.write_table(table, folder / f"{name}.parquet", compression=compression, row_group_size=4)
    return [folder / f"{name}.parquet" for name in made]


def _read_parquet(file: Path, rng: random.Random) -> None:
    options: dict[str, Any] = rng.choice(({}, {"sample": 3}, {"limit": 2}))
    if "sample" in options:
        options["generator"] = torch.Generator().manual_seed(0)
    images = load_images(file, image_size=16, channels=1, convert=True, skip_unfit=True, resize="bilinear", **options)
    assert images.pixels.shape[1:] == (1, 16, 16)


# -- models, detectors, runs ------------------------------------------------------------------------------------------

_NETWORK = NetworkConfig(
    image_size=16,
    channels=1,
    widths=(8, 16),
    attention=(8,),
    latent_dim=4,
    decoder_widths=(8, 16),
    embedding_dim=16,
)
_CONFIG = replace(
    Config(),
    network=_NETWORK,
    sampling=SamplingConfig(semantic=SemanticChain(steps=2), pixel=PixelSampler(steps=2)),
    training=TrainingConfig(batch_size=8, max_images=16, warmup_images=0, sample_minutes=0.0, holdout=2, log_every=1),
)


def _pixels(num: int) -> torch.Tensor:
    return torch.randint(0, 256, (num, 1, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def _model(folder: Path) -> list[Path]:
    torch.set_num_threads(1)
    DenoisingEBM(_CONFIG).save_pretrained(folder)
    return [folder / "config.json", folder / "model.safetensors"]


def _read_model(file: Path, rng: random.Random) -> None:
    model = DenoisingEBM.from_pretrained(file.parent)
    weights = [tensor for name, tensor in model.state_dict().items() if name != "reference"]
    assert all(bool(tensor.isfinite().all()) for tensor in weights), "weights that are not finite"
    x = torch.zeros(1, *model.image_shape)
    assert bool(model.energy(x, 0.05).isfinite().all()), "an energy that is not finite"


def _detector(folder: Path) -> list[Path]:
    _model(folder)
    model = DenoisingEBM.from_pretrained(folder)
    Detector(model).fit(_pixels(60)).save(folder)
    return [folder / "detector.json", folder / "detector.safetensors"]


def _read_detector(file: Path, rng: random.Random) -> None:
    detector = Detector.load(file.parent, DenoisingEBM.from_pretrained(file.parent))
    if rng.random() < 0.2:
        scores = detector.score(_pixels(2))
        assert bool(scores.isfinite().all()), "scores that are not finite"
        assert bool(detector.maps(_pixels(1)).isfinite().all()), "maps that are not finite"
        detector.p_values(scores)


def _run(folder: Path) -> list[Path]:
    torch.set_num_threads(1)
    train(_pixels(20), _CONFIG, folder / "run", device="cpu", precision="fp32", quiet=True)
    return [folder / "run" / name for name in ("state.pt", "config.yaml", "metrics.jsonl")]


def _resume(file: Path, rng: random.Random) -> None:
    # Of a finished run there is nothing left to train: this reads, checks and writes it.
    result = train(_pixels(20), _CONFIG, file.parent, device="cpu", precision="fp32", quiet=True, resume=True)
    assert all(bool(p.isfinite().all()) for p in result.model.parameters()), "weights that are not finite"


def _settings(folder: Path) -> list[Path]:
    (folder / "settings.yaml").write_text(yaml.safe_dump(to_dict(_CONFIG), sort_keys=False))
    return [folder / "settings.yaml"]


def _mutate_settings(rng: random.Random, file: Path, sound: Files) -> bytes:
    if rng.random() < 0.4:
        return mutate_bytes(rng, sound[file])
    return yaml.safe_dump(mutate_tree(rng, yaml.safe_load(sound[file]))).encode()


def _read_settings(file: Path, rng: random.Random) -> None:
    # No data is named: what is read is checked, and printed.
    with contextlib.redirect_stdout(io.StringIO()):
        train_command(config=file, print_config=True, settings={})


READERS: dict[str, Reader] = {
    "image": Reader(_images, _mutate, _read_image),
    "parquet": Reader(_parquets, _mutate, _read_parquet),
    "model": Reader(_model, _mutate, _read_model),
    "detector": Reader(_detector, _mutate, _read_detector),
    "run": Reader(_run, _mutate, _resume),
    "settings": Reader(_settings, _mutate_settings, _read_settings),
}
