"""Where the time of an encode and of a one-step decode goes, by kind of work: OpenVINO's own times of every node.

    python bench/node_times.py -m tiny [--dtype bf16]    # JSON on stdout

The graphs run through the codec's backend, so at exactly its settings, with OpenVINO's clocks on, which cost some time
themselves. Medians over runs; a node's time is wall time on all cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from typing import Any

from floor import FRAMES, HEIGHT, WIDTH

from onedva_runtime import VideoCodec
from onedva_runtime.backends.openvino import OpenVinoBackend
from onedva_runtime.bundle import find, read_bundle
from onedva_runtime.clips import make_clip

LENGTHS = (64, 256, 1024)
RUNS = 15
# by OpenVINO's type of an executed node; what is in none of these moves, reorders or casts data
KINDS = {
    "linear layers": ("FullyConnected", "MatMul"),
    "attention": ("ScaledDotProductAttention", "Softmax"),
    "elementwise": ("Subgraph", "Eltwise", "Multiply", "Add", "Subtract", "Divide", "PowerStatic", "Math", "Clamp"),
    "norms": ("MVN", "RMS", "ReduceMean", "ReduceSum", "NormalizeL2"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("-m", "--model", default="tiny")
    parser.add_argument("--dtype", default="bf16", choices=("fp32", "bf16", "int8"))
    options = parser.parse_args()
    bundle = read_bundle(find(options.model))
    backend = Profiled(bundle, dtype=options.dtype)
    codec = VideoCodec(bundle, backend)
    frames = make_clip(FRAMES, HEIGHT, WIDTH)
    rows = []
    for tokens in LENGTHS:
        packet = codec.encode_clip(frames, tokens=tokens)
        for what, call in (
            ("encode", lambda tokens=tokens: codec.encode_clip(frames, tokens=tokens)),
            ("decode", lambda packet=packet: codec.decode_clip(packet, num_steps=1)),
        ):
            rows.append({"what": what, "latents": tokens, "ms": backend.times(call)})
    print(json.dumps({"dtype": options.dtype, "rows": rows}, indent=2))


class Profiled(OpenVinoBackend):
    """The backend with OpenVINO's clocks on."""

    def __init__(self, bundle: Any, *, dtype: str) -> None:
        super().__init__(bundle, dtype=dtype)
        graphs = self._graphs
        graphs.settings["PERF_COUNT"] = True
        graphs.settings.pop("CACHE_DIR", None)  # what was compiled without clocks would stay without
        self.seen: dict[str, float] = defaultdict(float)
        run = graphs.run

        def timed(graph: str, feeds: Any) -> Any:
            lease = run(graph, feeds)
            for node in lease.request.get_profiling_info():
                self.seen[kind_of(node)] += node.real_time.total_seconds()
            return lease

        graphs.run = timed

    def times(self, call: Any) -> dict[str, float]:
        """Median milliseconds of each kind of work in a call."""
        runs = []
        for number in range(RUNS + 2):
            self.seen = defaultdict(float)
            call()
            if number >= 2:
                runs.append(dict(self.seen))
        kinds = sorted({kind for run in runs for kind in run})
        return {kind: 1000 * statistics.median(run.get(kind, 0.0) for run in runs) for kind in kinds}


def kind_of(node: Any) -> str:
    """The kind of work of an executed node. OpenVINO makes one node of an attention, named after it in either style."""
    if "scaleddotproductattention" in node.node_name.replace("_", "").lower() and node.node_type == "Subgraph":
        return "attention"
    kind = next((kind for kind, types in KINDS.items() if node.node_type in types), "data movement")
    return f"{kind}, fp32" if kind == "linear layers" and node.exec_type.endswith("f32") else kind


if __name__ == "__main__":
    main()
