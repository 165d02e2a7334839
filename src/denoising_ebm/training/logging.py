"""What a run says while it trains: metrics.jsonl, the progress bar, TensorBoard if asked."""

from __future__ import annotations

import json
import math
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from denoising_ebm.training.checkpoint import Clock
from denoising_ebm.utils.io import write_text_atomically

METRICS_FILE = "metrics.jsonl"


class Monitor:
    """Averages the figures between two log lines and writes them out (on the main process only).

    Args:
        folder: The run folder.
        active: Whether this process writes.
        tensorboard: Also write TensorBoard events.
        quiet: No progress on stderr.
    """

    def __init__(self, folder: Path, *, active: bool, tensorboard: bool = False, quiet: bool = False) -> None:
        self._path = folder / METRICS_FILE
        self._active = active
        self._quiet = quiet or not active
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = defaultdict(int)
        self._images_since = 0
        self._since = time.monotonic()
        self._last_line = 0.0
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._writer: Any = None
        if active and tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise ValueError("--tensorboard needs its extra: pip install 'denoising-ebm[tensorboard]'") from None
            self._writer = SummaryWriter(str(folder / "tensorboard"))

    def start(self, progress: float) -> None:
        """Show the progress bar (on a terminal) and start the clocks, at `progress` (0..1) of the budget."""
        self._since, self._images_since = time.monotonic(), 0
        # The time left is judged by this process alone: the ones before may have run on another machine, or beside others.
        self._started, self._progress_at_start = self._since, progress
        if not self._quiet and sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
            )
            self._bar = Progress(*columns, console=self._console)
            self._bar.start()
            self._task = self._bar.add_task("training", total=1.0, figures="")

    def add(self, figures: dict[str, Tensor], images: int) -> None:
        """Take in the figures of one step, without waiting for the device."""
        self._images_since += images
        for name, value in figures.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] += 1

    def pause(self) -> None:
        """Forget the time and images so far: what comes between (sampling, saving) is not training."""
        self._since, self._images_since = time.monotonic(), 0

    def collect(self) -> dict[str, float]:
        """Return the means since the last call, and images/s; and start over."""
        means = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
        seconds = time.monotonic() - self._since
        if self._images_since and seconds > 0:
            means["images_per_second"] = self._images_since / seconds
        self._sums, self._counts = {}, defaultdict(int)
        self.pause()
        return means

    def write(self, clock: Clock, stage: str, means: dict[str, float], progress: float, rate: float) -> None:
        """Append a line to metrics.jsonl and refresh what the user sees."""
        if not self._active:
            return
        record: dict[str, Any] = {
            "images_seen": clock.images_seen,
            "step": clock.step,
            "minutes": round(clock.seconds / 60, 4),
            "stage": stage,
            "learning_rate": rate,
            **{name: float(f"{value:.6g}") for name, value in means.items()},
        }
        self._append(record)
        if self._writer is not None:
            for name, value in means.items():
                self._writer.add_scalar(name, value, clock.images_seen)
        shown = " ".join(_show(name, means[name]) for name in _SHOWN if name in means)
        line = f"{stage} {clock.images_seen:,} images  {shown}"
        if self._bar is not None:
            self._bar.update(self._task, completed=progress, description=stage, figures=shown)
        elif not self._quiet and time.monotonic() - self._last_line > 20:
            self._last_line = time.monotonic()
            done, minutes = progress - self._progress_at_start, (time.monotonic() - self._started) / 60
            left = (1 - progress) / done * minutes if done > 0 else math.inf
            print(f"{line}  {left:.1f} min left", file=sys.stderr, flush=True)

    def record(self, clock: Clock, figures: dict[str, float]) -> None:
        """Append figures that are no means over steps."""
        if self._active:
            minutes = round(clock.seconds / 60, 4)
            self._append({"images_seen": clock.images_seen, "step": clock.step, "minutes": minutes, **figures})

    def event(self, clock: Clock, message: str) -> None:
        """Record something unusual and show it."""
        if not self._active:
            return
        self._append({"images_seen": clock.images_seen, "step": clock.step, "event": message})
        if not self._quiet:
            self._console.print(message, highlight=False, markup=False)

    def _append(self, record: dict[str, Any]) -> None:
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def close(self) -> None:
        """Remove the bar and close files."""
        if self._bar is not None:
            self._bar.stop()
        if self._writer is not None:
            self._writer.close()


_SHOWN = ("loss", "loss_denoising", "loss_decoder", "energy_data", "energy_gap", "images_per_second")


def _show(name: str, value: float) -> str:
    if name == "images_per_second":
        return f"{value:.0f} images/s"
    return f"{name.removeprefix('loss_')} {value:.4g}"


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the means over steps in a run's metrics.jsonl, without its events and held-out losses."""
    with open(folder / METRICS_FILE, encoding="utf-8") as file:
        records = [json.loads(line) for line in file if line.strip()]
    return [record for record in records if "stage" in record]


def trim_metrics(folder: Path, step: int) -> None:
    """Drop the lines after `step`: those that a run wrote after its last save, and will write again."""
    path = folder / METRICS_FILE
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    if len(kept) < len(lines):
        write_text_atomically(path, "".join(kept))


def is_healthy(means: dict[str, float], gap_bound: float) -> bool:
    """Say whether a stretch of training went well: all finite, energy gaps within the bound."""
    values = [value for name, value in means.items() if name != "images_per_second"]
    gaps = [abs(means[name]) for name in ("energy_gap", "latent_energy_gap") if name in means]
    return all(math.isfinite(value) for value in values) and all(gap <= gap_bound for gap in gaps)
