"""Read damaged files for a while: every one must give a result or an error of one line, in bounded time and memory.

    python benchmarks/reliability/fuzz.py image --minutes 30
    python benchmarks/reliability/fuzz.py all --minutes 2 --seed 1
    python benchmarks/reliability/fuzz.py --again FINDING     # read a kept finding once more, with its traceback

Sound files are made, damaged by `mutations.py` and read in a process of its own. What goes wrong is kept in the folder
`--out`, with one line in `findings.jsonl`: an exception other than ValueError and OSError, a warning, a message of several
lines or with an address of memory, a value that is not finite, more than `--limit-mb` of memory, more than `--limit-s`
seconds, the death of the process. The last line of each reader says how many files were read, and whether memory grew.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

from readers import READERS, Reader

#: A process reads so many files before memory is judged by its growth.
WARM = 300


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader", nargs="?", default="all", choices=["all", *READERS])
    parser.add_argument("--minutes", type=float, default=1.0, help="for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"))
    parser.add_argument("--limit-s", type=float, default=30.0, help="longest time to read a file")
    parser.add_argument("--limit-mb", type=int, default=1500, help="largest memory of the process")
    parser.add_argument("--again", type=Path, help="a kept finding")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.again is not None:
        return _again(args.again)
    if args.child:
        _read_for_ever(args.reader, args.seed, args.out, args.limit_mb)
    names = list(READERS) if args.reader == "all" else [args.reader]
    found = [_watch(name, args) for name in names]
    return int(any(found))


def _watch(name: str, args: argparse.Namespace) -> int:
    """Run children until the time is up; a child that dies or hangs is a finding, and the next one starts behind it."""
    end, start, findings, memory = time.monotonic() + 60 * args.minutes, 0, 0, []
    args.out.mkdir(parents=True, exist_ok=True)
    while time.monotonic() < end:
        options = [name, "--child", "--out", str(args.out), "--limit-mb", str(args.limit_mb)]
        # The place in the stream of damaged files stands in the seed: a child starts behind the one before.
        child = subprocess.Popen(
            [sys.executable, __file__, *options, "--seed", str(args.seed * 10**9 + start)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        ended = ""
        while True:
            # A child says nothing while it reads; a line late by the limit is a hang.
            signal.signal(signal.SIGALRM, _late)
            signal.setitimer(signal.ITIMER_REAL, args.limit_s + 60 * (start == 0))
            try:
                line = child.stdout.readline()
            except TimeoutError:
                ended = f"hang of more than {args.limit_s:g} s"
                break
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            if not line:
                ended = f"death of the process ({child.wait()})"
                break
            said = json.loads(line)
            start, findings = start + 1, findings + said["finding"]
            if said["count"] == WARM:
                memory.append([said["rss"], said["rss"]])
            elif said["count"] > WARM:
                memory[-1][1] = said["rss"]
            if time.monotonic() > end:
                break
        child.kill()
        child.wait()
        if ended:
            findings, start = findings + 1, start + 1
            _keep(args.out, name, args.seed * 10**9 + start, ended, args.out / f"{name}.current")
    growth = max((last - first for first, last in memory), default=0)
    print(f"{name}: {start:,} files, {findings} findings, memory grew by {growth / 2**20:.0f} MB", flush=True)
    return findings


def _late(*_: Any) -> None:
    raise TimeoutError


def _read_for_ever(name: str, seed: int, out: Path, limit_mb: int) -> None:
    """Read damaged files and say a line of JSON for each."""
    warnings.simplefilter("error")
    # What a library allocates beyond this fails there, and the machine lives.
    resource.setrlimit(resource.RLIMIT_DATA, (8 * 2**30, 8 * 2**30))
    reader, known = READERS[name], set[str]()
    with tempfile.TemporaryDirectory() as folder:
        files = reader.prepare(Path(folder))
        sound = {file: file.read_bytes() for file in files}
        for count in range(sys.maxsize):
            rng = random.Random(seed + count)
            file = rng.choice(files)
            damaged = reader.mutate(rng, file, sound)
            file.write_bytes(damaged)
            (out / f"{name}.current").write_bytes(damaged)
            Path("/proc/self/clear_refs").write_text("5")  # so that the peak is that of this file
            reason = _reason(reader, file, rng)
            peak, rss = (_memory(field) for field in ("VmHWM", "VmRSS"))
            if peak > limit_mb * 2**20:
                reason = reason or f"memory of {peak / 2**20:.0f} MB"
            new = bool(reason) and reason.partition(" | ")[0] not in known
            if new:
                known.add(reason.partition(" | ")[0])
                _keep(out, name, seed + count, reason, file)
            file.write_bytes(sound[file])
            if count % 50 == 0:
                gc.collect()
            print(json.dumps({"count": count, "finding": int(new), "rss": rss}), flush=True)


def _reason(reader: Reader, file: Path, rng: random.Random) -> str:
    """Read a file; return what is wrong with how that ended, a kind and behind ` | ` the details."""
    from denoising_ebm.cli.arguments import error_line

    try:
        reader.read(file, rng)
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) or type(error) is ValueError:
            text = error_line(error)
            if len(text) > 800 or " at 0x" in text or not text.isprintable():
                return f"message not of one plain line | {len(text)} characters: {text[:200]!r}"
            return "" if str(file.parent) in text else f"message without the file: {text[:300]}"
        return f"{type(error).__name__} | {error}"
    except BaseException as error:
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if "denoising_ebm" in frame.filename]
        place = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "outside"
        return f"{type(error).__name__} at {place} | {str(error)[:300]}"
    return ""


def _memory(field: str) -> int:
    """Return an entry of the process's status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0


def _keep(out: Path, name: str, seed: int, reason: str, file: Path) -> None:
    """Keep a damaged file beside a line about it."""
    kept = out / f"{name}-{seed}-{file.name}"
    kept.write_bytes(file.read_bytes())
    with open(out / "findings.jsonl", "a", encoding="utf-8") as lines:
        lines.write(json.dumps({"reader": name, "seed": seed, "file": kept.name, "reason": reason}) + "\n")
    print(f"{name}: {reason}: {kept}", file=sys.stderr)


def _again(kept: Path) -> int:
    """Read a finding once more; errors come with their traceback."""
    name, seed, original = kept.name.split("-", 2)
    reader = READERS[name]
    with tempfile.TemporaryDirectory() as folder:
        files = reader.prepare(Path(folder))
        rng = random.Random(int(seed))
        file = rng.choice(files)
        reader.mutate(rng, file, {other: other.read_bytes() for other in files})  # the same draws
        if file.name != original and original != f"{name}.current":
            raise ValueError(f"{kept}: the readers make other files now than when it was found")
        file.write_bytes(kept.read_bytes())
        reader.read(file, rng)
    print("read without an error")
    return 0


if __name__ == "__main__":
    sys.exit(main())
