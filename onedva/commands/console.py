"""What every verb shares at its edges: results on stdout; logs and progress on stderr; outputs that are refused
before any work when they exist; text files that appear whole or not at all."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onedva.commands.tables import Table, to_rich

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["PIPED_WIDTH", "Terminal", "check_output", "output_folder", "to_json", "write_whole"]

PIPED_WIDTH = 200  # columns when stdout is no terminal: rich's default of 80 would fold cells that a script reads
logger = logging.getLogger("onedva")


class StderrHandler(logging.Handler):
    """Prints log lines as they are, through rich, which moves a progress bar out of their way."""

    def emit(self, record: logging.LogRecord) -> None:
        from rich.text import Text

        stderr_console().print(Text(self.format(record)), soft_wrap=True)


@cache
def stderr_console() -> Console:
    """The one console on stderr: a bar and log lines must share it so as not to overwrite each other."""
    from rich.console import Console

    return Console(stderr=True)


@dataclass(frozen=True, kw_only=True)
class Terminal:
    """Where a verb's results and progress go."""

    quiet: bool = False
    """No progress bar, and no log lines below errors."""
    as_json: bool = False
    """Print one JSON document in place of tables."""

    def start_logging(self) -> None:
        """Show the `onedva` logger on stderr, at INFO, or ERROR where quiet. Repeated calls replace the handler."""
        for handler in [handler for handler in logger.handlers if isinstance(handler, StderrHandler)]:
            logger.removeHandler(handler)
        logger.addHandler(StderrHandler())
        logger.setLevel(logging.ERROR if self.quiet else logging.INFO)

    def show(self, document: Mapping[str, Any], tables: Sequence[Table]) -> None:
        """Print the result of a verb on stdout: the document as JSON, or its tables."""
        if self.as_json:
            sys.stdout.write(to_json(document))
            return
        from rich.console import Console
        from rich.text import Text

        console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH, highlight=False)
        for table in tables:
            console.print(Text(table.title, style="bold"))
            console.print(to_rich(table))

    @contextmanager
    def progress(self, label: str, *, total: int | None, unit: str = "frames") -> Iterator[Callable[[int], None]]:
        """A progress bar on stderr that yields `advance(n)`; silent where quiet or where stderr is no terminal."""
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        console = stderr_console()
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=self.quiet or not console.is_terminal,
        )
        with bar:
            task = bar.add_task(label, total=total)
            yield lambda count: bar.advance(task, count)


def check_output(path: Path, *, force: bool, source: Path | None = None, suffixes: Sequence[str] = ()) -> Path:
    """Refuse an output that cannot or must not be written, before any work is done.

    path: the file to be written. force: an existing file may be replaced. source: the input, which is never replaced.
    suffixes: allowed endings in lower case, any where empty.
    Raises FileExistsError, FileNotFoundError, IsADirectoryError, ValueError.
    """
    if suffixes and path.suffix.lower() not in suffixes:
        raise ValueError(f"{path}: the output must end in {' or '.join(suffixes)}, got {path.suffix or 'no ending'!r}")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file to write")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is no folder; make it first, or write elsewhere")
    if source is not None and path.exists() and source.exists() and path.samefile(source):
        raise ValueError(f"{path} is the input itself; name another file to write")
    if path.exists() and not force:
        raise FileExistsError(f"{path} exists; -f overwrites it")
    return path


@contextmanager
def output_folder(path: Path) -> Iterator[None]:
    """A block that fills a folder, which is made for it; where it fails and left it empty, it is gone again.

    Raises FileExistsError, NotADirectoryError and what making a folder raises.
    """
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for folder in made:
            with suppress(OSError):  # something is in it
                folder.rmdir()
        raise


def to_json(document: Mapping[str, Any]) -> str:
    """One JSON document with a final newline. Raises ValueError for a number that is not finite: JSON has none."""
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_whole(path: Path, content: str | bytes, *, overwrite: bool) -> None:
    """Write a small file so that it appears whole or not at all. Raises OneDVAError where it exists."""
    from onedva_runtime.errors import OneDVAError
    from onedva_runtime.files import AtomicFile

    with AtomicFile(path, overwrite=overwrite, error=OneDVAError) as whole:
        whole.file.write(content.encode() if isinstance(content, str) else content)
        whole.commit()
