"""The process that builds one TensorRT engine: `python -m onedva_export.trt_worker REQUEST.json`, run by `to_tensorrt`.

It prints how far it is, a number from 0 to 1 a line, and ends when its standard input does: with its parent.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

__all__ = ["build", "main"]


def main(arguments: list[str]) -> int:
    (request,) = arguments
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        build(json.loads(Path(request).read_text()))
    except (RuntimeError, ModuleNotFoundError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    return 0


def _end_with_parent() -> None:
    while os.read(0, 1024):  # of a pipe that closes whatever way the parent ended; sys.stdin would lock at our own end
        pass
    os._exit(1)


def build(request: dict[str, Any]) -> None:
    """Parse, build, write the plan and the timing cache. Raises RuntimeError with what TensorRT said."""
    import tensorrt  # pyright: ignore[reportMissingImports]

    trt: Any = tensorrt
    logger = _logger(trt)
    trt.init_libnvinfer_plugins(logger, "")
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(request["onnx"]):
        said = [str(parser.get_error(index)) for index in range(parser.num_errors)]
        raise RuntimeError(f"TensorRT cannot read the graph: {'; '.join(said) or logger.last}")
    _allow_decomposition(trt, network)
    config = _config(trt, builder, request)
    for shapes in request["profiles"]:
        profile = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            name = network.get_input(index).name
            profile.set_shape(name, *(tuple(shape) for shape in shapes[name]))
        if config.add_optimization_profile(profile) < 0:
            raise RuntimeError(f"TensorRT refuses the profile {shapes}: {logger.last}")
    timing = Path(request["timing_cache"])
    cache = config.create_timing_cache(timing.read_bytes() if timing.is_file() else b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError(f"TensorRT gave no engine: {logger.last or 'it did not say why'}")
    _write(Path(request["plan"]), plan)
    _write(timing, config.get_timing_cache().serialize())


def _config(trt: Any, builder: Any, request: dict[str, Any]) -> Any:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request["workspace_mib"] << 20)
    config.builder_optimization_level = request["opt_level"]
    (config.set_flag if request["tf32"] else config.clear_flag)(trt.BuilderFlag.TF32)
    if request["hardware_compatible"]:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    config.progress_monitor = _monitor(trt)
    return config


def _allow_decomposition(trt: Any, network: Any) -> None:
    """Let TensorRT run attention as products and a softmax where it has no fused kernel for the shape."""
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if isinstance(layer, trt.IAttentionBoundaryLayer):
            layer.attention.decomposable = True


def _logger(trt: Any) -> Any:
    """A logger that keeps the last error; TensorRT's exceptions say little."""

    class Logger(trt.ILogger):
        last = ""

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.last = msg

    return Logger()


def _monitor(trt: Any) -> Any:
    """Prints how far the outermost phase is, inner ones as part of its current step."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            super().__init__()
            self.open: dict[str, tuple[int, int]] = {}  # phase → step, steps; the outermost first

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.open[phase_name] = (0, max(num_steps, 1))

        def phase_finish(self, phase_name: str) -> None:
            self.open.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self.open:
                self.open[phase_name] = (step + 1, self.open[phase_name][1])
            fraction, share = 0.0, 1.0
            for at, steps in self.open.values():
                share /= steps
                fraction += share * min(at, steps)
            print(f"{min(fraction, 1.0):.4f}", flush=True)
            return True

    return Monitor()


def _write(path: Path, content: Any) -> None:
    """Write bytes, whole or not at all."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
