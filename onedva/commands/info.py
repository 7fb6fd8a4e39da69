"""`onedva info`: what is installed, which backends work and why the others do not, the bundle, whether it still does
what it was exported to do, and the export's parity report; or, given a path, what is in that file or folder."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from onedva.commands.coding import CodecChoice
from onedva.commands.console import Terminal
from onedva.commands.odva import show_odva
from onedva.commands.provenance import installed, machine
from onedva.commands.tables import Table
from onedva_runtime.errors import OneDVAError

__all__ = ["show_install", "show_path"]

PACKAGES = {
    "onedva": "this package",
    "numpy": "base",
    "av": "base",
    "safetensors": "base",
    "onnxruntime": "onedva[cpu]",
    "onnxruntime-gpu": "onedva[gpu]",
    "openvino": "onedva[openvino]",
    "tensorrt": "onedva[trt]",
    "matplotlib": "onedva[plot]",
    "torch": "onedva[train]",
    "onnx": "onedva[export]",
}


def show_install(*, choice: CodecChoice, terminal: Terminal) -> None:
    """The verb `info` without a path. A bundle or backend that does not work is part of the answer, and then exit 2."""
    terminal.start_logging()
    from onedva_runtime.backends import available
    from onedva_runtime.noise import is_native

    versions = {name: installed(name) for name in PACKAGES}
    backends = [dataclasses.asdict(status) for status in available()]
    document: dict[str, Any] = {
        "machine": machine(),
        "versions": versions,
        "compiled_noise": is_native(),
        "backends": backends,
        "bundle": None,
        "selftest": [],
        "problem": None,
    }
    tables = [
        _pairs("machine", document["machine"]),
        Table(
            title="packages",
            columns=["package", "version", "comes with"],
            rows=[[name, found or "not installed", PACKAGES[name]] for name, found in versions.items()],
            text=True,
        ),
        Table(
            title="backends",
            columns=["backend", "usable", "why"],
            rows=[[status["name"], "yes" if status["usable"] else "no", status["reason"]] for status in backends],
            text=True,
        ),
    ]
    try:
        codec = choice.open()
        document["bundle"], document["selftest"] = codec.info(), [_finite(case) for case in codec.selftest()]
    except OneDVAError as problem:
        document["problem"] = str(problem)
    else:
        tables += [_pairs("bundle", _brief(document["bundle"])), _selftest(document["selftest"])]
        if not all(case["passed"] for case in document["selftest"]):
            document["problem"] = f"{codec.name} fails its self-test on {codec.backend_name}"
    terminal.show(document, tables)
    if document["problem"]:
        raise OneDVAError(document["problem"])


def show_path(path: Path, *, plot: Path | None, force: bool, terminal: Terminal) -> None:
    """The verb `info` with a path: a bundle folder, an .odva file, or a video. plot: a PNG, of an .odva file only."""
    terminal.start_logging()
    if path.suffix.lower() == ".odva" and not path.is_dir():
        show_odva(path, plot=plot, force=force, terminal=terminal)
        return
    if plot is not None:
        raise ValueError(f"--plot shows an .odva file, got {path}")
    if path.is_dir():
        codec = CodecChoice(model=str(path)).open()
        document = {"kind": "bundle", **codec.info(), "selftest": [_finite(case) for case in codec.selftest()]}
        tables = [_pairs(str(path), _brief({**document, "selftest": None})), _selftest(document["selftest"])]
    else:
        from onedva_runtime.video_io import probe

        document = {"kind": "video", **_plain(dataclasses.asdict(probe(path)))}
        tables = [_pairs(str(path), document)]
    terminal.show(document, tables)


def _selftest(cases: Sequence[Mapping[str, Any]]) -> Table:
    return Table(
        title="self-test: the bundle's golden cases on this machine",
        columns=["case", "passed", "decode PSNR dB", "largest error of latents"],
        rows=[
            [
                case["name"],
                "yes" if case["passed"] else "NO",
                f"{case['psnr_db']:.1f}",
                ", ".join(f"{role} {_short(error)}" for role, error in case["max_error"].items()),
            ]
            for case in cases
        ],
        text=True,
    )


def _brief(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What `VideoCodec.info` tells, less the cases that the parity report is the worst of: `--json` has them."""
    worst = {name: value for name, value in facts["parity"].items() if name not in ("cases", "generator")}
    brief = {**facts, "parity": worst}
    if generator := facts["generator"]:
        sizes = [f"{width}x{height}" for height, width in generator["sizes"]]
        brief["generator"] = {**generator, "sizes": sizes, "classes": generator["classes"] or "none"}
    return brief


def _pairs(title: str, document: Mapping[str, Any]) -> Table:
    """Names and values of a document, nested names joined by dots; absent values are left out."""
    return Table(
        title=title, columns=["", ""], rows=[[name, _short(value)] for name, value in _flat(document)], text=True
    )


def _flat(value: Any, name: str = "") -> list[tuple[str, Any]]:
    """Leaves of nested mappings and lists with their dotted names; lists of plain values count as leaves."""
    if isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        items = [
            (str(item.get("name", index)) if isinstance(item, Mapping) else str(index), item)
            for index, item in enumerate(value)
        ]
    else:
        return [] if value is None else [(name, value)]
    return [leaf for key, item in items for leaf in _flat(item, f"{name}.{key}" if name else key)]


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return ", ".join(_short(item) for item in value) if isinstance(value, list | tuple) else str(value)


def _plain(document: Mapping[str, Any]) -> dict[str, Any]:
    """A dataclass's fields as JSON has them: fractions as "24000/1001"."""
    return {
        name: str(value) if isinstance(value, Fraction) else _plain(value) if isinstance(value, Mapping) else value
        for name, value in document.items()
    }


def _finite(case: Mapping[str, Any]) -> dict[str, Any]:
    """A self-test's report as JSON has it: an error that is not finite is None."""
    errors = {role: error if math.isfinite(error) else None for role, error in case["max_error"].items()}
    return {**case, "max_error": errors}
