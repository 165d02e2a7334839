"""Put a trained model into the package: bf16 weights, log Z of the rounded ones, and measured figures in the model card.

python scripts/ship_model.py runs/demo/run fashion-mnist --figure "Fréchet distance, ... = 123"
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch

from denoising_ebm import DenoisingEBM, load_images, preset, to_float
from denoising_ebm.training.calibration import normalise

MODELS = Path(__file__).parent.parent / "src" / "denoising_ebm" / "assets" / "models"


def _keep_settings(model: DenoisingEBM, denoiser: DenoisingEBM) -> None:
    """Give a model the settings and metadata of the denoiser that its energy was fitted to."""
    config, run = denoiser.config, model.config
    model.config = dataclasses.replace(
        config,
        energy=dataclasses.replace(config.energy, density=True),
        stages=(*(stage for stage in config.stages if stage.objective != "energy"), run.stages[-1]),
    )
    seen = model.metadata["images seen"] - model.metadata["images seen by the initial model"]
    minutes = model.metadata["minutes"] - denoiser.metadata["minutes"]
    loss = "held-out denoising loss of the energy's gradient"
    model.metadata = {
        **denoiser.metadata,
        "energy fitted to the denoiser": f"{seen:,} images, {minutes:.0f} minutes of one core",
        loss: model.metadata[loss],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="run or model folder")
    parser.add_argument("name", help="name under which `debm sample NAME` finds it")
    parser.add_argument("--figure", action="append", default=[], metavar="WHAT=VALUE", help="a line of the model card")
    parser.add_argument(
        "--energy-of", metavar="MODEL", help="the run fitted the energy of this model: keep its settings"
    )
    parser.add_argument(
        "--normalise", metavar="DATA", help="images by which log Z of the rounded weights is fitted again"
    )
    parser.add_argument("--images-per-level", type=int, default=128, help="for --normalise")
    parser.add_argument("--preset", help="take the sampling settings of this preset, where the run began with others")
    args = parser.parse_args()
    model = DenoisingEBM.from_pretrained(args.model)
    if args.preset:
        model.config = dataclasses.replace(model.config, sampling=preset(args.preset).sampling)
    if args.energy_of:
        _keep_settings(model, DenoisingEBM.from_pretrained(args.energy_of))
    model.metadata |= dict(figure.split("=", 1) for figure in args.figure)
    if args.normalise:
        for weight in model.parameters():
            weight.data.copy_(weight.data.bfloat16())
        network = model.config.network
        images = load_images(args.normalise, split="train", image_size=network.image_size, channels=network.channels)
        chosen = to_float(images.pixels[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:2000]])
        found = normalise(model, chosen, images_per_level=args.images_per_level)
        model.metadata["standard error of log Z at the smallest level, nats"] = round(
            float(found.standard_error[-1]), 1
        )
    model.save_pretrained(MODELS / args.name, dtype=torch.bfloat16)
    size = (MODELS / args.name / "model.safetensors").stat().st_size
    print(f"{MODELS / args.name}: {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
