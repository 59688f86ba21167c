"""A recipe on the command line: a flag for each of its options."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any, get_args, get_type_hints

from .config import CHOICES, Recipe

# Options that have a short form, the same as other verbs'.
SHORT = {"model": "-m", "out": "-o"}


def add_arguments(
    parser: argparse.ArgumentParser, skip: tuple[str, ...] = (), defaults: Recipe | None = None
) -> None:
    """Give `parser` one flag per recipe field; flags not typed stay out of the result.

    Args:
        parser: Where they are added.
        skip: Fields without a flag.
        defaults: What the help says of flags that are not typed.
    """
    kinds = get_type_hints(Recipe)
    for item in dataclasses.fields(Recipe):
        kind = kinds[item.name]
        names = [SHORT[item.name]] if item.name in SHORT else []
        names.append("--" + item.name.replace("_", "-"))
        settings: dict[str, Any] = {
            "dest": item.name,
            "default": argparse.SUPPRESS,
            "help": item.metadata["help"] + _in_words(getattr(defaults or Recipe(), item.name)),
        }
        if item.name in skip or getattr(kind, "__origin__", kind) is dict:
            continue
        if kind is bool:
            settings["action"] = argparse.BooleanOptionalAction
        elif getattr(kind, "__origin__", kind) is list:
            settings.update(nargs="*", type=get_args(kind)[0], metavar=item.name.upper())
        else:
            plain = next((k for k in get_args(kind) if k is not type(None)), kind)
            settings.update(type=plain, choices=CHOICES.get(item.name))
            if item.name not in CHOICES:
                settings["metavar"] = plain.__name__.upper()
        parser.add_argument(*names, **settings)


def _in_words(default: Any) -> str:
    """A default as the help says it; what there is no word for, the help itself tells."""
    if default is None or default in ("", [], {}):
        return ""
    if isinstance(default, bool):
        return f" (default: {'yes' if default else 'no'})"
    text = " ".join(map(str, default)) if isinstance(default, list) else str(default)
    return f" (default: {text})"


def overrides_from(args: argparse.Namespace) -> dict[str, Any]:
    """The recipe options that were typed on the command line."""
    known = {f.name for f in dataclasses.fields(Recipe)}
    return {name: value for name, value in vars(args).items() if name in known}
