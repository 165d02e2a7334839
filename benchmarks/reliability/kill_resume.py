"""Is a killed run the same in the end? SIGKILL at random moments, `--resume`, and equality to the bit with a run left alone.

    python benchmarks/reliability/kill_resume.py --out runs/kills --kills 50

For denoising, contrastive training with short and with persistent chains, and training on scores: a run of a small network
on Fashion-MNIST is killed five times, each time at a random moment of a fresh process, a third of them while a file is
being written, and led to its end after the fifth. Outcomes: exact (model.safetensors, and weights, averages, optimizer and
chains of state.pt, equal those of a run that was never killed, and metrics.jsonl has the same steps), differs, stuck (a
command that should go on ends with an error). After each kill state.pt and the model folder are read; how often the model
folder was a mixture (killed between its two files), which resuming mends, is counted. Needs `fork`; rows are appended to
kills.csv in the folder. On CPUs, one thread.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from denoising_ebm import DenoisingEBM
from denoising_ebm.cli import main as debm
from denoising_ebm.training import trainer  # noqa: F401  (before forking, so that no process waits for it)

KILLS_OF_A_RUN = 5
NETWORK = [
    *(
        "--network.image_size",
        "16",
        "--network.channels",
        "1",
        "--network.widths",
        "[8,16]",
        "--network.attention",
        "[]",
    ),
    *("--network.decoder_widths", "[8,16]", "--network.latent_dim", "8", "--network.embedding_dim", "16"),
]
RUN = [
    *("fashion-mnist", "--preset", "fashion-mnist", "--limit", "300", "--resize", "box", "--max-minutes", "0"),
    *("--device", "cpu", "--precision", "fp32", "--training.batch_size", "16", "--training.log_every", "5"),
    *("--training.sample_minutes", "0.003", "--training.holdout", "30", "--sampling.pixel.steps", "4"),
    *("--sampling.semantic.steps", "4"),
]
CHAINS = [
    *("--contrastive.texture_steps", "4", "--contrastive.semantic_steps", "2", "--contrastive.chain_batch", "8"),
    *("--contrastive.buffer_size", "64"),
]
OBJECTIVES: dict[str, list[str]] = {
    "denoising": ["--stages", "[{objective: denoising}]", "--max-images", "960"],
    "contrastive": [
        *("--stages", "[{objective: denoising, fraction: 1}, {objective: contrastive, fraction: 3}]", *CHAINS),
        *("--max-images", "480"),
    ],
    "persistent": [
        *("--stages", "[{objective: contrastive}]", *CHAINS, "--contrastive.chains", "persistent"),
        *("--max-images", "480"),
    ],
    "score": [
        *("--stages", "[{objective: denoising, fraction: 1}, {objective: score, fraction: 2}]"),
        *("--energy.denoiser", "gradient", "--max-images", "480"),
    ],
}


def command(objective: str, out: Path, *, resume: bool) -> list[str]:
    settings = [*NETWORK, *OBJECTIVES[objective]]
    more = ["--resume"] if resume else []
    return ["train", *RUN, *settings, "--out", str(out), *more]


def start(arguments: list[str], log: Path) -> int:
    """Run `debm` in a process of its own; return its number."""
    number = os.fork()
    if number:
        return number
    status = 70
    try:
        with open(log, "ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        status = debm(arguments)
    finally:
        os._exit(status)


def wait(number: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def kill(number: int, out: Path, moment: float, *, while_writing: bool) -> tuple[int | None, str]:
    """Kill a process at a moment, in seconds from now; return its status if it ended before, and the file being written."""
    begun = time.monotonic()
    during = ""
    while True:
        ended, status = os.waitpid(number, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), ""
        elapsed = time.monotonic() - begun
        if elapsed >= moment:
            writing = [path.name for path in out.rglob(f".*.{number}.tmp")] if while_writing and out.exists() else []
            if writing or not while_writing or elapsed > moment + 20:
                during = writing[0].removesuffix(f".{number}.tmp").lstrip(".") if writing else ""
                break
        time.sleep(0.0005 if while_writing else 0.005)
    os.kill(number, signal.SIGKILL)
    wait(number)
    return None, during


def leaves(value: Any, name: str = "") -> dict[str, Any]:
    """Return the tensors and numbers of a nested state by name."""
    if isinstance(value, dict):
        return {key: leaf for k, v in value.items() for key, leaf in leaves(v, f"{name}.{k}").items()}
    if isinstance(value, list | tuple):
        return {key: leaf for i, v in enumerate(value) for key, leaf in leaves(v, f"{name}.{i}").items()}
    if isinstance(value, torch.Tensor):
        return {
            name: (value.dtype, tuple(value.shape), value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        }
    return {name: value}


def result(out: Path) -> dict[str, Any]:
    state = leaves(torch.load(out / "state.pt", weights_only=True))
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {
        "state": {name: value for name, value in state.items() if not name.endswith(".seconds")},
        "weights": (out / "model" / "model.safetensors").read_bytes(),
        "steps": [record["step"] for record in records if "stage" in record],
    }


def unreadable(out: Path) -> str:
    """Return which of the two a kill left unreadable: state, model or neither."""
    try:
        for name in ("state.pt", "state-previous.pt"):
            if (out / name).exists():
                torch.load(out / name, weights_only=True)
    except Exception:
        return "state"
    try:
        if (out / "model" / "config.json").exists():
            DenoisingEBM.from_pretrained(out / "model")
    except ValueError:
        return "model"
    return ""


def one_run(
    objective: str, out: Path, kills: int, length: float, expected: dict[str, Any], rng: random.Random
) -> dict[str, Any]:
    """Kill a run several times, lead it to its end, and compare."""
    shutil.rmtree(out, ignore_errors=True)
    log = out.with_suffix(".log")
    log.unlink(missing_ok=True)
    done, during, broken = 0, [], Counter[str]()
    outcome = ""
    while not outcome:
        # As a user would: `--resume` as soon as there is anything of a run.
        resume = any((out / name).exists() for name in ("state.pt", "config.yaml", "metrics.jsonl"))
        number = start(command(objective, out, resume=resume), log)
        if done == kills:
            status: int | None = wait(number)
        else:
            # Nearer to the end than to the start there is nothing left to kill for the later ones.
            moment = rng.uniform(0, length / 2)
            status, file = kill(number, out, moment, while_writing=rng.random() < 1 / 3)
            if status is None:
                done += 1
                during += [file] * bool(file)
                broken[unreadable(out)] += 1
                continue
        if status == 0 and done < kills:
            # It was faster than the kill: begin another, and go on counting.
            if (difference := compare(result(out), expected)) != "exact":
                outcome = difference
            shutil.rmtree(out)
        elif status == 0:
            outcome = compare(result(out), expected)
        else:
            outcome = "stuck"
    left = len(list(out.rglob(".*")))
    return {
        "objective": objective,
        "kills": done,
        "outcome": outcome,
        "while writing": " ".join(during),
        "unreadable states": broken["state"],
        "mixed models": broken["model"],
        "files left": left,
    }


def compare(found: dict[str, Any], expected: dict[str, Any]) -> str:
    return next((f"differs: {name}" for name, value in expected.items() if found[name] != value), "exact")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for runs and kills.csv")
    parser.add_argument("--kills", type=int, default=50, help="kills for each objective, a multiple of 5")
    parser.add_argument("--objectives", nargs="+", choices=list(OBJECTIVES), default=list(OBJECTIVES))
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for objective in options.objectives:
        reference = options.out / objective / "never-killed"
        reference.parent.mkdir(exist_ok=True)
        shutil.rmtree(reference, ignore_errors=True)
        begun = time.monotonic()
        if wait(start(command(objective, reference, resume=False), reference.with_suffix(".log"))):
            raise SystemExit(f"the run without kills failed, see {reference.with_suffix('.log')}")
        length, expected = time.monotonic() - begun, result(reference)
        rng = random.Random(f"{options.seed} {objective}")
        for i in range(options.kills // KILLS_OF_A_RUN):
            rows.append(one_run(objective, reference.parent / f"run-{i}", KILLS_OF_A_RUN, length, expected, rng))
            print(json.dumps(rows[-1]), flush=True)
            with open(options.out / "kills.csv", "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
    exact = sum(row["kills"] for row in rows if row["outcome"] == "exact")
    total = sum(row["kills"] for row in rows)
    print(f"{exact} of {total} kills: the run was the same in the end")
    return 0 if exact == total else 1


if __name__ == "__main__":
    sys.exit(main())
