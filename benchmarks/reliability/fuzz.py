"""Read damaged files for a while: every one must give a result or an error of one line, in bounded time and memory.

    python benchmarks/reliability/fuzz.py image --minutes 30
    python benchmarks/reliability/fuzz.py all --minutes 2 --seed 1
    python benchmarks/reliability/fuzz.py image --again 1234     # a finding once more, with its traceback

Each reader runs in a process of its own; file i is damaged by the seed `seed * 10^9 + i` alone. A line in
`OUT/findings.jsonl` names what goes wrong: another exception than ValueError and OSError, a warning, a message of several
lines or without the file, a result that is none (another than was written, not finite), more than `--limit-mb` of memory,
more than `--limit-s` seconds, the death of the process. The last line of a reader says how many files it read, and by how
much its memory grew after the first hundreds. The exit status is 1 if there are findings.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from readers import READERS, MisreadError

#: After so many files the memory of a process is taken as what it needs; growth counts from there.
WARM = 300
_STREAM = 10**9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader", nargs="?", default="all", choices=["all", *READERS])
    parser.add_argument("--minutes", type=float, default=1.0, help="for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"))
    parser.add_argument("--limit-s", type=float, default=30.0, help="longest time to read a file")
    parser.add_argument("--limit-mb", type=int, default=1500, help="largest memory of the process")
    parser.add_argument("--again", type=int, help="the seed of a finding")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.again is not None:
        with tempfile.TemporaryDirectory() as folder:
            print(READERS[args.reader](Path(folder))(random.Random(args.again)))
        return 0
    if args.child:
        _read_for_ever(args.reader, args.seed, args.limit_mb)
    args.out.mkdir(parents=True, exist_ok=True)
    names = list(READERS) if args.reader == "all" else [args.reader]
    found = [_watch(name, args) for name in names]
    return int(any(found))


def _watch(name: str, args: argparse.Namespace) -> int:
    """Run children until the time is up; a child that dies or hangs is a finding, and the next one starts behind it."""
    end, seed, findings, growth = time.monotonic() + 60 * args.minutes, args.seed * _STREAM, 0, 0
    endings: Counter[str] = Counter()

    def keep(reason: str) -> None:
        with open(args.out / "findings.jsonl", "a", encoding="utf-8") as lines:
            lines.write(json.dumps({"reader": name, "seed": seed, "reason": reason}) + "\n")
        print(f"{name}, seed {seed}: {reason}", file=sys.stderr, flush=True)

    while time.monotonic() < end:
        command = [sys.executable, __file__, name, "--child", "--seed", str(seed), "--limit-mb", str(args.limit_mb)]
        # What C libraries print of damaged files goes with their words.
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert child.stdout is not None
        signal.signal(signal.SIGALRM, _late)
        # A child says a line for each file, the first when its sound files are made.
        signal.setitimer(signal.ITIMER_REAL, 300)
        warm = 0
        try:
            for line in child.stdout:
                signal.setitimer(signal.ITIMER_REAL, args.limit_s)
                said = json.loads(line)
                if said["count"] >= 0:
                    endings[said["ending"]] += 1
                    if said["reason"]:
                        findings += 1
                        keep(said["reason"])
                    warm = said["rss"] if said["count"] == WARM else warm
                    growth = max(growth, said["rss"] - warm) if warm else growth
                    seed += 1
                if time.monotonic() > end:
                    break
            else:
                findings += 1
                keep(f"death of the process ({child.wait()})")
                seed += 1
        except TimeoutError:
            findings += 1
            keep(f"hang of more than {args.limit_s:g} s")
            seed += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            child.kill()
            child.wait()
    told = ", ".join(f"{ending} {count:,}" for ending, count in sorted(endings.items()))
    total = sum(endings.values())
    print(f"{name}: {total:,} files ({told}), {findings} findings, memory grew by {growth / 2**20:.0f} MB", flush=True)
    return findings


def _late(*_: Any) -> None:
    raise TimeoutError


def _read_for_ever(name: str, seed: int, limit_mb: int) -> None:
    """Damage and read files, and say a line of JSON for each."""
    warnings.simplefilter("error")
    # What a library allocates beyond this fails there, and the machine lives.
    resource.setrlimit(resource.RLIMIT_DATA, (8 * 2**30, 8 * 2**30))
    parent, known = os.getppid(), set[str]()
    with tempfile.TemporaryDirectory() as folder:
        once = READERS[name](Path(folder))
        print(json.dumps({"count": -1}), flush=True)
        for count in range(sys.maxsize):
            Path("/proc/self/clear_refs").write_text("5")  # so that the peak is that of this file
            ending, reason = "", ""
            try:
                ending = str(once(random.Random(seed + count)))
            except MisreadError as error:
                ending, reason = "misread", str(error)[-1500:]
            except BaseException:
                ending, reason = "misread", traceback.format_exc()[-1500:]
            peak, rss = (_memory(field) for field in ("VmHWM", "VmRSS"))
            if peak > limit_mb * 2**20:
                reason = reason or f"memory of {peak / 2**20:.0f} MB"
            # One finding of a kind is enough.
            kind = reason[-120:]
            reason, known = ("" if kind in known else reason), known | {kind}
            if count % 50 == 0:
                gc.collect()
            print(json.dumps({"count": count, "ending": ending, "reason": reason, "rss": rss}), flush=True)
            if os.getppid() != parent:
                sys.exit()


def _memory(field: str) -> int:
    """Return an entry of the process's status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    sys.exit(main())
