"""`debm info`."""

from __future__ import annotations

import json as json_format
from typing import TYPE_CHECKING, Any

from denoising_ebm.utils.text import counted

if TYPE_CHECKING:
    from torch import nn

    from denoising_ebm.config import SamplingConfig
    from denoising_ebm.model import DenoisingEBM


def info(model: str, *, json: bool = False) -> None:
    """Show what a model is and how it was trained.

    Its sizes, noise levels, training, measured figures, and the sampler with its network evaluations (NFE) per image.

    Examples:
        debm info runs/fashion
        debm info runs/fashion --json

    Args:
        model: Run folder, model folder, name of a bundled model, or Hub id owner/name.
        json: Print JSON, with every setting.
    """
    from denoising_ebm.config import to_dict
    from denoising_ebm.hub import DETECTOR_FILES, INSPECTOR_FILES, find_model_folder
    from denoising_ebm.model import REFERENCE_SIGMAS, DenoisingEBM

    net = DenoisingEBM.from_pretrained(model)
    folder = find_model_folder(model).resolve()
    rows = zip(REFERENCE_SIGMAS, net.reference, strict=True)
    reference = [sigma for sigma, energies in rows if bool(energies.isfinite().all())]
    modules: dict[str, nn.Module] = {"total": net, "phi": net.dae, "gamma": net.decoder}
    if net.density is not None:
        modules["density"] = net.density
    parameters = {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}
    has_detector = (folder / DETECTOR_FILES[0]).is_file()
    has_inspector = (folder / INSPECTOR_FILES[0]).is_file()
    if not json:
        _print_table(_described(net, str(folder), parameters, reference, has_detector, has_inspector))
        return
    values = {
        "folder": str(folder),
        "parameters": parameters,
        "percentiles at sigma": reference,
        "detector": has_detector,
        "inspector": has_inspector,
        "normalised density": net.has_log_prob,
        "NFE": net.sampler_nfe(net.config.sampling),
        "metadata": net.metadata,
        "preprocessing": None if net.preprocessing is None else to_dict(net.preprocessing),
        "config": to_dict(net.config),
    }
    print(json_format.dumps(values, indent=2))


def _described(
    model: DenoisingEBM,
    folder: str,
    parameters: dict[str, int],
    reference: list[float],
    has_detector: bool,
    has_inspector: bool,
) -> dict[str, Any]:
    config = model.config
    network, noise, energy = config.network, config.noise, config.energy
    return {
        "folder": folder,
        "images": f"{network.image_size} x {network.image_size}, {counted(network.channels, 'channel')}"
        + (", networks take any size" if network.any_size else ""),
        "images prepared": "not said" if model.preprocessing is None else model.preprocessing.described(),
        "latent dimension": network.latent_dim,
        "parameters": f"{parameters['total']:,}",
        "  phi (autoencoder)": f"{parameters['phi']:,}",
        "  gamma (decoder)": f"{parameters['gamma']:,}",
        **({"  density network": f"{parameters['density']:,}"} if "density" in parameters else {}),
        "noise levels": f"{noise.sigma_min:g} to {noise.sigma_max:g}, drawn {noise.draw}",
        "energy": f"{'with' if energy.inner_noise else 'without'} inner noise, denoiser: {energy.denoiser}",
        "percentiles at sigma": ", ".join(f"{sigma:g}" for sigma in reference) or "none",
        **({} if network.any_size else {"detector": "yes" if has_detector else "none; `debm fit-detector` makes one"}),
        **({"inspector": "yes" if has_inspector else "none"} if network.any_size else {}),
        "log-likelihood": _likelihood(model),
        "training stages": ", ".join(f"{stage.objective} (fraction {stage.fraction:g})" for stage in config.stages),
        **_sampler(config.sampling),
        "NFE per image": model.sampler_nfe(config.sampling),
        **model.metadata,
    }


def _likelihood(model: DenoisingEBM) -> str:
    if model.density is None:
        return "by the denoiser alone (method immse); no density network"
    if not model.has_log_prob:
        return "by the denoiser alone (method immse); the density network is not normalised"
    return "by the density network, which is normalised, and by the denoiser (method immse)"


def _sampler(sampling: SamplingConfig) -> dict[str, str]:
    """Describe both stages of sampling."""
    from denoising_ebm.samplers import METHODS

    chain, pixel = sampling.semantic, sampling.pixel
    step_size = f" of {pixel.step_size:g}" if pixel.step_size else ""
    start = "h(z) plus noise" if sampling.noise_init else "h(z)"
    temperature = (
        ""
        if pixel.low_temperature == 1
        else f", temperature {pixel.low_temperature:g} below sigma {pixel.low_temperature_sigma:g}"
    )
    return {
        "sampling in z": f"annealed Langevin, {chain.steps} steps of {chain.step_size:g}, sigma {chain.sigma_max:g} to "
        f"{chain.sigma_min:g}, prior {chain.prior:g}",
        "sampling in x": f"{METHODS[pixel.method].title} from {start}, {pixel.steps} steps{step_size}, sigma "
        f"{pixel.sigma_max:g} to {pixel.sigma_min:g}, {pixel.schedule} schedule, drift of the {pixel.drift}{temperature}",
    }


def _print_table(rows: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from denoising_ebm.utils.text import printable

    table = Table(show_header=False, box=None)
    # Names of figures may be sentences: they must leave room for the values.
    table.add_column(style="bold", max_width=36, overflow="fold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(printable(name), f"{value:,}" if isinstance(value, int) else printable(value))
    Console().print(table, highlight=False, markup=False)
