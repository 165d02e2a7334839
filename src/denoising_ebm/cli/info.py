"""`debm info`: what a model is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from denoising_ebm.cli.common import MODEL_HELP

if TYPE_CHECKING:
    from denoising_ebm.config import PixelSampler

HELP = "show what a model is and how it was trained"
USAGE = "debm info MODEL [--json]"
DESCRIPTION = "Show a model's sizes, noise levels, training, figures and sampling settings."
EPILOG = """\
Examples:
  debm info runs/fashion
  debm info runs/fashion --json"""


def add(parser: ArgumentParser, argv: list[str]) -> None:
    """Add the options."""
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--json", action="store_true", help="print JSON, with every setting")


def run(args: Namespace) -> int:
    """Print."""
    from denoising_ebm.config import to_dict
    from denoising_ebm.hub import DETECTOR_FILES, find_model_folder
    from denoising_ebm.model import REFERENCE_SIGMAS, DenoisingEBM

    model = DenoisingEBM.from_pretrained(args.model)
    levels = [level for level, row in zip(REFERENCE_SIGMAS, model.reference, strict=True) if bool(row.isfinite().all())]
    modules = {"total": model, "phi": model.dae, "gamma": model.decoder}
    parts = {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}
    folder = str(find_model_folder(args.model).resolve())
    fitted = (Path(folder) / DETECTOR_FILES[0]).is_file()
    if args.json:
        values = {"folder": folder, "parameters": parts, "percentiles at sigma": levels, "detector": fitted}
        print(json.dumps({**values, "metadata": model.metadata, "config": to_dict(model.config)}, indent=2))
        return 0
    network, noise, sampling = model.config.network, model.config.noise, model.config.sampling
    chain, pixel = sampling.semantic, sampling.pixel
    rows: dict[str, Any] = {
        "folder": folder,
        "images": f"{network.image_size} x {network.image_size}, {network.channels} channel(s)",
        "latent dimension": network.latent_dim,
        "parameters": f"{parts['total']:,}",
        "  phi (autoencoder)": f"{parts['phi']:,}",
        "  gamma (decoder)": f"{parts['gamma']:,}",
        "noise levels": f"{noise.sigma_min:g} to {noise.sigma_max:g}, drawn {noise.draw}",
        "energy": f"{'with' if model.config.energy.inner_noise else 'without'} inner noise, "
        f"denoiser: {model.config.energy.denoiser}",
        "percentiles at sigma": ", ".join(f"{level:g}" for level in levels) or "none",
        "detector": "yes" if fitted else "none; `debm fit-detector` makes one",
        "stages": ", ".join(f"{stage.objective} (fraction {stage.fraction:g})" for stage in model.config.stages),
        "sampling in z": f"{chain.steps} Langevin steps of {chain.step_size:g}, sigma {chain.sigma_max:g} to "
        f"{chain.sigma_min:g}, prior {chain.prior:g}",
        "sampling in x": f"{pixel.method}, {pixel.steps} noise levels{_step_size(pixel)}, sigma {pixel.sigma_max:g} to "
        f"{pixel.sigma_min:g}, {pixel.schedule}, drift of the {pixel.drift}{_low_temperature(pixel)}",
        "NFE": model.sampler_nfe(sampling),
        **model.metadata,
    }
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None)
    # Names of figures may be sentences: they must leave room for the values.
    table.add_column(style="bold", max_width=36, overflow="fold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else str(value))
    Console().print(table, highlight=False, markup=False)
    return 0


def _low_temperature(pixel: PixelSampler) -> str:
    if pixel.low_temperature == 1:
        return ""
    return f", temperature {pixel.low_temperature:g} below sigma {pixel.low_temperature_sigma:g}"


def _step_size(pixel: PixelSampler) -> str:
    return f" of {pixel.step_size:g}" if pixel.step_size else ""
