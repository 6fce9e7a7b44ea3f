"""Command lines: the one place where an error becomes a line on stderr and an exit code."""

import contextlib
import errno
import io
import os
import re
import signal
import sys
from collections.abc import Collection, Iterator, Sequence
from typing import NoReturn

import typer

from common.errors import InputError, SadnetError

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended."""
MOST_PIXELS = 2**26
"""That a size on a command line may ask for."""


def application(description: str) -> typer.Typer:
    """A Typer application in the house's style: no shell completion, plain tracebacks for defects of ours."""
    return typer.Typer(
        help=description,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


@contextlib.contextmanager
def needs(what: str, module: str) -> Iterator[None]:
    """Around a script's imports: a package that is missing is one line, not a traceback.

    what: the make target that installs it; module: the script's `__name__`, because an import by other code raises.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if module != "__main__":
            raise
        _fail(f"expected the package {error.name}, found none: run make {what}, then .venv/bin/python")


def parse_size(option: str, text: str) -> tuple[int, int]:
    """(width, height) of an option's "480x320". Raises InputError for anything else, and beyond MOST_PIXELS."""
    found = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text)
    width, height = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 0 < width * height <= MOST_PIXELS:
        raise InputError(f"{option}: expected WIDTHxHEIGHT, such as 480x320, of at most 2^26 pixels, found {text!r}")
    return width, height


def run(app: typer.Typer, *, several: Collection[str] = (), argv: Sequence[str] | None = None) -> NoReturn:
    """Run `app` and exit: 0 when all went well, 2 with one line for a user's error, 130 after Ctrl-C.

    Options named in `several` take any number of values after one flag: `--sigma 30 50` reads as
    `--sigma 30 --sigma 50`, which is all that Typer itself understands.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # a file name may hold what the terminal cannot show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(args=_repeat_flags(arguments, several), standalone_mode=False)
        if sys.stdout:  # None where a supervisor closed it
            sys.stdout.flush()
    except SadnetError as error:
        _fail(str(error))
    except typer.TyperException as error:  # a flag that does not exist, a value of the wrong type
        _fail(f"{error.format_message()} (--help lists the options)")
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:  # the reader went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _fail(f"standard output cannot be written: {error.strerror}")
    if code == INTERRUPTED:  # Typer makes this of a KeyboardInterrupt, without a word
        print("interrupted", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Within it SIGTERM raises KeyboardInterrupt, so that nothing is left half-written; a second one ends the process.

    Not around what waits long in a library, where neither would be noticed.
    """
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:  # the caller has it ignored, or acts on it
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_DFL)
    raise KeyboardInterrupt


def _fail(message: str) -> NoReturn:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


def _repeat_flags(arguments: list[str], several: Collection[str]) -> list[str]:
    out: list[str] = []
    flag: str | None = None  # the multi-value option whose values are being read
    fresh = False
    for position, argument in enumerate(arguments):
        if argument == "--":
            return out + arguments[position:]
        if argument.startswith("--") or argument == "-h":
            name, equals, _ = argument.partition("=")
            flag, fresh = (name, not equals) if name in several else (None, False)
            out.append(argument)
        elif flag and not fresh:
            out += [flag, argument]
        else:
            out.append(argument)
            fresh = False
    return out
