"""What tests of the command line share: options of a tiny model, outcomes, tables."""

from __future__ import annotations

import csv
import io

TINY = [
    *("--network.widths", "[16,16,16]", "--network.decoder_widths", "[8,8,8]", "--network.attention", "[]"),
    *("--network.latent_dim", "8", "--network.embedding_dim", "16", "--training.batch_size", "32"),
    *("--training.log_every", "5", "--training.warmup_images", "64", "--training.sample_minutes", "0"),
    *("--sampling.semantic.steps", "6", "--sampling.pixel.steps", "6"),
]
TRAIN = ["--preset", "fashion-mnist", *TINY, "--precision", "fp32"]


class Outcome:
    """Exit status and output of one command."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    @property
    def error(self) -> str:
        """The error, which must be the only line of its kind, at the end, without a traceback."""
        lines = self.err.strip().splitlines()
        assert self.status == 2 and "Traceback" not in self.err, self.err
        assert [line for line in lines if "error:" in line] == lines[-1:], self.err
        assert lines[-1].startswith("debm: error: ")
        return lines[-1].removeprefix("debm: error: ")


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))
