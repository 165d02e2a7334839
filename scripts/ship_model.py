"""Put a trained model into the package: bf16 weights, and its measured figures in the model card.

python scripts/ship_model.py runs/demo/run fashion-mnist --figure "Fréchet distance, ... = 123"
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch

from denoising_ebm import DenoisingEBM, preset

MODELS = Path(__file__).parent.parent / "src" / "denoising_ebm" / "assets" / "models"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="run or model folder")
    parser.add_argument("name", help="name under which `debm sample NAME` finds it")
    parser.add_argument("--figure", action="append", default=[], metavar="WHAT=VALUE", help="a line of the model card")
    parser.add_argument("--preset", help="take the sampling settings of this preset, where the run began with others")
    args = parser.parse_args()
    model = DenoisingEBM.from_pretrained(args.model)
    if args.preset:
        model.config = dataclasses.replace(model.config, sampling=preset(args.preset).sampling)
    model.metadata |= dict(figure.split("=", 1) for figure in args.figure)
    model.save_pretrained(MODELS / args.name, dtype=torch.bfloat16)
    size = (MODELS / args.name / "model.safetensors").stat().st_size
    print(f"{MODELS / args.name}: {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
