"""The command `debm`: the only part of the package that reads argv. Each command is a file with `add` and `run`."""

from __future__ import annotations

import errno
import os
import re
import sys
from argparse import ArgumentError
from collections.abc import Sequence

from jsonargparse import ArgumentParser

from denoising_ebm.cli import demo, evaluate, fit_detector, info, reproduce, restore, sample, score, train, tune
from denoising_ebm.cli.common import HelpFormatter
from denoising_ebm.utils.memory import keep_freed_memory

COMMANDS = {
    "demo": demo,
    "train": train,
    "tune": tune,
    "sample": sample,
    "fit-detector": fit_detector,
    "score": score,
    "evaluate": evaluate,
    "restore": restore,
    "reproduce": reproduce,
    "info": info,
}

DESCRIPTION = """\
Denoising-EBM: one energy-based model of images, trained without labels.
It generates images, scores how normal an image is, shows where it is odd, and restores it."""
EPILOG = """\
Examples:
  debm demo                                       train, sample and score in ten minutes; ends with a report
  debm train fashion-mnist --out runs/fashion     train on the bundled images
  debm tune runs/fashion fashion-mnist            fit the sampler to the model
  debm sample runs/fashion --out samples.png      draw images
  debm fit-detector runs/fashion my-images/       learn what is normal
  debm score runs/fashion new-images/ --fpr 0.05  a score, a p-value and a flag for each image

Help on a command: debm COMMAND --help"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `debm` and return its exit status: 0, 1 if training diverged, 2 after an error of the user's, 130 after Ctrl-C.

    Args:
        argv: The arguments; those of the process if None.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _run(arguments)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("debm: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever reads our output (`| head`) has enough; Python would complain again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ArgumentError, ValueError, OSError) as error:
        print(f"debm: error: {_one_line(error)}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        # By name: torch is not imported for this.
        if type(error).__name__ != "OutOfMemoryError":
            raise
        print(f"debm: error: out of GPU memory: {_one_line(error)}; take smaller batches", file=sys.stderr)
        return 2


def _run(arguments: list[str]) -> int:
    parser = ArgumentParser(
        prog="debm",
        usage="debm COMMAND ... [options]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=HelpFormatter,
        exit_on_error=False,
        version=_version() if "--version" in arguments[:1] else None,
    )
    commands = parser.add_subcommands(dest="command", required=False, title="commands")
    for name, module in COMMANDS.items():
        command = ArgumentParser(
            usage=module.USAGE,
            description=module.DESCRIPTION,
            epilog=module.EPILOG,
            formatter_class=HelpFormatter,
            exit_on_error=False,
            print_config=None,  # `debm train` has its own
        )
        module.add(command, arguments)
        commands.add_subcommand(name, command, help=module.HELP)
    if not arguments:
        parser.print_help(sys.stderr)
        return 2
    args = parser.parse_args(arguments)
    keep_freed_memory()
    status: int = COMMANDS[args.command].run(args[args.command])
    return status


def _version() -> str:
    from denoising_ebm import __version__

    return __version__


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        # The platform's own words are capitalised, ours are not.
        reason = error.strerror[0].lower() + error.strerror[1:]
        if error.errno == errno.ENOSPC:
            reason = "no space left on device"
        return f"{error.filename}: {reason}" if error.filename else reason
    text = " ".join(str(error).split()) or type(error).__name__
    # jsonargparse's words for a value of the wrong type, in ours.
    text = re.sub(r"^Parser key \"([\w.]+)\": ", r"--\1: ", text)
    text = re.sub(r"Expected an? (?:typing\.)?Literal\[(.*?)\]\. Got value: ", r"expected one of \1, got ", text)
    return re.sub(r"Expected an? <class '(\w+)'>\. Got value: ", r"expected \1, got ", text)
