"""How a verb fails: what a user can get wrong ends in one line on stderr and exit 2, an input of which parts were lost
in one line and exit 3, Ctrl-C in one line and exit 130; never in a traceback. ONEDVA_DEBUG=1 shows it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from onedva_runtime.errors import OneDVAError

__all__ = ["Incomplete", "Verbs", "error_line", "needs_extra"]


class Incomplete(Exception):
    """The output is there, but not all of the input is in it: it was damaged or cut off."""


class Verbs(TyperGroup):
    """The verbs of the command line, with the errors that a user can meet turned into one line and an exit code."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        with in_one_line():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: typer.Context) -> object:
        with in_one_line():
            return super().invoke(ctx)


# Typer brings a click of its own, or uses the installed one, by version: this is the class of either.
UsageError: Any = typer.BadParameter.__base__


@contextmanager
def in_one_line() -> Iterator[None]:
    """Print one line for what a user, the input or the machine did wrong, and exit."""
    try:
        yield
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # prints the help
            raise
        where = error.ctx.command_path if error.ctx is not None else "onedva"
        fail(f"{error.format_message().rstrip('.')} (`{where} --help` says what there is)", 2)
    except BrokenPipeError:  # `onedva … | head`: the reader has what it wanted
        raise
    except (OneDVAError, ValueError, OSError) as error:
        if os.environ.get("ONEDVA_DEBUG") == "1":
            raise
        fail(error_line(error), 2)
    except Incomplete as loss:
        fail(str(loss), 3)
    except KeyboardInterrupt:
        fail("interrupted", 130)


def fail(line: str, code: int) -> NoReturn:
    """Print the line and exit."""
    print(f"onedva: {line}", file=sys.stderr)
    raise typer.Exit(code) from None


def error_line(error: Exception) -> str:
    """One line for an error: what the system said and about which file, or the error's own words."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Turn an import that lacks an optional dependency into an OneDVAError naming the `pip install` that brings it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0].startswith("onedva"):
            raise  # a part of ours that is not there is a bug, not a missing extra
        raise OneDVAError(f"this verb needs {error.name}: pip install 'onedva[{extra}]'") from None
