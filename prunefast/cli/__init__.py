"""The command line: one file a command, found by name in `COMMANDS` and imported only when it is called."""

import argparse
import contextlib
import importlib
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

import prunefast
from prunefast.distributed import losses_named, was_heard, world
from prunefast.errors import InputError, PrunefastError
from prunefast.files import explain_os_error
from prunefast.together import lead
from prunefast.waiting import wait_briefly

# command -> one line of help, in the order of the work
COMMANDS = {
    "run": "the whole chain: embed, score, select, train, sample, evaluate, report",
    "embed": "open a data set and compute its features",
    "score": "score every image from the features",
    "dedup": "find duplicates: the same bytes, the same look, or the same features",
    "select": "keep a coreset under a budget",
    "encode-latents": "encode a data set with a local autoencoder, once, to train on its latents",
    "reweight": "find class weights: a proxy against a frozen reference",
    "train": "train a diffusion model on exactly the coreset",
    "ema": "take another moving average of a trained model: any width, after training",
    "tdc": "prune and fine-tune one network a timestep group of a trained one",
    "sample": "sample images from a checkpoint",
    "evaluate": "compare samples with a reference: Frechet distance, KID, precision, recall, memorisation",
    "export": "write the coreset in the form another tool reads",
    "export-model": "write a trained model as a diffusers folder",
    "import-model": "read a diffusers folder as a checkpoint",
    "report": "write the HTML report of a run",
    "demo": "the whole chain on scikit-learn's digits, four ways side by side",
    "doctor": "show which backends are live, and why the others are not",
}

# Under torchrun all processes work on these. Of every other step one process does the work and writes; the others help
# where it goes through the images (`prunefast.together`). What is written is the same for any number of them.
BY_ALL = ("train", "reweight", "tdc")
CHAINS = ("run", "demo")  # of both kinds

INTERRUPTED = 130  # what a shell reports for a process ended by Ctrl-C


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {' '.join(message.split())} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(2)


def build_parser(command: str | None = None) -> Parser:
    """The parser of all commands; the arguments of `command` alone are filled in (the others need not be imported)."""
    parser = Parser(
        prog="prunefast",
        description="Data-efficient training of diffusion models: keep the images that matter, train on exactly those.",
    )
    parser.add_argument("--version", action="version", version=f"prunefast {prunefast.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for name, help_line in COMMANDS.items():
        sub = commands.add_parser(name, help=help_line, description=help_line[0].upper() + help_line[1:] + ".")
        if name == command:
            module = importlib.import_module(f"prunefast.cli.{name.replace('-', '_')}")
            module.add_arguments(sub)
            sub.add_argument("--json", action="store_true", help="end with one machine-readable line")
            sub.add_argument("--quiet", action="store_true", help="no progress")
            sub.add_argument("--debug", action="store_true", help="show tracebacks")
            # arguments of the library that have other names here
            sub.set_defaults(call=module.main, parser=sub, renamed=getattr(module, "RENAMED", {}))
    return parser


def _as_typed(line: str, options: argparse.Namespace) -> str:
    """An error of the library, which begins with the name of its argument, by the flag that was typed for it."""
    name = re.match(r"\w+(?=:| is | are | must | ')", line)
    if name is None:
        return line
    destination = options.renamed.get(name[0], name[0])
    for action in options.parser._actions:
        typed = action.dest == destination and getattr(options, destination, action.default) != action.default
        if typed and action.option_strings:
            return action.option_strings[-1] + line[name.end() :]
    return line


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _stopped(error: KeyboardInterrupt) -> str:
    return _one_line(error) if str(error) else "interrupted; the same command goes on"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (0; 2 for bad input; 1 for a failing machine; 130 interrupted)."""
    wait_briefly()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command = next((word for word in arguments if not word.startswith("-")), None)
    options, unknown = build_parser(command).parse_known_args(arguments)
    if unknown:
        options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    with _termination_as_interrupt():
        return _call(options)


@contextlib.contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does, so that it tidies up; training has a handler of its own inside."""

    def interrupt(number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt(f"{signal.Signals(number).name}: interrupted; the same command goes on")

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield  # signals reach the main thread only, and whoever set a handler wants that one
        return
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _interrupt_behind(error: BaseException | None) -> KeyboardInterrupt | None:
    """The Ctrl-C that `error` wraps, if one does: imports that are interrupted may end in any other error."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error


def _share(options: argparse.Namespace) -> int:
    """One command by all processes of torchrun; rank 0 speaks."""
    if not world().is_main:
        options.quiet, options.json = True, False
    if options.command in BY_ALL:
        with losses_named():
            return options.call(options) or 0
    if options.command in CHAINS:
        raise InputError("torchrun: takes one step at a time (embed, select, train, ...); start this without it")
    return lead(lambda: options.call(options) or 0)


def _call(options: argparse.Namespace) -> int:
    warnings.showwarning = lambda message, *_args, **_kwargs: print(f"note: {_one_line(message)}", file=sys.stderr)
    warnings.simplefilter("default", UserWarning)
    try:
        return _share(options) if world().size > 1 else options.call(options) or 0
    except PrunefastError as error:
        failure: BaseException = error
        status, line = error.exit_status, f"error: {_as_typed(_one_line(error), options)}"
    except KeyboardInterrupt as error:
        failure = error
        status, line = INTERRUPTED, _stopped(error)
    except BrokenPipeError:
        # the reader of our output left (| head); Python would complain once more when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        failure = explain_os_error(error, Path(error.filename or "the disk"))
        status, line = getattr(failure, "exit_status", 1), f"error: {_one_line(failure)}"
    except MemoryError as error:
        failure, status, line = error, 1, "error: out of memory; take a smaller --batch-size or --image-size"
    except Exception as error:  # a defect of ours: one line all the same
        failure, status = error, 1
        line = f"error: internal error: {type(error).__name__}: {_one_line(error)} (--debug shows the traceback)"
        if (interrupt := _interrupt_behind(error)) is not None:
            status, line = INTERRUPTED, _stopped(interrupt)
    if was_heard(failure) or (status == INTERRUPTED and not world().is_main):
        return status  # another process says it
    if options.debug:
        traceback.print_exception(failure)
    print(f"prunefast {options.command}: {line}", file=sys.stderr)
    return status
