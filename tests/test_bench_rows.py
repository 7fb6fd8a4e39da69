"""bench/run.py: what was measured becomes bars that hold or do not, and a part that is missing is said to be."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))
    yield importlib.import_module("run")
    for name in ("run", "page", "timing"):
        sys.modules.pop(name, None)


def measured(seconds: float) -> dict[str, Any]:
    return {"median_s": seconds, "least_s": seconds, "spread": 0.1, "runs": 3}


def parts(flags: list[str]) -> dict[str, Any]:
    """What a machine would give on which most bars hold."""
    decode = {("64", 1): 100.0, ("256", 1): 110.0, ("256", 2): 170.0, ("256", 4): 290.0, ("full", 1): 150.0}
    encode = {"64": 60.0, "256": 70.0, "full": 100.0}
    names = {"onedva tiny": 0.1, "the same model, PyTorch fp32 eager": 0.4, "diffusers AutoencoderKLCosmos": 1.5}
    return {
        "provenance": {"cpu_flags": flags},
        "latency": {
            "rows": [
                {"length": length, "steps": steps, "decode_ms": {"p50": ms}, "encode_ms": {"p50": encode[length]}}
                for (length, steps), ms in decode.items()
            ]
        },
        "peers": {
            "matmul": {"float32": 300.0, "bfloat16": 160.0},
            "rows": [{"name": name, "batch": 1, "decode": measured(s)} for name, s in names.items()],
        },
        "memory": {"growth_mb": 11.0, "minutes": 60.0},
    }


def test_rows_hold_or_do_not(run: Any) -> None:
    rows = {row.what: row for row in run.rows_of(parts(["avx512_bf16"]))}
    eager = rows["decode, 1 step, against PyTorch eager fp32 †"]
    assert (eager.measured, eager.holds) == ("4.0×", False)
    assert "no AMX: 160 against 300 GFLOP/s" in eager.note
    assert rows["the same against AutoencoderKLCosmos †"].holds is True
    assert rows["the same against AutoencoderKLWan †"].holds is None  # not in a quick run
    assert rows["decode time × bf16 2048³ matmul rate"].measured == "16 GFLOP"
    further = rows["each further step, over the 1-step decode"]
    assert further.measured == "0.55×" and further.holds
    assert rows["decode at 1024 latents over 64"].holds
    assert rows["encode at 64 latents over 1024"].measured == "0.60×"
    assert rows["memory of a long stream, last quarter less second"].holds is False
    assert rows["cold start: import, load, first clip"].measured == "not measured"
    assert len(rows) == 12


def test_a_missed_bar_shows_where_the_time_goes(run: Any) -> None:
    spent = {"attention": 37.0, "linear layers": 28.2}
    nodes = {"dtype": "bf16", "rows": [{"what": "decode", "latents": 256, "ms": spent}]}
    (eager, *_) = run.rows_of({**parts(["amx_bf16"]), "nodes": nodes})
    assert eager.note.endswith("80 ms are wanted; of 65 ms at 256 latents go to attention 37, linear layers 28")
    page = importlib.import_module("page")
    assert "| decode | 256 | 37.0 | 28.2 |" in page.nodes(nodes)[-1]


def test_amx_needs_no_excuse(run: Any) -> None:
    (eager, *_) = run.rows_of(parts(["amx_bf16", "avx512_bf16"]))
    assert "AMX" not in eager.note
    (eager, *_) = run.rows_of(parts([]))
    assert "no bf16" in eager.note


def test_products_count_attention_as_two(run: Any) -> None:
    floor = importlib.import_module("floor")
    sys.modules.pop("floor", None)
    assert floor.flops(((2, 3, 4), (2, 4, 5), False)) == 2 * 2 * 3 * 4 * 5
    import numpy as np

    openvino: Any = importlib.import_module("openvino")
    ops: Any = importlib.import_module("openvino.opset15")
    x = ops.parameter([1, 2, 6, 8], openvino.Type.f32)
    attention = ops.scaled_dot_product_attention(x, x, x)
    weights = ops.constant(np.zeros((3, 8), np.float32))
    model = openvino.Model([ops.matmul(attention, weights, False, True)], [x])
    products = floor.products_of(model)
    assert products == {
        ((1, 2, 6, 8), (1, 2, 8, 6), False): 1,
        ((1, 2, 6, 6), (1, 2, 6, 8), False): 1,
        ((1, 2, 6, 8), (8, 3), True): 1,
    }
