"""What a run says while it trains: metrics.jsonl, the progress bar, TensorBoard if asked."""

from __future__ import annotations

import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from denoising_ebm.training.checkpoint import Clock
from denoising_ebm.utils.io import errors_named, sync_folder, write_atomically
from denoising_ebm.utils.text import Stderr, counted, print_line, stderr_is_terminal

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
        self._console = Console(file=cast(IO[str], Stderr()))
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
        if not self._quiet and stderr_is_terminal():
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
        self._write_scalars(clock, means)
        shown = " ".join(_show(name, means[name]) for name in _SHOWN if name in means)
        line = f"{stage} {clock.images_seen:,} images  {shown}"
        if self._bar is not None:
            self._bar.update(self._task, completed=progress, description=stage, figures=shown)
        elif not self._quiet and time.monotonic() - self._last_line > 20:
            self._last_line = time.monotonic()
            done, minutes = progress - self._progress_at_start, (time.monotonic() - self._started) / 60
            left = (1 - progress) / done * minutes if done > 0 else math.inf
            print_line(f"{line}  {left:.1f} min left")

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

    def sync(self) -> None:
        """Flush metrics.jsonl to disk: a state must not outlast the lines before it."""
        if self._active and self._path.is_file():
            with open(self._path, "rb") as file:
                os.fsync(file.fileno())
            sync_folder(self._path.parent)

    def _append(self, record: dict[str, Any]) -> None:
        with errors_named(self._path), open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def _write_scalars(self, clock: Clock, means: dict[str, float]) -> None:
        if self._writer is None:
            return
        try:
            for name, value in means.items():
                self._writer.add_scalar(name, value, clock.images_seen)
        except Exception as error:  # TensorBoard's own, of a thread that writes: whatever it is, training goes on
            self._writer = None
            self.event(clock, f"TensorBoard events end here: {error}")

    def close(self) -> None:
        """Remove the bar and close files."""
        if self._bar is not None:
            self._bar.stop()
        if self._writer is not None:
            try:
                self._writer.close()
            except Exception as error:  # as above
                print_line(f"debm: TensorBoard events are incomplete: {error}")


_SHOWN = ("loss", "loss_denoising", "loss_decoder", "energy_data", "energy_gap", "images_per_second")


def _show(name: str, value: float) -> str:
    if name == "images_per_second":
        return f"{value:.0f} images/s"
    return f"{name.removeprefix('loss_')} {value:.4g}"


def read_metrics(folder: Path, log: Callable[[str], object] = lambda message: None) -> list[dict[str, Any]]:
    """Return the means over steps in a run's metrics.jsonl, without its events and held-out losses.

    Args:
        folder: Of the run.
        log: Told how many lines are damaged, and left out.
    """
    path = folder / METRICS_FILE
    records = [_record(line) for line in path.read_bytes().split(b"\n") if line.strip()]
    if damaged := records.count(None):
        log(f"{path}: {counted(damaged, 'damaged line')} left out")
    return [record for record in records if record is not None and "stage" in record]


def trim_metrics(folder: Path, step: int) -> int:
    """Drop the lines after `step`, which a run wrote after its last save and will write again, and damaged ones.

    Returns:
        How many lines were damaged, but for a last one that was cut off by a kill.
    """
    path = folder / METRICS_FILE
    if not path.is_file():
        return 0
    content = path.read_bytes()
    *lines, rest = content.split(b"\n")
    records = [_record(line) for line in lines]
    kept = [line for line, record in zip(lines, records, strict=True) if record is not None and record["step"] <= step]
    if rest or len(kept) < len(lines):
        new = b"".join(line + b"\n" for line in kept)
        write_atomically(path, lambda temporary: temporary.write_bytes(new))
    return records.count(None)


def _record(line: bytes) -> dict[str, Any] | None:
    """Return what a line of metrics.jsonl says; None if it is damaged."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        return None
    return record
