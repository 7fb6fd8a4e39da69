"""A table that prints the same numbers in a terminal and in Markdown: what a verb shows is what it writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table as RichTable

__all__ = ["Table", "counted", "to_markdown", "to_rich"]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells as text, first column to the left and numbers to the right."""

    title: str
    """One line over the table."""
    columns: Sequence[str]
    """Heading of each column, with its unit."""
    rows: Sequence[Sequence[str]]
    """One entry per row, each as long as `columns`."""
    text: bool = False
    """Every column holds words, so all are left-aligned."""


def to_rich(table: Table) -> RichTable:
    """The table for a terminal, without its title, which rich would fold to the width of the columns."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(box=box.SIMPLE_HEAD, show_header=any(table.columns), pad_edge=False)
    for index, column in enumerate(table.columns):
        drawn.add_column(column, justify="left" if table.text or index == 0 else "right", overflow="fold")
    for row in table.rows:
        drawn.add_row(*(Text(cell) for cell in row))  # Text, so that brackets in a cell are no markup
    return drawn


def to_markdown(table: Table) -> str:
    """The table in GitHub's Markdown, the title as a bold line; pipes in cells are escaped."""
    rules = ["---" if table.text or index == 0 else "---:" for index in range(len(table.columns))]
    lines = [table.columns, rules, *table.rows]
    body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return f"**{table.title}**\n\n{body}\n"


def counted(number: int, what: str) -> str:
    """ "1 clip", "2 clips"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
