"""What a run is at one moment: save it, resume it, roll it back."""

from __future__ import annotations

import copy
import errno
import hashlib
import io
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from denoising_ebm.config import Config, from_dict, to_dict
from denoising_ebm.datasets.preprocessing import Preprocessing
from denoising_ebm.migration import migrate_state
from denoising_ebm.model import DenoisingEBM
from denoising_ebm.training.health import Record
from denoising_ebm.training.objectives import Objective
from denoising_ebm.training.state_schema import check_state, find_archive_problem
from denoising_ebm.utils.io import read_regular_file, write_atomically
from denoising_ebm.utils.text import reason_of

STATE_FILE, PREVIOUS_STATE_FILE = "state.pt", "state-previous.pt"
#: Fields a resumed run may change: they do not alter what a step does, but for the learning rate, which follows the budget,
#: and contrastive chains, whose noise is drawn for each micro-batch.
FREE_FIELDS = ("max_images", "max_minutes", "log_every", "sample_minutes", "micro_batch_size", "compile")

_SEAL = b"sha256:"
_HASH_SIZE = 2 * hashlib.sha256().digest_size
_SEAL_SIZE = len(_SEAL) + _HASH_SIZE


@dataclass
class Clock:
    """Where a run stands."""

    step: int = 0  #: Optimizer steps done.
    images_seen: int = 0  #: Training images seen, over all processes.
    seconds: float = 0.0  #: Seconds spent training, over all sessions of the run.
    stage: int = 0  #: Index of the current training stage.
    stage_step: int = 0  #: Steps done in this training stage.
    rollbacks: int = 0  #: Of runs of before; now in `Record`.
    rate_scale: float = 1.0  #: Factor on the learning rate, lowered by divergence.
    diverged: int = 0  #: Training stages that ended by divergence.


@dataclass
class RunState:
    """Everything that changes while a run trains."""

    model: DenoisingEBM
    average: AveragedModel
    optimizer: Optimizer
    objective: Objective
    clock: Clock = field(default_factory=Clock)
    record: Record = field(default_factory=Record)
    #: `images seen` and `minutes` of the model the run started from; empty if it started from scratch.
    past: dict[str, Any] = field(default_factory=dict)
    #: How the training images were prepared; None if that is not known.
    preprocessing: Preprocessing | None = None
    #: Step of the last state in the run folder.
    saved_step: int | None = None

    def capture(self) -> dict[str, Any]:
        """Return all of it as tensors and numbers, sharing memory with the run."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "objective": self.objective.state_dict(),
            "clock": vars(self.clock),
            "record": vars(self.record),
            "past": self.past,
            "preprocessing": None if self.preprocessing is None else to_dict(self.preprocessing),
        }

    def snapshot(self) -> dict[str, Any]:
        """Return a copy to roll back to."""
        return copy.deepcopy(self.capture())

    def restore(self, saved: dict[str, Any], *, clock: bool) -> None:
        """Return to a captured state; with `clock` to its place in the run too."""
        saved = copy.deepcopy(saved)
        self.model.load_state_dict(saved["model"])
        self.average.load_state_dict(saved["average"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.objective.load_state_dict(saved["objective"])
        if clock:
            self.clock = Clock(**saved["clock"])
            # Runs of before have none.
            self.record = Record(**saved.get("record", {}))
            self.past = saved.get("past", {})
            if (stored := saved.get("preprocessing")) is not None:
                self.preprocessing = from_dict(Preprocessing, stored, where=f"{STATE_FILE}: preprocessing")
            self.saved_step = self.clock.step


def save_state(state: RunState, config: Config, folder: Path, images: str, hardware: Mapping[str, str]) -> None:
    """Write `state.pt`, atomically, and keep the one before as `state-previous.pt` unless that is damaged.

    A crash or a full disk leaves the old ones.

    Args:
        state: Of the run.
        config: Of the run.
        folder: Of the run.
        images: A hash of the training images.
        hardware: `device` (its type) and `precision`, on which random numbers and rounding depend.
    """
    values = {**state.capture(), "config": to_dict(config), "images": images, "hardware": hardware}
    # Through memory: torch's own writer reports a full disk as a RuntimeError without a file.
    buffer = io.BytesIO()
    torch.save(values, buffer)
    _seal(buffer)
    path, previous = folder / STATE_FILE, folder / PREVIOUS_STATE_FILE
    # Of the same step there may be one already: the one before would be lost for nothing.
    keep = state.clock.step != state.saved_step and path.is_file() and not find_damage(path.read_bytes())
    write_atomically(
        path, lambda temporary: temporary.write_bytes(buffer.getbuffer()), previous=previous if keep else None
    )
    state.saved_step = state.clock.step


def read_state(
    config: Config, folder: Path, images: str, log: Callable[[str], object] = lambda message: None
) -> dict[str, Any]:
    """Read the last good state and check that it belongs to `config` and to the training images whose hash is `images`.

    Args:
        config: Of the run.
        folder: Of the run.
        images: A hash of the training images.
        log: Told of a damaged state, in whose place the one before it is read.

    Raises:
        FileNotFoundError: If the folder holds no state.
        ValueError: If all states are damaged or the run has other settings or images.
    """
    path, saved = _last_good(folder, log)
    # Through a Config, so that fields younger than the file have their defaults.
    _compare(to_dict(from_dict(Config, saved["config"])), to_dict(config), "", path)
    # Batches and the images that are held out are drawn by number: of other images they would be others.
    if saved.get("images", images) != images:
        raise ValueError(f"{path}: the run was on other images; resume with the same data and options for images")
    return saved


def read_config(folder: Path) -> dict[str, Any]:
    """Return the settings that the last good state of a run was saved with.

    Raises:
        FileNotFoundError: If the folder holds no state.
        ValueError: If all states are damaged.
    """
    values: dict[str, Any] = _last_good(folder)[1]["config"]
    return values


def read_run_preprocessing(folder: Path) -> Preprocessing | None:
    """Return how the images of a run were prepared; None if that is not known.

    Raises:
        FileNotFoundError: If the folder holds no state.
        ValueError: If all states are damaged.
    """
    path, saved = _last_good(folder)
    stored = saved.get("preprocessing")
    return None if stored is None else from_dict(Preprocessing, stored, where=f"{path}: preprocessing")


def has_state(folder: Path) -> bool:
    """Say whether a folder holds a state to resume from."""
    for name in (STATE_FILE, PREVIOUS_STATE_FILE):
        path = folder / name
        if path.is_file() and not find_damage(path.read_bytes()):
            return True
    return False


def _last_good(folder: Path, log: Callable[[str], object] = lambda message: None) -> tuple[Path, dict[str, Any]]:
    """Return the file and the content of the last state that is not damaged; `log` is told of a damaged one."""
    damage: list[str] = []
    for name in (STATE_FILE, PREVIOUS_STATE_FILE):
        path = folder / name
        if not path.exists():
            continue
        try:
            saved = _load(path)
        except ValueError as error:
            damage.append(str(error))
            continue
        if damage:
            log(f"{damage[0]}; going on from {name}, saved at step {saved.get('clock', {}).get('step', '?')}")
        return path, saved
    if damage:
        raise ValueError("; ".join(damage))
    raise FileNotFoundError(f"{folder / STATE_FILE}: nothing to resume")


def _load(path: Path) -> dict[str, Any]:
    """Return what a state file holds, in today's form and checked.

    Raises:
        ValueError: If it is damaged.
    """
    try:
        content = read_regular_file(path)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise ValueError(f"{path}: not a readable state ({reason_of(error)})") from None
    if damage := find_damage(content):
        raise ValueError(f"{path}: not a readable state ({damage})")
    if problem := find_archive_problem(content):
        raise ValueError(f"{path}: not a readable state ({problem})")
    try:
        saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for what is not its own
        raise ValueError(f"{path}: not a readable state ({reason_of(error)})") from None
    if not isinstance(saved, dict) or "config" not in saved:
        raise ValueError(f"{path}: not a readable state ('config' is missing)")
    try:
        saved = migrate_state(saved)
    except ValueError as error:
        raise ValueError(f"{path}: not a readable state ({error})") from None
    check_state(saved, path, Clock)
    return saved


# -- hashes -------------------------------------------------------------------------------------------------------------

# A file of torch is a ZIP archive, which may end in a comment: the hash stands there, and torch reads the file as before.
_NO_COMMENT, _END = bytes(2), b"PK\x05\x06"
_END_SIZE = 22


def _seal(file: io.BytesIO) -> None:
    """Give a file of torch its own hash."""
    file.seek(-len(_NO_COMMENT), io.SEEK_END)
    file.write(_SEAL_SIZE.to_bytes(len(_NO_COMMENT), "little"))
    digest = hashlib.sha256(file.getbuffer()).hexdigest()
    file.write(_SEAL + digest.encode())


def find_damage(content: bytes) -> str:
    """Return what is wrong with the bytes of a state file; empty if nothing is.

    Files of before have no hash but checksums, which leave out some bytes of the archive's own.
    """
    if content[-_SEAL_SIZE:].startswith(_SEAL):
        body = memoryview(content)[:-_SEAL_SIZE]
        whole = hashlib.sha256(body).hexdigest().encode() == content[-_HASH_SIZE:]
        return "" if whole else "damaged: its bytes do not have the hash that it was saved with"
    if content[-_END_SIZE:].startswith(_END) and content.endswith(_NO_COMMENT):
        if problem := find_archive_problem(content):
            return f"damaged: {problem}"
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                broken = archive.testzip()
        except Exception as error:  # zipfile raises many kinds for a damaged archive
            return f"damaged: {reason_of(error)}"
        return "" if broken is None else f"damaged: {broken} does not have its checksum"
    return "damaged or cut off: its end is missing"


def _compare(old: dict[str, Any], new: dict[str, Any], prefix: str, path: Path) -> None:
    for name, value in new.items():
        if isinstance(value, dict):
            _compare(old.get(name, {}), value, f"{prefix}{name}.", path)
        elif old.get(name) != value and not (prefix == "training." and name in FREE_FIELDS):
            raise ValueError(
                f"{path}: the run has {prefix}{name} = {old.get(name)}, not {value}; resume keeps settings"
            )
