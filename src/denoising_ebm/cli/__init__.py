"""The command `debm`, the only part of the package that reads argv. Each command is a typed function."""

from __future__ import annotations

import sys
from argparse import ArgumentError
from collections.abc import Sequence

from jsonargparse import ArgumentParser

from denoising_ebm import __version__
from denoising_ebm.cli import (
    demo,
    evaluate,
    fit_detector,
    info,
    inspect,
    reproduce,
    restore,
    sample,
    score,
    train,
    tune,
)
from denoising_ebm.cli.arguments import Command, HelpFormatter, call, command_parser, error_line
from denoising_ebm.cli.streams import drop_unwritten, flushed_stdout, open_streams
from denoising_ebm.utils.text import print_line

COMMANDS: dict[str, Command] = {
    "demo": demo.demo,
    "train": train.train,
    "tune": tune.tune,
    "sample": sample.sample,
    "fit-detector": fit_detector.fit_detector,
    "score": score.score,
    "inspect": inspect.inspect,
    "evaluate": evaluate.evaluate,
    "restore": restore.restore,
    "reproduce": reproduce.reproduce,
    "info": info.info,
}

_DESCRIPTION = """\
Denoising-EBM: one energy-based model of images, trained without labels.
It generates images, scores how normal an image is, shows where it is anomalous, and restores it."""
_EPILOG = """\
Examples:
  debm demo                                       train, sample and score in ten minutes; ends with a report
  debm train fashion-mnist --out runs/fashion     train on the bundled images
  debm tune runs/fashion fashion-mnist            fit the sampler to the model
  debm sample runs/fashion --out samples.png      draw images
  debm fit-detector runs/fashion my-images/       learn what is normal
  debm score runs/fashion new-images/ --fpr 0.05  a score, a p-value and a flag for each image
  debm inspect photos/ --train --out runs/photos  photos of any size: flags, masks, repairs, and a page

Help on a command: debm COMMAND --help"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `debm` and return its exit status: 0, 1 if training diverged, 2 after an error of the user's, 130 after Ctrl-C.

    Args:
        argv: The arguments; those of the process if None.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    open_streams()
    try:
        with flushed_stdout():
            return _run(arguments)
    except KeyboardInterrupt:
        print_line("debm: interrupted")
        return 130
    except BrokenPipeError:
        # Whoever reads our output (`| head`) has enough.
        return 141
    except (ArgumentError, ValueError, OSError) as error:
        print_line(f"debm: error: {error_line(error, COMMANDS.get(''.join(arguments[:1])))}")
        return 2
    except (RuntimeError, MemoryError) as error:
        # By name: torch is not imported for this.
        if type(error).__name__ == "OutOfMemoryError":
            print_line(f"debm: error: out of GPU memory: {error_line(error)}; use a smaller --batch-size")
        elif isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
            print_line("debm: error: out of memory; use a smaller --batch-size")
        else:
            raise
        return 2
    finally:
        drop_unwritten()


def _run(arguments: list[str]) -> int:
    parser = ArgumentParser(
        prog="debm",
        usage="debm COMMAND ... [options]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
        version=__version__,
    )
    commands = parser.add_subcommands(dest="command", required=False, title="commands")
    for name, command in COMMANDS.items():
        help_defaults = train.help_defaults if name == "train" else None
        summary = (command.__doc__ or "").partition("\n")[0].rstrip(".")
        commands.add_subcommand(name, command_parser(name, command, help_defaults), help=summary)
    if not arguments:
        parser.print_help(sys.stderr)
        return 2
    parsed = parser.parse_args(arguments, defaults=False)
    from denoising_ebm.utils.device import keep_freed_memory

    keep_freed_memory()
    return call(COMMANDS[parsed.command], parsed[parsed.command].as_dict())
