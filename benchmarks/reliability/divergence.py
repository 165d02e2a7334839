"""Spoil small training runs, each in one way, and see what becomes of them.

    python benchmarks/reliability/divergence.py --out runs/divergence

A run of 300 steps (some ten seconds on one core) with too large a learning rate, or with a fault that `spoil.py` puts into
one step. Each row: the exit status; the events of metrics.jsonl; whether `model/` loads; its held-out loss over that of the
sound run of the same objective; and a verdict: *recovered* (ratio up to 1.3), *degraded* (up to 2) or *broken* (more, not
finite, or not loadable). *Silent* is what is not recovered although the exit status is 0 or no event was written: that must
not be. Rows already in the folder are kept; the exit status is 1 if a row is silent or without a finite, loadable model.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import spoil
import torch

from denoising_ebm import DenoisingEBM
from denoising_ebm.cli import main as debm
from denoising_ebm.viz.report import Table, print_table

# 59,000 weights, 16 x 16 gray: a step takes some 20 ms on one core.
BASE = (
    "--preset fashion-mnist --limit 300 --resize box --network.image_size 16 --network.widths [8,16] --network.attention [] "
    "--network.decoder_widths [8,16] --network.latent_dim 8 --network.embedding_dim 16 --max-minutes 0 --max-images 4800 "
    "--training.batch_size 16 --training.log_every 10 --training.sample_minutes 0.1 --training.holdout 30 "
    "--sampling.pixel.steps 4"
).split()
_CHAINS = "--contrastive.texture_steps 4 --contrastive.semantic_steps 2 --contrastive.chain_batch 8".split()
OBJECTIVES = {
    "denoising": ["--stages", "[{objective: denoising}]"],
    "contrastive": [
        "--stages",
        "[{objective: denoising, fraction: 1}, {objective: contrastive, fraction: 3}]",
        *_CHAINS,
    ],
    "persistent": [
        *("--stages", "[{objective: contrastive}]", "--contrastive.chains", "persistent"),
        *("--contrastive.buffer_size", "64", *_CHAINS),
    ],
    "score": [
        *("--stages", "[{objective: denoising, fraction: 1}, {objective: score, fraction: 2}]"),
        *("--energy.denoiser", "gradient"),
    ],
}


def _rate(value: float, *more: str) -> list[str]:
    return ["--training.learning_rate", str(value), *more]


#: Name: objective, further options, fault. Lines of metrics.jsonl come every 10 steps; the preset's rate is 1e-3.
CASES: dict[str, tuple[str, list[str], str]] = {
    "rate x 10": ("denoising", _rate(1e-2), ""),
    "rate x 100": ("denoising", _rate(1e-1), ""),
    "rate x 1,000": ("denoising", _rate(1.0), ""),
    "rate x 1,000,000": ("denoising", _rate(1e3), ""),
    "rate x 1,000, no clipping": ("denoising", _rate(1.0, "--training.clip_norm", "0"), ""),
    "rate x 1,000, contrastive": ("contrastive", _rate(1.0), ""),
    "rate x 1,000, persistent": ("persistent", _rate(1.0), ""),
    "rate x 1,000, score": ("score", _rate(1.0), ""),
    "batch NaN once": ("denoising", [], "batch-nan:105"),
    "batch NaN once, last of a stretch": ("denoising", [], "batch-nan:110"),
    "batch NaN for ever": ("denoising", [], "batch-nan:105:0"),
    "batch NaN in the first stretch": ("denoising", [], "batch-nan:3"),
    "gradient NaN": ("denoising", [], "grad-nan:110"),
    "weight NaN": ("denoising", [], "weight-nan:105"),
    "weight NaN, last of a stretch": ("denoising", [], "weight-nan:110"),
    "weight infinite, last of a stretch": ("denoising", [], "weight-inf:110"),
    "weight 1e30": ("denoising", [], "weight-big:105"),
    "weight 1e30, last of a stretch": ("denoising", [], "weight-big:110"),
    "weights noise": ("denoising", [], "weight-noise:105"),
    "first moment NaN, last of a stretch": ("denoising", [], "adam-nan:110"),
    "average NaN": ("denoising", [], "average-nan:105"),
    "weight NaN, last step of the run": ("denoising", [], "weight-nan:300"),
    "weight NaN, contrastive": ("contrastive", [], "weight-nan:155"),
    "weight NaN, last of a stretch, contrastive": ("contrastive", [], "weight-nan:150"),
    "weight NaN, score": ("score", [], "weight-nan:155"),
    "weight NaN, persistent": ("persistent", [], "weight-nan:155"),
    "batch NaN once, contrastive": ("contrastive", [], "batch-nan:155"),
    "batch NaN once, persistent": ("persistent", [], "batch-nan:155"),
    "batch NaN once, score": ("score", [], "batch-nan:155"),
    # The 29 above were the first to be tried.
    "rate x 30": ("denoising", _rate(3e-2), ""),
    "rate x 100, contrastive": ("contrastive", _rate(1e-1), ""),
    "rate x 100, score": ("score", _rate(1e-1), ""),
    "weight NaN, first step": ("denoising", [], "weight-nan:1"),
    "batch NaN, last step of the run": ("denoising", [], "batch-nan:300"),
    "weights noise, last of a stretch": ("denoising", [], "weight-noise:110"),
    "weights noise, last step of the run": ("denoising", [], "weight-noise:300"),
    "weights noise, first step": ("denoising", [], "weight-noise:1"),
    "weights noise, contrastive": ("contrastive", [], "weight-noise:155"),
    "weights noise, score": ("score", [], "weight-noise:155"),
    "decoder noise": ("denoising", [], "decoder-noise:105"),
    # A quarter and a third of the run are the first stages of these.
    "weight NaN at a change of stage": ("contrastive", [], "weight-nan:75"),
    "batch NaN after a change of stage": ("score", [], "batch-nan:101"),
    "average 1e30": ("denoising", [], "average-big:110"),
    "second moment infinite": ("denoising", [], "adam-inf:105"),
    "second moment infinite, last of a stretch": ("denoising", [], "adam-inf:110"),
    "code statistics NaN": ("denoising", [], "whitening-nan:105"),
    "code statistics NaN, last step of the run": ("denoising", [], "whitening-nan:300"),
    "chain NaN": ("persistent", [], "chains-nan:200"),
    "chain NaN, last step of the run": ("persistent", [], "chains-nan:300"),
    "calibration NaN": ("denoising", [], "jacobian-nan:250"),
    "weights zero": ("denoising", [], "weight-zero:105"),
    "weights zero, first step": ("denoising", [], "weight-zero:1"),
    "weights a thousandth": ("denoising", [], "weight-small:105"),
    "weights of the other sign": ("denoising", [], "weight-sign:105"),
    "averages zero": ("denoising", [], "average-zero:105"),
    "averages zero, last step of the run": ("denoising", [], "average-zero:300"),
    "second moment NaN": ("denoising", [], "adam-secondnan:105"),
    "second moments too large": ("denoising", [], "adam-huge:105"),
    "second moments zero": ("denoising", [], "adam-zero:105"),
    "batch with a pixel of 1e10": ("denoising", [], "batch-big:105"),
    "batches with a pixel of 1e10 for ever": ("denoising", [], "batch-big:105:0"),
    "batches black for ever": ("denoising", [], "batch-black:105:0"),
    "batches noise for ever": ("denoising", [], "batch-noise:105:0"),
}


def run(out: Path, objective: str, options: list[str], fault: str) -> dict[str, Any]:
    """Train in `out`; return exit status, events, held-out loss (None if the model cannot be loaded) and what was said."""
    shutil.rmtree(out, ignore_errors=True)
    command = ["train", "fashion-mnist", *BASE, *OBJECTIVES[objective], *options, "--out", str(out)]
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as said:
        # A fork has torch imported already, which takes longer than the run.
        child = os.fork()
        if child == 0:
            status = 70
            try:
                os.dup2(said.fileno(), 2)
                if fault:
                    spoil.install(fault)
                status = debm(command)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        words = said.read().strip()
    lines = (out / "metrics.jsonl").read_text().splitlines() if (out / "metrics.jsonl").exists() else []
    records = [json.loads(line) for line in lines]
    loss = next((record["validation_loss"] for record in reversed(records) if "validation_loss" in record), math.nan)
    try:
        DenoisingEBM.from_pretrained(out)
    except (ValueError, OSError):
        loss = math.nan
    return {
        "status": status,
        "events": [record["event"] for record in records if "event" in record],
        "loss": loss if math.isfinite(loss) else None,
        "traceback": "Traceback" in words,
        "said": words.splitlines()[-1] if words else "",
        "seconds": round(time.monotonic() - began, 1),
    }


def judge(row: dict[str, Any], sound: float) -> dict[str, Any]:
    """Return a row with its verdict, from the held-out loss of a sound run."""
    ratio = math.inf if row["loss"] is None else row["loss"] / sound
    verdict = "recovered" if ratio <= 1.3 else "degraded" if ratio <= 2 else "broken"
    silent = verdict != "recovered" and (row["status"] == 0 or not row["events"])
    return row | {"ratio": round(ratio, 3) if math.isfinite(ratio) else None, "verdict": verdict, "silent": silent}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=list(CASES), choices=list(CASES), metavar="CASE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / "rows.json"
    rows: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else {}
    cases = {f"sound, {name}": (name, list[str](), "") for name in OBJECTIVES} | CASES
    wanted = [f"sound, {name}" for name in dict.fromkeys(CASES[case][0] for case in options.only)] + options.only
    for name in wanted:
        if name not in rows:
            objective, more, fault = cases[name]
            folder = options.out / "".join(letter if letter.isalnum() else "-" for letter in name)
            rows[name] = run(folder, objective, more, fault)
            print(f"{name}: {rows[name]}", file=sys.stderr, flush=True)
            kept.write_text(json.dumps(rows, indent=1))

    judged = {name: judge(rows[name], rows[f"sound, {cases[name][0]}"]["loss"]) for name in wanted}
    table = [
        [name, row["status"], len(row["events"]), row["verdict"], "silent" if row["silent"] else "", row["ratio"]]
        for name, row in judged.items()
    ]
    print_table(Table(("case", "exit status", "events", "verdict", "silent", "held-out loss / sound run"), table))
    bad = [name for name, row in judged.items() if row["silent"] or row["loss"] is None or row["traceback"]]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
