"""`onedva bench --compare A.json B.json`: the ratio of every time, rate and size that both have, row by row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onedva.commands.console import Terminal
from onedva.commands.tables import Table
from onedva_runtime.errors import OneDVAError

__all__ = ["compare_files"]

KEYS = ("what", "backend", "dtype", "size", "length", "steps")  # what makes two rows the same measurement


def compare_files(first: Path, second: Path, *, terminal: Terminal) -> None:
    """Show B / A of two files that `onedva bench` wrote. Raises OneDVAError for other files, or where none has a row of
    the other."""
    documents = [_read(path) for path in (first, second)]
    left, right = ({_key(row): _numbers(row) for row in document["rows"]} for document in documents)
    shared = [key for key in left if key in right]
    if not shared:
        raise OneDVAError(f"{first} and {second} have no row in common: compare runs of one suite with the same cells")
    rows = [
        {"row": " ".join(key), "number": name, "a": left[key][name], "b": right[key][name]}
        for key in shared
        for name in left[key]
        if name in right[key]
    ]
    for row in rows:
        row["ratio"] = row["b"] / row["a"] if row["a"] else None
    notes = _differences(documents[0]["provenance"], documents[1]["provenance"])
    only = [" ".join(key) for key in (*left, *right) if key not in shared]
    tables = [
        Table(
            title=f"B / A: {second} over {first}",
            columns=["row", "number", "A", "B", "B / A"],
            rows=[
                [
                    r["row"],
                    r["number"],
                    f"{r['a']:.4g}",
                    f"{r['b']:.4g}",
                    "" if r["ratio"] is None else f"{r['ratio']:.3f}",
                ]
                for r in rows
            ],
        ),
        Table(title="what else differs", columns=["", "A", "B"], rows=notes, text=True),
    ]
    terminal.show({"a": str(first), "b": str(second), "rows": rows, "only_in_one": only, "differs": notes}, tables)


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise OneDVAError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise OneDVAError(f"{path} is not JSON, so `onedva bench` did not write it") from None
    if not isinstance(document, dict) or document.get("schema") != "onedva-bench":
        raise OneDVAError(f"{path} was not written by `onedva bench`")
    return document


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in KEYS if name in row)


def _numbers(row: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Every number of a row that is measured, by dotted name."""
    found: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            found |= _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool) and name not in (*KEYS, "runs", "clips"):
            found[prefix + name] = float(value)
    return found


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[list[str]]:
    """Conditions that are not the same: ratios mean something only where the machine is."""
    names = [name for name in a if name not in ("date", "command", "load_average") and a.get(name) != b.get(name)]
    return [[name, str(a.get(name)), str(b.get(name))] for name in names]
