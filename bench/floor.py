"""How much of a graph's time is matrix products: each product of its own shapes, timed alone on the same backend.

    python bench/floor.py -m tiny [--tokens 256]    # JSON on stdout

For OpenVINO in fp32. An attention counts as its two products. `floor_s` is the sum over the graph of the times of its
products alone, `share` is floor over whole: the graph's rate as a share of what products of these shapes reach.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from timing import timed

FRAMES, HEIGHT, WIDTH = 17, 256, 256
Product = tuple[tuple[int, ...], tuple[int, ...], bool]  # shapes of both factors, whether the second is a constant


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-m", "--model", default="tiny")
    parser.add_argument("--tokens", type=int, default=256)
    options = parser.parse_args()
    from onedva_runtime.bundle import find, read_bundle

    bundle = read_bundle(find(options.model))
    rows = [graph_row(bundle, graph, options.tokens) for graph in bundle.manifest.graphs]
    print(json.dumps({"rows": rows}, indent=2))


def graph_row(bundle: Any, graph: str, tokens: int) -> dict[str, Any]:
    """Products, FLOPs, the floor and the whole time of one graph at the clip's shape."""
    import openvino

    core, spec = openvino.Core(), bundle.manifest.graphs[graph]
    model = core.read_model(os.fspath(Path(bundle.graph_path(graph))))
    sizes = {
        "B": 1, "T": FRAMES, "H": HEIGHT, "W": WIDTH, "Tg": 1 + (FRAMES - 1) // 4, "Hg": HEIGHT // 16,
        "Wg": WIDTH // 16, "K": tokens, "K+5": tokens + 5,
    }  # fmt: skip
    shapes = {value.name: [sizes.get(axis, axis) for axis in value.shape] for value in spec.inputs}
    model.reshape(shapes)
    products = products_of(model)
    feeds = {value.name: example(value.name, value.dtype, shapes[value.name]) for value in spec.inputs}
    whole = time_model(core, model, feeds)
    alone = {product: time_product(core, product) for product in products}
    floor = sum(count * alone[product] for product, count in products.items())
    work = sum(count * flops(product) for product, count in products.items())
    return {
        "graph": graph, "gflop": work / 1e9, "whole_s": whole, "floor_s": floor, "share": floor / whole,
        "gflop_per_s": work / 1e9 / whole, "products": sum(products.values()),
    }  # fmt: skip


def products_of(model: Any) -> Counter[Product]:
    """How often each matrix product stands in a model of fixed shapes."""
    found: Counter[Product] = Counter()
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind == "MatMul":
            a, b = (list(node.input_value(i).get_shape()) for i in (0, 1))
            turns = node.get_attributes()
            if turns["transpose_a"]:
                a[-2:] = a[:-3:-1]
            if turns["transpose_b"]:
                b[-2:] = b[:-3:-1]
            constant = not any(is_input(node.input_value(1).get_node()) for _ in (0,))
            found[tuple(a), tuple(b), constant] += 1
        elif kind == "ScaledDotProductAttention":
            query, key, value = (list(node.input_value(i).get_shape()) for i in (0, 1, 2))
            scores = [*query[:-1], key[-2]]
            found[tuple(query), (*key[:-2], key[-1], key[-2]), False] += 1
            found[tuple(scores), tuple(value), False] += 1
    return found


def is_input(node: Any) -> bool:
    """Whether a value depends on the graph's inputs, rather than on weights alone."""
    seen, todo = set(), [node]
    while todo:
        current = todo.pop()
        if current.get_type_name() == "Parameter":
            return True
        for value in current.input_values():
            before = value.get_node()
            if before.get_friendly_name() not in seen:
                seen.add(before.get_friendly_name())
                todo.append(before)
    return False


def flops(product: Product) -> int:
    a, b, _ = product
    return 2 * int(np.prod(a)) * b[-1]


def time_product(core: Any, product: Product) -> float:
    """Seconds of one product alone, its second factor packed beforehand where it is a constant."""
    import openvino
    import openvino.opset15 as ops

    a, b, constant = product
    random = np.random.default_rng(0)
    first = ops.parameter(list(a), openvino.Type.f32, name="a")
    weights = random.standard_normal(b).astype(np.float32)
    second = ops.constant(weights) if constant else ops.parameter(list(b), openvino.Type.f32, name="b")
    inputs = [first] if constant else [first, second]
    model = openvino.Model([ops.matmul(first, second, False, False)], inputs)
    feeds = {"a": random.standard_normal(a).astype(np.float32), **({} if constant else {"b": weights})}
    return time_model(core, model, feeds)


def time_model(core: Any, model: Any, feeds: dict[str, Any]) -> float:
    """Median seconds of a model in fp32 on all cores that this process may use."""
    settings = {
        "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": len(os.sched_getaffinity(0)), "ENABLE_CPU_PINNING": False,
    }  # fmt: skip
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    call = lambda: request.infer(feeds, share_inputs=True, share_outputs=True)  # noqa: E731
    return timed(call, warm_up=3, runs=20, time_box=2)["median_s"]


def example(name: str, dtype: str, shape: list[int]) -> np.ndarray:
    """A valid input: what is in it does not matter to the time, but indices must be inside."""
    random = np.random.default_rng(0)
    if name == "resolution":
        return np.array([[FRAMES, HEIGHT, WIDTH, 24.0]], np.float32)
    if dtype == "bool":
        return np.ones(shape, np.bool_)
    if dtype == "int64":
        return np.arange(np.prod(shape), dtype=np.int64).reshape(shape)
    if dtype == "uint8":
        return random.integers(0, 256, shape, np.uint8)
    return np.ones(shape, np.float32) if name == "t" else random.standard_normal(shape).astype(np.float32)


if __name__ == "__main__":
    main()
