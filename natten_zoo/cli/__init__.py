"""Neighborhood attention models for MLX: classify images, look at models, convert and train them.

Every verb is a module of this package: its docstring is the help, `configure` adds its
arguments, `run` does the work and returns the exit status. They import what is heavy only when
they run, so that help is quick.
"""

from __future__ import annotations

import argparse
import os
import pkgutil
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any, cast

from ..version import __version__
from ._text import options_of, typed

_EPILOG = """\
Try it offline, with the small model and the images in the package:
  natten-zoo demo

Exit status: 0 everything was done, 1 some of it failed, 2 nothing could be done.
`natten-zoo VERB --help` says more.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `natten-zoo` with the given arguments, the process's own by default."""
    _open_standard_streams()
    arguments = [*(sys.argv[1:] if argv is None else argv)]
    verb, options = (arguments[0] if arguments else ""), {}
    try:
        parser = _parser(arguments[:1])
        options = options_of(parser, verb)
        args = parser.parse_args(arguments)
        with warnings.catch_warnings():
            _say_warnings(verb)
            return args.run(args)
    except KeyboardInterrupt:
        print(f"natten-zoo {verb}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe, such as `head`, has had enough: no error, nothing left to flush.
        sys.stdout = None
        return 0
    # A RuntimeError is MLX's: a full disk, too little memory, a forced backend that cannot run.
    except (ValueError, OSError, ImportError, MemoryError, RuntimeError) as error:
        print(f"natten-zoo {verb}: {typed(error, options)}{_hint(error)}", file=sys.stderr)
        return 2


def _say_warnings(verb: str) -> None:
    """Print what the library says of data as a line; leave out what nobody here reads."""
    # Pillow warns of large images and of metadata.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    show: Any = warnings.showwarning

    def show_line(message: Any, category: Any, *place: Any, **more: Any) -> None:
        if issubclass(category, UserWarning):
            print(f"natten-zoo {verb}: {message}", file=sys.stderr)
        else:
            show(message, category, *place, **more)

    warnings.showwarning = cast(Any, show_line)


def _open_standard_streams() -> None:
    """Where one is closed, the next file would be opened in its place, and MLX refuses number 0."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the first number that is free


def _hint(error: Exception) -> str:
    """What to do about an error whose own words, which are C++'s, do not tell."""
    if isinstance(error, RuntimeError) and str(error).startswith("filesystem error"):
        folder = os.environ.get("TMPDIR", "/tmp")
        return (
            f". MLX compiles what it fuses in the temporary folder, {folder}: set TMPDIR to one "
            "that can be written"
        )
    return ""


def verbs() -> dict[str, str]:
    """Every verb as it is typed, and its module's name."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return {name.replace("_", "-"): name for name in names if not name.startswith("_")}


def _parser(wanted: Sequence[str]) -> argparse.ArgumentParser:
    """The command's parser; only the wanted verb is imported, all of them if it is not known."""
    parser = argparse.ArgumentParser(
        prog="natten-zoo",
        description=(__doc__ or "").partition("\n")[0],
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"natten-zoo {__version__}")
    known = verbs()
    chosen = {verb: known[verb] for verb in wanted if verb in known} or known
    choices = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, name in chosen.items():
        module = import_module(f".{name}", __name__)
        help_text = (module.__doc__ or "").strip()
        verb_parser = choices.add_parser(
            verb,
            help=help_text.partition("\n")[0].replace("%", "%%"),
            description=help_text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.configure(verb_parser)
        verb_parser.set_defaults(run=module.run)
    return parser
