"""Write the tables and plots of the pages from the CSV files of `results/`.

    python benchmarks/render.py           # after a CSV file has changed
    python benchmarks/render.py --check   # fails where a page or plot differs from the CSV files; changes nothing

A page holds a table between `<!-- table: NAME -->` and `<!-- end -->`; `TABLES` says what it shows of which file. A file
has a row for each seed of a training; pages show the mean and the sample standard deviation over seeds. Rows of different
runs (machines) are never averaged. `results/tables.csv` says how the rows of a file were made, `results/commands.csv` by
which commands, and `results/claims.csv` is the table of claims: a `{FILE | COLUMN=VALUE; ... | COLUMN}` in it stands for
figures of another file, with `n` as the last column for the seeds. Plots carry a hash of the files that they show.

Files whose rows come from folders of result rows are made by `collect.py`; the others are edited by hand.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "benchmarks/RESULTS.md", "docs/ablations.md")
MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.S)
FIGURE = re.compile(r"\{([\w-]+) \| ([^|{}]*) \| ([\w.]+)\}")
Record = dict[str, str]
Where = Mapping[str, str | Sequence[str]]

# -- reading ----------------------------------------------------------------------------------------------------------


class Results:
    """The CSV files of a folder.

    Args:
        root: Of the repository.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root
        self.read = cache(self._read)

    def path(self, name: str) -> Path:
        return self.root / "benchmarks" / "results" / f"{name}.csv"

    def _read(self, name: str) -> list[Record]:
        path = self.path(name)
        if not path.is_file():
            raise ValueError(f"{path}: no such file")
        with path.open(newline="", encoding="utf-8") as file:
            return [dict(record) for record in csv.DictReader(file)]

    def select(self, name: str, where: Where) -> list[Record]:
        """Return the rows of a file that have certain values.

        Raises:
            ValueError: If the file has no such column, or no such row.
        """
        records = self.read(name)
        for column, value in where.items():
            if records and column not in records[0]:
                raise ValueError(f"{self.path(name)}: no column {column!r}")
            allowed = (value,) if isinstance(value, str) else value
            records = [record for record in records if record[column] in allowed]
        if not records:
            raise ValueError(f"{self.path(name)}: no row with {dict(where)}")
        return records


def seeds(records: Sequence[Record]) -> str:
    """Return how many trainings rows stand for: `3 (seeds 0, 1, 2)`."""
    names = sorted({record.get("seed") or "0" for record in records}, key=int)
    return f"{len(names)} (seed{'s' if len(names) > 1 else ''} {', '.join(names)})"


def check_seeds(records: Sequence[Record]) -> None:
    """Refuse rows that are not one training with several seeds.

    Raises:
        ValueError: If two rows have the same seed, or rows are of several runs.
    """
    for name, allowed in (("seed", len(records)), ("run", 1)):
        found = [record.get(name, "") for record in records]
        if len(set(found)) != allowed:
            raise ValueError(
                f"rows that differ by more than the seed are not averaged; their {name}s: {', '.join(found)}"
            )


# -- words and numbers ------------------------------------------------------------------------------------------------

#: Heading of a column and, where it is not shown as the file has it, the format of its numbers.
COLUMNS: dict[str, tuple[str, str]] = {
    "frechet_distance": ("FD", ",.0f"),
    "semantic_frechet_distance": ("FD of h(z) alone", ",.0f"),
    "frechet_distance_semantic": ("FD of h(z) alone", ",.0f"),
    "frechet_distance_from_sigma_1": ("FD, pixel chain from sigma 1", ",.0f"),
    "frechet_distance_from_sigma_2": ("from sigma 2", ",.0f"),
    "frechet_distance_from_sigma_4": ("from sigma 4", ",.0f"),
    "frechet_distance_eight_minute_model": ("FD, model of eight minutes", ",.0f"),
    "frechet_distance_cifar10_small": ("FD, cifar10-small", ",.0f"),
    "frechet_distance_denoiser_chain": ("FD, chains by the denoiser", ",.0f"),
    "frechet_distance_energy_gradient_chain": ("FD, by the energy's gradient", ",.0f"),
    "nfe": ("NFE", ",.0f"),
    "fid": ("FID", ".1f"),
    "image_auroc": ("image AUROC", ".3f"),
    "aupro": ("AUPRO", ".3f"),
    "pixel_ap": ("pixel AP", ".3f"),
    "fit_minutes": ("minutes to fit", ".1f"),
    "megabytes": ("MB", ".1f"),
    "megabytes_pretrained": ("MB pretrained", ".1f"),
    "sigmas": ("residuals at sigma", ""),
    "image_auroc_seen": ("image AUROC, kinds seen", ".3f"),
    "image_auroc_held": ("kinds held out", ".3f"),
    "pixel_auroc_held": ("pixel AUROC, held out", ".3f"),
    "rate": ("rate promised", ""),
    "mean_share": ("mean share with a mark", ".4f"),
    "least_share": ("least", ".4f"),
    "most_share": ("most", ".4f"),
    "within": ("splits within the interval", ""),
    "kid": ("KID", ".4f"),
    "samples": ("samples", ",.0f"),
    "reference_images": ("test images", ",.0f"),
    "held_out_loss_denoiser": ("held-out loss, denoiser", ".4f"),
    "held_out_loss_energy": ("energy's gradient", ".4f"),
    "core_minutes": ("minutes of a core", ",.0f"),
    "denoiser_core_minutes": ("the denoiser's", ",.0f"),
    "energy_change_nats": ("change of energy, nats", "+,.0f"),
    "energy_sd_nats": ("standard deviation", ",.0f"),
    "chains_follow": ("chains follow", ""),
    "estimated": ("smallest energy", ""),
    "low": ("10 %", ""),
    "high": ("90 %", ""),
    "estimated_wavelet": ("wavelets", ""),
    "wavelet_low": ("10 % ", ""),
    "wavelet_high": ("90 % ", ""),
    "bits_energy": ("energy, bits/dim", ".3f"),
    "bits_integral": ("integral, bits/dim", ".3f"),
    "bits_difference": ("difference", ".3f"),
    "bits_bound": ("bound of the 8-bit image", ".3f"),
    "seconds_per_64_images": ("s per 64", ",.1f"),
    "images_seen": ("images seen", ",.0f"),
    "parameters": ("parameters", ",.0f"),
    "optimizer_steps": ("steps", ",.0f"),
    "latent_steps": ("K", ""),
    "pixel_steps": ("T", ""),
    "data_set": ("data", ""),
    "paper_fid_cifar10": ("paper (FID, CIFAR-10)", ""),
    "sigma_max": ("largest sigma", ""),
    "noise_levels": ("levels", ""),
    "held_out_denoising_loss": ("held-out denoising loss", ".4f"),
    "log_likelihood_bound_nats": ("E log q(x\\|z), nats", ",.0f"),
    "rate_nats": ("rate, nats", ""),
    "linear_probe_accuracy": ("linear probe", ""),
    "mse_decoded_code": ("MSE of h(z)", ".4f"),
    "sigma_of_noise_in_x": ("sigma", ""),
    "energy_of_data_per_pixel": ("energy of data", ""),
    "energy_of_chain_ends_per_pixel": ("energy of chain ends", ""),
    "energy_gap_per_pixel": ("gap", ""),
    "psnr_db": ("PSNR, dB", ""),
    "ssim": ("SSIM", ""),
    "images_per_second": ("images/s", ""),
    "relative_time": ("time, relative", ""),
    "auroc": ("AUROC", ".3f"),
    "auroc_low": ("95 % interval: from", ".3f"),
    "auroc_high": ("to", ".3f"),
    "ood_images": ("images", ",.0f"),
    "auroc_energy": ("texture energy (the paper's score)", ".3f"),
    "paper_auroc": ("paper", ""),
    "auroc_svhn": ("SVHN", ".3f"),
    "auroc_celeba": ("CelebA", ".3f"),
    "auroc_cifar100": ("CIFAR-100", ".3f"),
    "auroc_blends": ("blends", ".3f"),
    "auroc_constant": ("one colour", ".3f"),
    "auroc_uniform_noise": ("noise", ".3f"),
    "auroc_held_out_corruptions": ("held-out corruptions", ".3f"),
    "ood_set": ("OOD set", ""),
    "aupr": ("AUPR", ".3f"),
    "fpr_at_95_tpr": ("FPR at 95 % TPR", ".3f"),
    "pixel_auroc": ("pixel AUROC", ""),
    "pixel_auroc_mean_over_images": ("mean over images", ""),
    "smoothing_pixels": ("smoothing, pixels", ""),
    "share_nearer_than_1_percent_quantile": ("nearer than the 1 % quantile", ".1%"),
    "share_nearest_to_a_training_image": ("nearest to a training image", ".1%"),
    "share_of_samples": ("share of samples", ".1%"),
    "share_of_test_images": ("of test images", ".1%"),
    "kernel_distance": ("kernel distance", ".2f"),
    "std_smallest_direction": ("std, smallest direction", ""),
    "std_largest_direction": ("largest direction", ""),
    "std_rms": ("rms", ""),
    "std_of_norm": ("std of the norm", ""),
    "sliced_w1": ("sliced W1", ""),
    "seconds_per_64_denoiser": ("s per 64, denoiser", ""),
    "seconds_per_64_energy_gradient": ("s per 64, gradient", ""),
    "extra_langevin_steps_per_level": ("extra Langevin steps a level", ""),
    "below_sigma": ("below sigma", ""),
    "flagged_png": ("flagged: PNG", ""),
    "flagged_jpeg_95": ("JPEG 95", ""),
    "flagged_jpeg_85": ("JPEG 85", ""),
    "flagged_jpeg_75": ("JPEG 75", ""),
    "auroc_synthetic_mean": ("AUROC, mean of synthetic sets", ".3f"),
    "images_are": ("images", ""),
    "images_grouped": ("number", ",.0f"),
    "groups": ("groups", ",.0f"),
    "not_alone": ("not alone", ",.0f"),
    "n": ("seeds", ""),
}


def heading(column: str) -> str:
    if column.startswith("mse_sigma_"):
        return f"MSE, sigma {column.removeprefix('mse_sigma_')}"
    return COLUMNS.get(column, (column.replace("_", " "), ""))[0]


def number(text: str, column: str) -> str:
    """Return a number of a file, or a name, as a page shows it."""
    form = COLUMNS.get(column, ("", ""))[1]
    if not text:
        return "-"
    if form == ".3f" and re.fullmatch(r"\d\.\d{1,3}", text):
        return text  # as a paper printed it
    try:
        return format(float(text), form).replace("%", " %") if form else text.replace("|", "\\|")
    except ValueError:
        return text.replace("|", "\\|")


def figure(records: Sequence[Record], column: str) -> str:
    """Return a cell: the value of a row, or the mean of several seeds and their sample standard deviation."""
    check_seeds(records)
    if column == "n":
        return str(len(records))
    found = [record[column] for record in records]
    if len(set(found)) == 1:
        return number(found[0], column)
    numbers = [float(value) for value in found]
    mean, deviation = statistics.mean(numbers), statistics.stdev(numbers)
    return f"{number(str(mean), column)} ± {number(str(deviation), column)}"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first row is its heading."""
    head, *body = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)) + "\n"


# -- tables -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """What a table shows of a file.

    Attributes:
        file: Name of the CSV file.
        keys: Columns that tell rows apart; rows with equal ones are seeds of one training.
        values: Columns of figures; `n` counts seeds.
        across: A column whose values get columns of their own, each with all of `values`.
        where: Rows that are shown: column and value, or values.
        bold: Rows that have this text in a key are set in bold.
        caption: Whether a line below says how the rows were made.
    """

    file: str
    keys: Sequence[str]
    values: Sequence[str]
    across: str = ""
    where: Where = field(default_factory=dict)
    bold: str = ""
    caption: bool = True


_OOD = ("auroc_svhn", "auroc_celeba", "auroc_cifar100", "auroc_blends")
_FAR = ("auroc_constant", "auroc_uniform_noise")
_MSE = ("mse_sigma_0.05", "mse_sigma_0.1", "mse_sigma_0.3", "mse_sigma_1", "mse_sigma_3")
_RIVALS = partial(
    Table, "rivals", ("method", "sampler", "nfe"), ("frechet_distance", "images_seen", "n"), "data_set", caption=False
)
_SCORES = (
    "without inner noise, sigma 0.05",
    "with inner noise (eq. 7), sigma 0.05",
    "with inner noise (eq. 7), sigma 1",
    "with inner noise, sum over sigma (a bound on -log p)",
    "PNG length",
    "PCA reconstruction error, 100 components",
)
_DETECTORS = (
    "three blocks, ridge 5, shift 1: the default",
    "one block of features",
    "features of the code and of inner layers",
    "ridge 1",
    "shift 0.5",
    "of sums over pixels",
    "of the code given the energies",
    "of inner features given the energies",
    "Mahalanobis distance of inner features",
    "the same, two-sided: too typical is anomalous too",
)
_FAMILIES = ("energy", "spectrum", "semantic", "code z", "feature statistics", "all of them")
_DIRECTIONS = ("less contrast", "less detail", "blur", "warped", "pixelated", "sharper", "two halves", "pasted")
_ROUNDS = (
    "FD of samples",
    "held-out denoising loss",
    "texture energy of test images, sigma 0.05",
    "texture energy of uniform noise, sigma 0.05",
    "texture energy of uniform noise, sigma 0.1",
    "texture energy of noisy test images",
    "texture energy of chain ends",
    "standard deviation of noisy images",
    "standard deviation of chain ends",
)
TABLES: dict[str, Table] = {
    "photographs": Table(
        "photographs",
        ("photos", "method", "normal", "defective"),
        ("image_auroc", "pixel_auroc", "pixel_ap", "aupro", "fit_minutes", "megabytes", "megabytes_pretrained"),
    ),
    "density-contrastive": Table(
        "density-contrastive",
        ("stage", "images_seen"),
        ("frechet_distance", "held_out_loss_denoiser", "held_out_loss_energy"),
    ),
    "photo-evidence": Table(
        "photo-evidence", ("sigmas", "steps"), ("image_auroc_seen", "image_auroc_held", "pixel_auroc_held")
    ),
    "photo-false-alarms": Table(
        "photo-false-alarms", ("photos", "rate"), ("mean_share", "least_share", "most_share", "within")
    ),
    "fid": Table(
        "fid", ("model", "chains_follow", "samples", "reference_images"), ("fid", "kid", "frechet_distance", "nfe")
    ),
    "density-fit": Table(
        "density-fit",
        ("model",),
        ("held_out_loss_denoiser", "held_out_loss_energy", "images_seen", "core_minutes", "denoiser_core_minutes"),
    ),
    "likelihood": Table(
        "likelihood",
        ("model", "test_images"),
        ("bits_energy", "bits_integral", "bits_difference", "bits_bound"),
    ),
    "energy-cost": Table("energy-cost", ("quantity", "batch"), ("ratio",)),
    "mala": Table("mala", ("chain", "steps", "acceptance"), ("energy_change_nats", "energy_sd_nats")),
    "noise-level": Table(
        "noise-level", ("sigma",), ("estimated", "low", "high", "estimated_wavelet", "wavelet_low", "wavelet_high")
    ),
    "rivals-b": _RIVALS(where={"run": "b", "train_minutes": "8"}, bold="ours"),
    "rivals-a": _RIVALS(where={"run": "a", "train_minutes": "8"}, bold="ours"),
    "objectives": Table(
        "objectives", ("objective", "sampler", "nfe"), ("frechet_distance", "images_seen"), "data_set", bold="default"
    ),
    "algorithm-1-500-rounds": Table(
        "algorithm-1-500-rounds", ("quantity",), ("before", "after_500_rounds"), where={"quantity": _ROUNDS}
    ),
    "noise-levels": Table(
        "noise-levels", ("sigma_max", "noise_levels", "paper_fid_cifar10"), ("frechet_distance", "n"), "data_set"
    ),
    "pixel-sampler": Table(
        "pixel-sampler",
        ("method", "step_size", "schedule", "sigma_max", "latent_steps", "pixel_steps"),
        ("frechet_distance",),
        where={"sigma_max": ("", "2", "4"), "pixel_steps": ("0", "20", "40", "8", "16"), "latent_steps": ("5", "10")},
        bold="the default",
    ),
    "low-temperature": Table(
        "low-temperature",
        ("temperature", "below_sigma", "extra_langevin_steps_per_level", "nfe"),
        ("frechet_distance_eight_minute_model", "frechet_distance_cifar10_small"),
    ),
    "latent-start": Table(
        "latent-start", ("latent_start",), ("frechet_distance_semantic", "frechet_distance"), across="latent_steps"
    ),
    "start-level": Table(
        "start-level",
        ("latent_start",),
        (
            "frechet_distance_semantic",
            "frechet_distance_from_sigma_1",
            "frechet_distance_from_sigma_2",
            "frechet_distance_from_sigma_4",
        ),
    ),
    "network-size": Table(
        "network-size", ("network", "parameters"), ("images_seen", "loss", *_MSE, "mse_decoded_code")
    ),
    "batch-size": Table(
        "batch-size",
        ("batch_size", "learning_rate"),
        ("optimizer_steps", "images_seen", "loss", "mse_decoded_code", "frechet_distance"),
    ),
    "latent-space": Table(
        "latent-space",
        ("latent", "sigma_of_noise_in_x"),
        ("images_seen", "mse_decoded_code", "log_likelihood_bound_nats", "rate_nats", "linear_probe_accuracy"),
    ),
    "ood-published": Table("ood-published", ("method",), _OOD),
    "ood-single-scores": Table("ood-scores", ("group", "score"), (*_OOD, *_FAR), where={"score": _SCORES}),
    "ood-scores": Table(
        "ood-scores",
        ("group", "score"),
        (*_OOD, "auroc_held_out_corruptions"),
        where={"score": _DETECTORS},
        bold="the default",
    ),
    "ood-linear-probe": Table("ood-linear-probe", ("features",), _OOD, where={"features": _FAMILIES}),
    "ood-directions": Table(
        "ood-directions",
        ("corruption",),
        _OOD,
        where={"corruption": _DIRECTIONS},
    ),
    "ood-training": Table("ood-training", ("model", "images_seen"), ("held_out_denoising_loss", *_OOD)),
    "ood-small-fit": Table("ood-small-fit", ("data_set", "ood_set"), ("auroc", "auroc_energy", "paper_auroc")),
    "stored-otherwise": Table(
        "stored-otherwise",
        ("fitted_to", "calibrated_on"),
        ("flagged_png", "flagged_jpeg_95", "flagged_jpeg_85", "flagged_jpeg_75", "auroc_synthetic_mean"),
    ),
    "near-copies": Table(
        "near-copies",
        ("data_set", "images_are", "images_grouped"),
        ("groups", "not_alone", "largest_group", "pairs_together"),
    ),
    "anomaly-maps": Table(
        "anomaly-maps",
        ("map", "smoothing_pixels"),
        ("pixel_auroc", "pixel_auroc_mean_over_images"),
        where={"smoothing_pixels": ("0", "3")},
        bold="the default",
    ),
}


def groups(records: Sequence[Record], keys: Sequence[str]) -> dict[tuple[str, ...], list[Record]]:
    """Return rows by their keys, in the order of the file."""
    found: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        found.setdefault(tuple(record[key] for key in keys), []).append(record)
    return found


def render_table(results: Results, table: Table, page: Path) -> str:
    """Return a table and its caption as Markdown."""
    records = results.select(table.file, table.where)
    parts = list(dict.fromkeys(record[table.across] for record in records)) if table.across else [""]
    single = [column for column in table.values if column == "n"]
    spread = [column for column in table.values if column != "n"]
    head = [heading(key) for key in table.keys]
    shown = [f"{heading(table.across)} = {part}" if part.isdecimal() else part for part in parts]
    head += [", ".join(filter(None, (heading(column), part))) for column in spread for part in shown]
    rows = [[*head, *map(heading, single)]]
    for key, group in groups(records, table.keys).items():
        cells = [number(value, column) for value, column in zip(key, table.keys, strict=True)]
        by_part = {part: [r for r in group if not table.across or r[table.across] == part] for part in parts}
        cells += [figure(by_part[part], column) if by_part[part] else "-" for column in spread for part in parts]
        counts = [figure(by_part[part], column) for column in single for part in parts if by_part[part]]
        if single:
            cells.append(", ".join(dict.fromkeys(counts)))
        if table.bold and any(table.bold in value for value in key):
            cells = [cell if cell == "-" else f"**{cell}**" for cell in cells]
        rows.append(cells)
    return markdown(rows) + (caption(results, table.file, page) if table.caption else "")


def caption(results: Results, name: str, page: Path) -> str:
    """Return what stands below a table: counts, model and seed, the file, the commands."""
    (about,) = results.select("tables", {"table": name})
    link = os.path.relpath(results.path(name), page.parent).replace(os.sep, "/")
    facts = "; ".join(about[column] for column in ("model", "images", "training", "seeds") if about[column])
    lines = [record["command"] for record in results.read("commands") if record["table"] == name]
    shown = "".join(f" `{line}`" for line in lines)
    return f"\n{facts[:1].upper()}{facts[1:]}. [{name}.csv]({link}){shown}\n"


# -- claims -----------------------------------------------------------------------------------------------------------


def filled(results: Results, text: str) -> str:
    """Return a cell of the claims with figures in the places of `{FILE | COLUMN=VALUE; ... | COLUMN}`."""

    def replace(match: re.Match[str]) -> str:
        where = dict(part.split("=", 1) for part in re.split(r";\s*", match[2]) if part)
        records = results.select(match[1], where)
        return seeds(records) if match[3] == "n" else figure(records, match[3])

    return FIGURE.sub(replace, text)


def lettered(results: Results) -> dict[str, str]:
    """Return a letter for every file that claims rest on."""
    names = dict.fromkeys(name for record in results.read("claims") for name in record["tables"].split())
    return {name: chr(ord("a") + i) for i, name in enumerate(names)}


def claims(results: Results, page: Path) -> str:
    """Return the table of claims."""
    letters = lettered(results)
    rows = [["claim", "ours", "best rival", "floor", "n (seeds)", "command"]]
    for record in results.read("claims"):
        cells = [filled(results, record[column]) or "-" for column in ("claim", "ours", "best_rival", "floor", "seeds")]
        rows.append([*cells, ", ".join(f"[{letters[name]}](#commands)" for name in record["tables"].split())])
    return markdown(rows)


def commands(results: Results, page: Path) -> str:
    """Return the commands of the claims."""
    lines = []
    for name, letter in lettered(results).items():
        (about,) = results.select("tables", {"table": name})
        lines.append(f"# {letter}. {name}.csv: {about['seeds']}")
        lines += [record["command"] for record in results.select("commands", {"table": name})]
    return "```sh\n" + "\n".join(lines) + "\n```\n"


def readme(results: Results, page: Path) -> str:
    """Return the short table of claims for the README."""
    rows = [["measured", "here", "best rival", "n (seeds)"]]
    for record in results.read("claims"):
        if record["readme"]:
            rows.append(
                [record["readme"], *(filled(results, record[name]) for name in ("ours", "best_rival", "seeds"))]
            )
    return markdown(rows) + (
        "\nEDM is EDM-style diffusion with the same U-Net and minutes, by its own sampler (Heun) or by ours. NFE is network "
        "evaluations an image. Paper: W. Zeng (2023); CSI and MSMA are detectors without labels.\n"
    )


BLOCKS: dict[str, Callable[[Results, Path], str]] = {"claims": claims, "commands": commands, "readme": readme}


def render_page(results: Results, page: Path) -> str:
    """Return the text of a page with its tables made anew.

    Raises:
        ValueError: If it asks for a table that is not known, or a marker has no end.
    """
    text = page.read_text(encoding="utf-8")
    if text.count("<!-- table:") != len(MARKED.findall(text)):
        raise ValueError(f"{page}: a table marker has no `<!-- end -->`, or no name")

    def replace(match: re.Match[str]) -> str:
        name = match[2]
        if name in BLOCKS:
            block = BLOCKS[name](results, page)
        elif name in TABLES:
            block = render_table(results, TABLES[name], page)
        else:
            raise ValueError(f"{page}: no table {name!r}; tables are {', '.join([*BLOCKS, *TABLES])}")
        return f"{match[1]}{block}{match[3]}"

    return MARKED.sub(replace, text)


# -- plots ------------------------------------------------------------------------------------------------------------

BLUE, ORANGE, GREEN, PINK, GRAY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#777777"
DATA_SETS = ("Fashion-MNIST", "CIFAR-10")


def new_figure(width: float, height: float, panels: int = 1) -> tuple[Figure, list[Axes]]:
    drawn = Figure(figsize=(width, height), layout="constrained", dpi=120)
    axes = [drawn.add_subplot(1, panels, i + 1) for i in range(panels)]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="x", color="#dddddd", linewidth=0.8)
        ax.set_axisbelow(True)
    return drawn, axes


def legend_above(ax: Axes) -> None:
    ax.legend(fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=4, columnspacing=1.2)


def floats(records: Sequence[Record], column: str) -> list[float]:
    return [float(record[column]) for record in records]


def plot_rivals(results: Results) -> Figure:
    """FD after eight minutes: a point a seed, methods below each other."""
    records = results.select("rivals", {"train_minutes": "8"})
    rows = [row for row in groups(records, ("run", "method", "sampler")) if "Heun, 20" not in row[2]]
    rows.sort(key=lambda row: row[0], reverse=True)
    drawn, axes = new_figure(11, 0.27 * len(rows) + 1.2, panels=2)
    for ax, data_set in zip(axes, DATA_SETS, strict=True):
        for place, (run, method, sampler) in enumerate(rows):
            row = {"data_set": data_set, "run": run, "method": method, "sampler": sampler}
            mine = [r for r in records if all(r[column] == value for column, value in row.items())]
            color = BLUE if method == "ours" else ORANGE if method.startswith("EDM") else GRAY
            ax.plot(floats(mine, "frechet_distance"), [place] * len(mine), "o", color=color, markersize=6, alpha=0.8)
        (floor,) = results.select("floors", {"data_set": data_set, "training_images": "1000", "reference": "test"})
        ax.axvline(float(floor["frechet_distance"]), color="black", linestyle=":", linewidth=1)
        split = sum(run == rows[0][0] for run, _, _ in rows) - 0.5
        ax.axhline(split, color="black", linewidth=0.8)
        ax.set(
            xscale="log",
            title=data_set,
            xlabel="FD to test images (dotted: training images)",
            ylim=(len(rows) - 0.4, -0.6),
        )
        ax.set_xticks([200, 400, 800, 1600, 3200] if data_set == DATA_SETS[0] else [800, 1200, 1600, 2400, 3600])
        ax.xaxis.set_major_formatter("{x:.0f}")
        ax.minorticks_off()
    axes[0].set_yticks(range(len(rows)), [f"{method}: {sampler}" for _, method, sampler in rows], fontsize=8)
    axes[1].set_yticks(range(len(rows)), [f"run {run}" for run, _, _ in rows], fontsize=8)
    return drawn


def plot_nfe(results: Results) -> Figure:
    """FD by network evaluations, of samplers on one network."""
    drawn, axes = new_figure(11, 3.9, panels=2)
    for ax, data_set in zip(axes, DATA_SETS, strict=True):
        of_set = {"data_set": data_set}
        curves = {
            "DPM-Solver++ from h(z)": results.select(
                "samplers", of_set | {"sampler": "DPM-Solver++ from h(z)", "latent_steps": "0"}
            ),
            "DPM-Solver++ from noise": results.select("semantic-start", of_set | {"start": "noise of 10"}),
            "Heun (EDM's sampler)": results.select("samplers", of_set | {"sampler": "Heun"}),
            "NCSN's protocol, both ends": results.select("samplers", of_set | {"pixel_steps": "1000"}),
        }
        for (name, records), color, marker in zip(curves.items(), (BLUE, GREEN, ORANGE, GRAY), "osDX", strict=True):
            ax.plot(floats(records, "nfe"), floats(records, "frechet_distance"), marker + "-", color=color, label=name)
        ax.grid(axis="y", color="#dddddd", linewidth=0.8)
        ax.set(xscale="log", title=data_set, xlabel="network evaluations an image (NFE)", ylabel="FD", ylim=(0, None))
        ax.xaxis.set_major_formatter("{x:.0f}")
    axes[0].legend(fontsize=8, frameon=False, loc="lower right")
    return drawn


def plot_ood(results: Results) -> Figure:
    """AUROC of the detector and of the texture energy, beside published figures."""
    drawn, (ax,) = new_figure(9, 3.4)
    names = list(dict.fromkeys(record["ood_set"] for record in results.read("ood-detector")))
    paper, *others = results.read("ood-published")
    ours = {"detector": ("ours: detector", BLUE, -0.18), "energy at sigma 0.05": ("ours: texture energy", PINK, -0.06)}
    for place, (name, column) in enumerate(zip(names, _OOD, strict=True)):
        for score, (label, color, offset) in ours.items():
            (record,) = results.select("ood-detector", {"score": score, "ood_set": name})
            low, value, high = (float(record[key]) for key in ("auroc_low", "auroc", "auroc_high"))
            bars = [[value - low], [high - value]]
            ax.errorbar(value, place + offset, xerr=bars, fmt="o", color=color, label=label if place == 0 else None)
        best = max(float(record[column]) for record in others if record[column])
        published = (
            ("paper: texture energy", float(paper[column]), "s", ORANGE),
            ("best published", best, "D", GRAY),
        )
        for i, (label, value, marker, color) in enumerate(published):
            y, label = place + 0.06 + 0.12 * i, label if place == 0 else ""
            ax.plot(value, y, marker, color=color, markerfacecolor="none", label=label)
    ax.axvline(0.5, color="black", linestyle=":", linewidth=1)
    ax.set(xlabel="AUROC, CIFAR-10 in-distribution (dotted: chance)", xlim=(0, 1.02), ylim=(len(names) - 0.5, -0.6))
    ax.set_yticks(range(len(names)), names)
    legend_above(ax)
    return drawn


def plot_restoration(results: Results) -> Figure:
    """PSNR of restored images, task by task."""
    drawn, (ax,) = new_figure(8, 3.4)
    ours = {
        "degraded": ("degraded", GRAY, "x"),
        "ours, mean": ("ours, mean of chains", BLUE, "o"),
        "ours, sample": ("ours, one sample", GREEN, "s"),
    }
    tasks = groups(results.read("restoration"), ("task",))
    for place, records in enumerate(tasks.values()):
        psnr = {record["method"]: float(record["psnr_db"]) for record in records}
        best = max(value for method, value in psnr.items() if method not in ours)
        for method, (label, color, marker) in ours.items():
            ax.plot(psnr[method], place, marker, color=color, label=label if place == 0 else "")
        label = "best classical method" if place == 0 else ""
        ax.plot(best, place, "D", color=ORANGE, markerfacecolor="none", label=label)
    ax.set(xlabel="PSNR, dB", ylim=(len(tasks) - 0.5, -0.6))
    ax.set_yticks(range(len(tasks)), [task for (task,) in tasks], fontsize=9)
    legend_above(ax)
    return drawn


@dataclass(frozen=True)
class Plot:
    """A picture, the files that it shows, and what draws it."""

    path: str
    files: Sequence[str]
    draw: Callable[[Results], Figure]


PLOTS = (
    Plot("docs/images/results-equal-minutes.png", ("rivals", "floors"), plot_rivals),
    Plot("docs/images/results-nfe.png", ("samplers", "semantic-start"), plot_nfe),
    Plot("docs/images/results-ood.png", ("ood-detector", "ood-published"), plot_ood),
    Plot("docs/images/results-restoration.png", ("restoration",), plot_restoration),
)


def data_hash(results: Results, plot: Plot) -> str:
    """Return a hash of what a plot shows."""
    text = repr([results.read(name) for name in plot.files])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def shown_hash(path: Path) -> str:
    """Return the hash that a picture carries; empty if there is none."""
    if not path.is_file():
        return ""
    with Image.open(path) as picture:
        return str(picture.info.get("Data", ""))


# -- command line -----------------------------------------------------------------------------------------------------


def write_page(page: Path, text: str) -> None:
    page.write_text(text, encoding="utf-8")


def write_plot(results: Results, plot: Plot) -> None:
    metadata = {"Data": data_hash(results, plot), "Software": None}
    plot.draw(results).savefig(results.root / plot.path, metadata=metadata)


def stale(results: Results) -> dict[Path, Callable[[], None]]:
    """Return the pages and plots that differ from the CSV files, each with what writes it anew."""
    found: dict[Path, Callable[[], None]] = {}
    for name in PAGES:
        page = results.root / name
        text = render_page(results, page)
        if text != page.read_text(encoding="utf-8"):
            found[page] = partial(write_page, page, text)
    for plot in PLOTS:
        path, current = results.root / plot.path, data_hash(results, plot)
        if shown_hash(path) != current:
            found[path] = partial(write_plot, results, plot)
    return found


def main() -> None:
    """Write what is stale, or fail if something is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a page or plot is stale")
    args = parser.parse_args()
    try:
        found = stale(Results())
    except ValueError as error:
        sys.exit(f"error: {error}")
    for path, write in found.items():
        if args.check:
            print(f"{path.relative_to(ROOT)}: differs from the CSV files; run `python benchmarks/render.py`")
        else:
            write()
            print(f"{path.relative_to(ROOT)}: written")
    if args.check and found:
        sys.exit(1)


if __name__ == "__main__":
    main()
