"""What was decided while the images of a run were read: each kind of decision in one line, with its count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from denoising_ebm.datasets.decode import Stored
from denoising_ebm.datasets.levels import ValueRange
from denoising_ebm.literals import Aspect, Frames

_ENLARGED, _CUT, _LEVELS, _FRAMES = "enlarged from ", "central square of ", "16 bits with levels up to ", "first of "
_HINTS = {"transparent: laid over": "; --background says over what", "first 3 of": ""}


def with_fit(stored: Stored, *, seen: float, scale: float, center_crop: int | None) -> Stored:
    """Return how an image was stored, with what is to be said of its shape and levels.

    Args:
        stored: How it was stored.
        seen: Share of its area that is left.
        scale: Pixels before for one of now.
        center_crop: Side of the square that the user had cut out.
    """
    size = f"{stored.width}x{stored.height}"
    notes = list(stored.notes)
    if stored.highest is not None and 0 < stored.highest < 2**15:
        notes.append(f"{_LEVELS}{stored.highest}")
    if center_crop is None and seen < 1:
        notes.append(f"{_CUT}{size}")
    if scale < 1:
        notes.append(f"{_ENLARGED}{size if center_crop is None else f'{center_crop}x{center_crop}'}")
    return stored._replace(seen=seen, scale=scale, notes=tuple(notes))


class Remarks:
    """Counts over the images of a run, as they come."""

    def __init__(self, *, frames: Frames, value_range: ValueRange | None, aspect: Aspect | None) -> None:
        self._frames = frames
        self._range = value_range
        self._aspect = aspect
        self._num = 0
        self._deep = 0
        self._open_ended = 0  # 16-bit files that do not say which level is white
        self._highest = 0
        self._few = [0, 0]  # those of at most 12 bits, and their largest level
        self._several: list[int] = []  # fewest and most frames
        self._num_several = 0
        self._cut: list[float] = [0.0, 1.0]  # sum and least of shares that are seen
        self._num_cut = 0
        self._smallest: tuple[int, int] | None = None
        self._num_enlarged = 0
        self._others: Counter[str] = Counter()

    def add(self, stored: Iterable[Stored | None]) -> None:
        """Count images."""
        for one in stored:
            self._num += 1
            if one is None:
                continue
            self._deep += one.bits > 8
            if one.highest is not None:
                self._open_ended += 1
                self._highest = max(self._highest, one.highest)
                if 0 < one.highest < 2**12:
                    self._few = [self._few[0] + 1, max(self._few[1], one.highest)]
            if one.frames > 1:
                self._num_several += 1
                self._several = [min([one.frames, *self._several]), max([one.frames, *self._several])]
            for text in one.notes:
                self._note(text, one)

    def _note(self, text: str, one: Stored) -> None:
        if text.startswith(_CUT):
            self._num_cut += 1
            self._cut = [self._cut[0] + one.seen, min(self._cut[1], one.seen)]
        elif text.startswith(_ENLARGED):
            self._num_enlarged += 1
            width, height = map(int, text.removeprefix(_ENLARGED).split("x"))
            self._smallest = min((width, height), self._smallest or (width, height), key=lambda size: size[0] * size[1])
        elif not text.startswith((_LEVELS, _FRAMES)):
            self._others[text] += 1

    def lines(self) -> list[str]:
        """Return what the user should know, a line for each kind of decision."""
        lines = []
        if self._range is None and 0 < self._highest < 2**15:
            lines.append(
                f"{self._open_ended:,} of {self._open_ended:,} 16-bit images use levels up to {self._highest} of 65535 "
                f"only; --range {_white(self._highest)} scales them"
            )
        elif self._range is None and self._few[0]:
            # Beside brighter ones they may be dark, or come from another camera.
            num, highest = self._few
            lines.append(
                f"{num:,} of {self._open_ended:,} 16-bit images use levels up to {highest} only, others up to "
                f"{self._highest}: if the former have fewer bits, read them by themselves with --range {_white(highest)}"
            )
        if self._range is not None and self._num and not self._deep:
            lines.append("--range changes nothing: no image has more than 8 bits")
        if self._num_several and self._frames == "first":
            fewest, most = self._several
            frames = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
            lines.append(
                f"{self._of(self._num_several)} hold several frames or pages ({frames}), of which the first is read; "
                "--frames all reads all"
            )
        if self._num_cut:
            mean, least = self._cut[0] / self._num_cut, self._cut[1]
            line = (
                f"{self._of(self._num_cut)} are not square: their central square is looked at, on average {mean:.0%} of "
                f"the area, at least {least:.0%}"
            )
            lines.append(line if self._aspect else f"{line}; --aspect pad or stretch shows all of it")
        if self._smallest is not None:
            width, height = self._smallest
            lines.append(
                f"{self._of(self._num_enlarged)} are smaller than the model's and were enlarged, the smallest from "
                f"{width}x{height}"
            )
        for text, num in self._others.items():
            hint = next((hint for start, hint in _HINTS.items() if text.startswith(start)), "")
            lines.append(f"{self._of(num)}: {text}{hint}")
        return lines

    def _of(self, num: int) -> str:
        return f"{num:,} of {self._num:,} images"


def _white(highest: int) -> int:
    """Return the largest level of as many bits as `highest` needs."""
    return int(2 ** max(8, highest.bit_length()) - 1)
