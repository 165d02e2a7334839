"""Make the CSV files of `results/` from folders of result rows.

`debm reproduce` and `baselines/compare.py` keep every finished row as a JSON file in `--out`. To add such a folder:

    python benchmarks/collect.py runs/rivals-cifar10 --run b
    python benchmarks/render.py

The first command copies settings and rows to `benchmarks/results/`, enters the folder in `results/runs.csv` and makes the
CSV files anew; the second one renders the pages. Several folders can be given at once, also ones that are not finished:
the same command adds the rows that they have gained since. Without folders the CSV files are made from what is in
`results/` already; `--check` compares and changes nothing.

A run is what may be averaged: the same code on the same machine, seeds apart. Another machine is a new run, which needs
`--hardware "one core of an AMD EPYC (Zen 5)"`.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
RUNS_COLUMNS = ("folder", "run", "hardware")
Row = dict[str, Any]

DATA_SETS = {"fashion-mnist": "Fashion-MNIST", "CIFAR10": "CIFAR-10"}
_H, _NOISE = "DPM-Solver++ from h(z)", "DPM-Solver++ from noise"
_ANCESTRAL = "ancestral sampling, 100 steps from sigma 1"
#: Rows of `compare.py` by the name of their file: method, sampler, network evaluations an image (None: not of a denoiser).
RIVALS: dict[str, tuple[str, str, int | None]] = {
    "ours-two-stage": ("ours", _H, 32),
    "ours-two-stage-tuned": ("ours", f"{_H}, tuned", 32),
    "ours-our-chains-from-noise": ("ours", _NOISE, 17),
    "ours-Heun-20": ("ours", "Heun, 20 levels", 39),
    "our-model-torchebm-s-Langevin-sampler": ("ours", "torchebm's Langevin, 40 levels", 40),
    "EDM-style-diffusion-Heun-18": ("EDM-style diffusion", "Heun, 18 levels", 35),
    "EDM-style-diffusion-our-chains-from-noise": ("EDM-style diffusion", _NOISE, 17),
    "EDM-style-diffusion-our-chains-from-noise-tuned": ("EDM-style diffusion", f"{_NOISE}, tuned", 17),
    "NCSN-its-1-000-steps": ("NCSN", "annealed Langevin, 1,000 steps", 1000),
    "NCSN-our-chains-from-noise": ("NCSN", _NOISE, 17),
    "NCSN-our-chains-from-noise-tuned": ("NCSN", f"{_NOISE}, tuned", 17),
    "MDSM-300-annealed-steps": ("MDSM", "annealed Langevin, 300 steps", None),
    "IGEBM-replay-buffer": ("IGEBM", "60 Langevin steps from its replay buffer", None),
    "plain-DAE-100-Langevin-steps-from-sigma-=-1": ("plain DAE", _ANCESTRAL, None),
    "ebmkit-ResNetEnergy-by-PCD": ("ebmkit ResNetEnergy", "persistent chains", None),
    # Today's names of rows above.
    "ours-SDE-DPM-Solver-2M-from-h-z": ("ours", _H, 32),
    "ours-SDE-DPM-Solver-2M-from-h-z-low-temperature-end": ("ours", f"{_H}, tuned", 32),
    "ours-SDE-DPM-Solver-2M-from-noise": ("ours", _NOISE, 17),
    "EDM-style-diffusion-SDE-DPM-Solver-2M-from-noise": ("EDM-style diffusion", _NOISE, 17),
    "EDM-style-diffusion-SDE-DPM-Solver-2M-from-noise-low-temperature-end": (
        "EDM-style diffusion",
        f"{_NOISE}, tuned",
        17,
    ),
    "NCSN-SDE-DPM-Solver-2M-from-noise": ("NCSN", _NOISE, 17),
    "NCSN-SDE-DPM-Solver-2M-from-noise-low-temperature-end": ("NCSN", f"{_NOISE}, tuned", 17),
    "plain-DAE-100-ancestral-steps-from-sigma-=-1": ("plain DAE", _ANCESTRAL, None),
}
#: Names that rows had before stand first, those of today behind them.
STARTS = {
    "semantic-start": "h(z) plus noise of 4",
    "from-h-z": "h(z) plus noise of 4",
    "noise-of-10": "noise of 10",
    "from-noise-of-10": "noise of 10",
    "noise-of-4": "noise of 4",
    "from-noise-of-4": "noise of 4",
}
_GRADIENT = "from h(z), by the gradient of the energy"
#: Samplers of table 1 by the part of the row's name after the objective.
SAMPLERS = {
    "two-stage": f"default: {_H}",
    "two-stage-first-term": f"default: {_H}",
    "SDE-DPM-Solver-2M-from-h-z": f"default: {_H}",
    "SDE-DPM-Solver-2M-from-h-z-denoiser-drift": f"default: {_H}",
    "two-stage-exact-gradient": _GRADIENT,
    "SDE-DPM-Solver-2M-from-h-z-exact-gradient": _GRADIENT,
    "annealed": _NOISE,
    "SDE-DPM-Solver-2M-from-noise": _NOISE,
    "heun": "Heun, 20 levels",
    "Heun-s-method-from-noise": "Heun, 20 levels",
    "mala": "MALA, 20 steps, by the gradient of the energy",
    "MALA-from-noise": "MALA, 20 steps, by the gradient of the energy",
}
OBJECTIVES = {"denoising": "denoising", "contrastive": "Algorithm 1", "score": "score"}
#: FID of the paper's table 3, CIFAR-10, by the largest noise level and the number of levels.
PAPER_TABLE3 = {
    ("3", "128"): 66.57,
    ("2", "128"): 60.81,
    ("1", "128"): 50.02,
    ("0.5", "128"): 55.23,
    ("1", "64"): 60.02,
    ("1", "256"): 51.10,
}
OOD_SETS = {
    "svhn": ("SVHN", 0.99),
    "celeba": ("CelebA", 0.86),
    "cifar100": ("CIFAR-100", 0.62),
    "interpolation": ("blends of two images", 0.99),
    "digits": ("digits", None),
    "upside-down": ("upside down", None),
}


def either(row: Mapping[str, Any], *names: str) -> Any:
    """Return the first of several fields that a row has: names have changed since the first rows."""
    return next((row[name] for name in names if name in row), None)


def distance(row: Mapping[str, Any]) -> Any:
    return either(row, "frechet_distance", "distance")


def rivals(match: re.Match[str], row: Row, settings: Row) -> Iterator[Row]:
    if match[0] not in RIVALS:
        return
    method, sampler, nfe = RIVALS[match[0]]
    yield {
        "method": method,
        "sampler": sampler,
        "train_minutes": float(settings["minutes"]),
        "samples": int(settings["samples"]),
        "nfe": nfe,
        "frechet_distance": distance(row),
        "precision": row["precision"],
        "recall": row["recall"],
        "coverage": row["coverage"],
        "seconds_per_64_images": either(row, "s_per_64", "s per 64"),
        "parameters": row["parameters"],
        "images_seen": either(row, "images_seen", "images seen"),
        "optimizer_steps": row["steps"],
        "low_temperature": either(row, "low_temperature", "low temperature", "cold temperature"),
        "tuning_seconds": either(row, "seconds_of_tuning", "seconds of tuning"),
        "weights": row.get("weights"),
    }


def quality(row: Row) -> Row:
    return {
        "nfe": either(row, "nfe", "evaluations"),
        "seconds_per_64_images": either(row, "s_per_64", "s per 64"),
        "frechet_distance": distance(row),
        "precision": row["precision"],
        "recall": row["recall"],
        "coverage": row["coverage"],
    }


def speed(match: re.Match[str], row: Row, settings: Row) -> Iterator[Row]:
    name = match[1]
    if found := re.fullmatch(r"(?:two-stage|SDE-DPM-Solver-2M-from-h-z)-K-=-(\d+)-T-=-(\d+)", name):
        columns: Row = {"sampler": _H, "latent_steps": int(found[1]), "pixel_steps": int(found[2])}
    elif found := re.fullmatch(r"heun-(\d+)-levels|Heun-s-method-from-noise-T-=-(\d+)", name):
        columns = {"sampler": "Heun", "latent_steps": None, "pixel_steps": int(found[1] or found[2])}
    else:
        last = " and a denoising step" if name.endswith("denoising-step") else ""
        columns = {"sampler": f"NCSN's protocol{last}", "latent_steps": None, "pixel_steps": 1000}
    yield columns | quality(row)


def chains(match: re.Match[str], row: Row, settings: Row) -> Iterator[Row]:
    yield {"pixel_steps": int(match[1]), "start": STARTS[match[2]]} | quality(row)


def objectives(match: re.Match[str], row: Row, settings: Row) -> Iterator[Row]:
    yield {
        "objective": OBJECTIVES[match[1]],
        "sampler": SAMPLERS[match[2]],
        "images_seen": either(row, "images_seen", "images seen"),
        **quality(row),
        "semantic_frechet_distance": either(row, "semantic_frechet_distance", "semantic_distance"),
    }


def floor(match: re.Match[str], row: Row, settings: Row) -> Iterator[Row]:
    yield {"objective": "training images", "sampler": "none: the floor"} | quality(row)


def noise_levels(match: re.Match[str], row: Row, settings: Row) -> Iterator[Row]:
    yield {
        "sigma_max": match[1],
        "noise_levels": match[2],
        "seed": int(match[3]),
        "frechet_distance": distance(row),
        "images_seen": either(row, "images_seen", "images seen"),
        "paper_fid_cifar10": PAPER_TABLE3[match[1], match[2]],
    }


def ood(match: re.Match[str], row: Row, settings: Row) -> Iterator[Row]:
    for name, interval in row["detector"].items():
        shown, paper = OOD_SETS[name]
        yield {
            "ood_set": shown,
            "images": row["normal"],
            **dict(zip(("auroc", "auroc_low", "auroc_high"), interval, strict=True)),
            **dict(zip(("auroc_energy", "auroc_energy_low", "auroc_energy_high"), row["energy"][name], strict=True)),
            "paper_auroc": paper if settings["data"] == "CIFAR10" else None,
        }


def classes(match: re.Match[str], row: Row, settings: Row) -> Iterator[Row]:
    floors = {item["name"]: item for item in row["floor"]}
    for item in row["samples"]:
        yield {
            "class": item["name"],
            "share_of_samples": item["share"],
            "share_of_test_images": item["real_share"],
            "kernel_distance": either(item, "kernel_distance", "distance"),
            "kernel_distance_of_training_images": either(floors[item["name"]], "kernel_distance", "distance"),
            "classifier_accuracy": row["accuracy"],
        }


def memorization(match: re.Match[str], row: Row, settings: Row) -> Iterator[Row]:
    for name, item in row["sets"].items():
        yield {
            "images": name,
            "number_of_images": item["images"],
            "share_nearer_than_1_percent_quantile": item["near"],
            "share_nearest_to_a_training_image": item["nearer"],
            "share_low": item["interval"][0],
            "share_high": item["interval"][1],
        }


@dataclass(frozen=True)
class Kind:
    """What becomes of the rows whose file has a certain name.

    Attributes:
        table: The CSV file, without suffix.
        pattern: Of the file's name, without suffix.
        make: Of the match, the row and the folder's settings: rows of the table.
    """

    table: str
    pattern: str
    make: Callable[[re.Match[str], Row, Row], Iterator[Row]]


KINDS = (
    Kind("samplers", r"speed-(.+)", speed),
    Kind("semantic-start", r"chain-of-(\d+)-(.+)", chains),
    Kind("objectives", r"floor", floor),
    Kind("objectives", r"(denoising|contrastive|score)-(.+)", objectives),
    Kind("noise-levels", r"table3-sigma-from-([\d.]+)-S-=-(\d+)-seed-(\d+)", noise_levels),
    Kind("ood-small-fit", r"table4", ood),
    Kind("classes", r"classes", classes),
    Kind("memorization", r"copies|memorization", memorization),
    Kind("rivals", r".+", rivals),
)
#: Digits after the point that the CSV files keep.
DIGITS = {"frechet_distance": 2, "seconds_per_64_images": 3, "tuning_seconds": 0, "semantic_frechet_distance": 2}


#: Order of the rows by the names in them; rows of one name follow by lengths of chains, noise levels and seed.
ORDER = {
    "data_set": [*DATA_SETS.values()],
    "objective": ["training images", *OBJECTIVES.values()],
    "method": [*dict.fromkeys(method for method, _, _ in RIVALS.values())],
    "sampler": [
        *(name + tuned for name in (_H, _NOISE) for tuned in ("", ", tuned")),
        *dict.fromkeys([*SAMPLERS.values(), *(sampler for _, sampler, _ in RIVALS.values())]),
        "Heun",
        "NCSN's protocol",
        "NCSN's protocol and a denoising step",
    ],
    "start": [*dict.fromkeys(STARTS.values())],
}
NUMBERS = ("train_minutes", "latent_steps", "pixel_steps", "sigma_max", "noise_levels", "seed")


def order(row: Row) -> tuple[Any, ...]:
    """Return what rows are sorted by."""
    names = tuple(known.index(row[key]) if row.get(key) in known else -1 for key, known in ORDER.items())
    numbers = tuple(float(row.get(key) or 0) for key in NUMBERS)
    return (names[0], row["run"], names[1:], numbers)


def cell(name: str, value: Any) -> str:
    """Return a value as the CSV files have it."""
    if value is None:
        return ""
    if isinstance(value, float):
        text = f"{value:.{DIGITS.get(name, 4)}f}"
        return text if name.startswith("auroc") or "." not in text else text.rstrip("0").rstrip(".")
    return str(value)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def text_of(columns: tuple[str, ...] | list[str], rows: list[Row]) -> str:
    """Return a CSV file."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([cell(name, row.get(name)) for name in columns] for row in rows)
    return out.getvalue()


def settings_of(folder: Path) -> Row:
    """Return the settings that a folder of rows was made with.

    Raises:
        ValueError: If there are none, or the folder has no rows.
    """
    files = sorted(folder.glob("*.json"))
    if len(files) != 1 or not (folder / "rows").is_dir():
        raise ValueError(f"{folder}: no folder of result rows (one JSON file of settings, and rows/)")
    settings = json.loads(files[0].read_text(encoding="utf-8"))
    return dict(settings.get("settings", settings))


def tables(results: Path = RESULTS) -> dict[str, str]:
    """Return the CSV files that come from rows, by name.

    Raises:
        ValueError: If a folder, a row or a field of it is not known.
    """
    found: dict[str, list[Row]] = {kind.table: [] for kind in KINDS}
    for entry in read_csv(results / "runs.csv"):
        folder = results / entry["folder"]
        settings = settings_of(folder)
        about = {"data_set": DATA_SETS[settings["data"]], "run": entry["run"], "seed": int(settings["seed"])}
        for path in sorted((folder / "rows").glob("*.json")):
            kind, match = next((kind, m) for kind in KINDS if (m := re.fullmatch(kind.pattern, path.stem)))
            row = json.loads(path.read_text(encoding="utf-8"))
            try:
                made = [about | values for values in kind.make(match, row, settings)]
            except KeyError as error:
                raise ValueError(f"{path}: no rule for {error}; add one to {Path(__file__).name}") from None
            if not made:
                raise ValueError(f"{path}: no rule for a row of this name; add one to {Path(__file__).name}")
            found[kind.table] += made
    files = {}
    for name, rows in found.items():
        columns = list(dict.fromkeys(column for row in rows for column in row))
        files[f"{name}.csv"] = text_of(columns, sorted(rows, key=order))
    return files


def folder_name(settings: Row, run: str) -> str:
    """Return the name of a folder in `results/`: what was run, on what, which run and seed."""
    trained = f"{float(settings['minutes']):g}-minutes" if "preset" in settings else settings["model"] or "trained"
    parts = (settings.get("scale", "rivals"), settings["data"], trained, "run", run, "seed", settings["seed"])
    return re.sub(r"[^a-z0-9.]+", "-", "-".join(map(str, parts)).lower())


def add(folder: Path, run: str, hardware: str, results: Path = RESULTS) -> None:
    """Copy a folder's settings and rows, and enter it in `runs.csv`.

    Raises:
        ValueError: If it is no folder of rows, or the run is new and no hardware is given.
    """
    settings = settings_of(folder)
    entries: list[Row] = [dict(entry) for entry in read_csv(results / "runs.csv")]
    hardware = next((entry["hardware"] for entry in entries if entry["run"] == run), hardware)
    if not hardware:
        raise ValueError(f"run {run} is new: say with --hardware what it ran on")
    name = folder_name(settings, run)
    target = results / name
    (target / "rows").mkdir(parents=True, exist_ok=True)
    for path in [*folder.glob("*.json"), *(folder / "rows").glob("*.json")]:
        shutil.copyfile(path, target / path.relative_to(folder))
    if name not in {entry["folder"] for entry in entries}:
        entries.append({"folder": name, "run": run, "hardware": hardware})
        (results / "runs.csv").write_text(text_of(RUNS_COLUMNS, entries), encoding="utf-8")


def main() -> None:
    """Add folders, then make or check the CSV files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="folders of rows to add")
    parser.add_argument("--run", default="", help="name of the run that they belong to")
    parser.add_argument("--hardware", default="", help="what they ran on; not needed for a run that is known")
    parser.add_argument("--check", action="store_true", help="fail if a CSV file differs from the rows; change nothing")
    args = parser.parse_args()
    if args.folders and (not args.run or args.check):
        parser.error("folders need --run, and no --check")
    try:
        for folder in args.folders:
            add(folder, args.run, args.hardware)
        files = tables()
    except ValueError as error:
        sys.exit(f"error: {error}")
    for name, text in files.items():
        path = RESULTS / name
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        if args.check:
            sys.exit(f"error: {path}: differs from the rows; run `python benchmarks/collect.py`")
        path.write_text(text, encoding="utf-8")
        print(f"{path}: written")


if __name__ == "__main__":
    main()
