"""A timed training on a GPU: start anew or from the weights of an earlier one, stop by the clock, leave small files.

    python benchmarks/gpu/train_timed.py --preset cifar10 --data DATA --minutes 9 --out OUT [--init OLD] [--contrastive]

OUT gets metrics.jsonl, the last grids, and the model folder with its averaged weights in bf16, split into parts of at
most 15 MB so that they can be copied where files are limited; `--init` takes such a folder. Adam's averages start anew
each run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import tempfile
from pathlib import Path

import torch

from denoising_ebm import DenoisingEBM, load_images, preset
from denoising_ebm.config import TrainingStage, without_density
from denoising_ebm.training.logging import read_metrics
from denoising_ebm.training.trainer import train
from denoising_ebm.utils.device import describe
from denoising_ebm.viz.report import Table, print_table

PART = 15_000_000


def split_model(model: DenoisingEBM, out: Path) -> None:
    """Write the model's folder with bf16 weights as part-00.bin, part-01.bin, ... instead of one file."""
    for old in out.glob("part-*.bin"):
        old.unlink()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, dtype=torch.bfloat16)
        data = (Path(folder) / "model.safetensors").read_bytes()
        for name in ("config.json", "README.md"):
            shutil.copy(Path(folder) / name, out / name)
    for i in range(0, len(data), PART):
        (out / f"part-{i // PART:02d}.bin").write_bytes(data[i : i + PART])


def join_model(out: Path) -> DenoisingEBM:
    """Read what `split_model` wrote."""
    parts = sorted(out.glob("part-*.bin"))
    if not parts:
        raise FileNotFoundError(f"{out}: no part-*.bin of an earlier run")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.safetensors").write_bytes(b"".join(part.read_bytes() for part in parts))
        shutil.copy(out / "config.json", folder)
        return DenoisingEBM.from_pretrained(folder)


def main() -> None:
    """Train, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cifar10")
    parser.add_argument("--data", default="fashion-mnist", help="folder of Parquet files, or a bundled name")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="OUT of an earlier run")
    parser.add_argument("--contrastive", action="store_true", help="train by Algorithm 1 in this run")
    parser.add_argument("--energy", action="store_true", help="fit the density network to the denoiser of --init")
    parser.add_argument("--seed", type=int, default=0, help="another one for each run")
    args = parser.parse_args()

    config = preset(args.preset) if args.energy else without_density(preset(args.preset))
    stages = (TrainingStage("contrastive" if args.contrastive else "energy" if args.energy else "denoising"),)
    training = dataclasses.replace(
        config.training,
        max_minutes=args.minutes,
        max_images=10**9,
        sample_minutes=0.0,
        cooldown=0.1,
        seed=args.seed,
        learning_rate=config.training.learning_rate / (10 if args.contrastive else 2 if args.energy else 1),
        compile=config.training.compile and not args.contrastive and not args.energy,
    )
    config = dataclasses.replace(config, training=training, stages=stages)
    network = config.network
    images = load_images(args.data, split="train", image_size=network.image_size, channels=network.channels)
    initial = join_model(args.init) if args.init else None
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        result = train(images.pixels, config, folder, data_name=Path(args.data).name, initial=initial)
        shutil.copy(Path(folder) / "metrics.jsonl", args.out)
        for picture in (Path(folder) / "samples").glob("*.png"):
            shutil.copy(picture, args.out)
        split_model(result.model, args.out)
        records = read_metrics(Path(folder))
    print(f"{describe(result.model.device)}; {json.dumps(result.model.metadata)}")
    # Held-out losses have records of their own.
    names = [
        name for name in dict.fromkeys(key for record in records for key in record) if name not in ("stage", "step")
    ]
    some = records[:: max(1, len(records) // 20)]
    print_table(Table(names, [[record.get(name) for name in names] for record in some]))
    if torch.cuda.is_available():
        print(f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


if __name__ == "__main__":
    main()
