"""The calls of TensorRT that onedva makes, over ONNX Runtime. Stricter than the real one: profiles, shapes, alignment
and what is bound are all asserted, and an unknown name is an AttributeError."""

from __future__ import annotations

import enum
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from cuda.bindings import runtime as cuda
from onnx import TensorProto

__version__ = os.environ.get("FAKE_TENSORRT", "10.16.1.11")
BYTES_PER_PROFILE = 4096


class NetworkDefinitionCreationFlag(enum.Enum):
    STRONGLY_TYPED = 0 if __version__.startswith("11") else 1

    def __int__(self) -> int:
        return self.value


BuilderFlag = enum.Enum("BuilderFlag", "TF32 DEBUG")
MemoryPoolType = enum.Enum("MemoryPoolType", "WORKSPACE")
HardwareCompatibilityLevel = enum.Enum("HardwareCompatibilityLevel", "NONE AMPERE_PLUS")
TensorIOMode = enum.Enum("TensorIOMode", "NONE INPUT OUTPUT")
DataType = enum.Enum("DataType", "FLOAT HALF BF16 INT64 BOOL UINT8")
ExecutionContextAllocationStrategy = enum.Enum("ExecutionContextAllocationStrategy", "STATIC USER_MANAGED")
KINDS = {
    TensorProto.FLOAT: (DataType.FLOAT, np.float32),
    TensorProto.FLOAT16: (DataType.HALF, np.float16),
    TensorProto.INT64: (DataType.INT64, np.int64),
    TensorProto.BOOL: (DataType.BOOL, np.bool_),
    TensorProto.UINT8: (DataType.UINT8, np.uint8),
}


class ILogger:
    Severity = enum.Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


class Logger(ILogger):
    ERROR = ILogger.Severity.ERROR

    def __init__(self, least: Any) -> None:
        pass


class IProgressMonitor:
    pass


def init_libnvinfer_plugins(logger: Any, namespace: str) -> bool:
    return True


class IAttentionBoundaryLayer:
    def __init__(self) -> None:
        self.attention = type("IAttention", (), {"decomposable": False})()


class OtherLayer:
    pass


class Network:
    def __init__(self) -> None:
        self.model: onnx.ModelProto | None = None
        self.path, self.layers = "", []

    num_inputs = property(lambda self: len(self.model.graph.input))
    num_layers = property(lambda self: len(self.layers))

    def get_input(self, index: int) -> Any:
        return self.model.graph.input[index]

    def get_layer(self, index: int) -> Any:
        return self.layers[index]


class OnnxParser:
    def __init__(self, network: Network, logger: ILogger) -> None:
        self.network, self.errors = network, []

    num_errors = property(lambda self: len(self.errors))

    def get_error(self, index: int) -> str:
        return self.errors[index]

    def parse_from_file(self, model: str) -> bool:
        self.network.path = model
        loaded = self.network.model = onnx.load(model, load_external_data=False)
        kinds = onnx.shape_inference.infer_shapes(loaded, strict_mode=True).graph.value_info
        if any(value.type.tensor_type.elem_type == TensorProto.UINT8 for value in kinds):
            self.errors.append("uint8 inside the network")
        if any(node.op_type == "ScatterElements" for node in loaded.graph.node):
            self.errors.append("no plugin for ScatterElements")
        self.network.layers = [
            IAttentionBoundaryLayer() if node.op_type == "Attention" else OtherLayer() for node in loaded.graph.node
        ]
        return not self.errors


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        assert all(a <= b <= c for a, b, c in zip(min, opt, max, strict=True)), f"{input}: {min} {opt} {max}"
        self.shapes[input] = (tuple(min), tuple(opt), tuple(max))


class Bytes(bytes):
    def serialize(self) -> bytes:
        return bytes(self)


class Config:
    builder_optimization_level = 3
    hardware_compatibility_level = HardwareCompatibilityLevel.NONE
    progress_monitor: Any = None

    def __init__(self) -> None:
        self.profiles: list[Profile] = []
        self.flags, self.workspace, self.timing = {BuilderFlag.TF32}, 0, Bytes()

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(flag)

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        assert pool is MemoryPoolType.WORKSPACE
        self.workspace = pool_size

    def add_optimization_profile(self, profile: Profile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> Bytes:
        return Bytes(serialized_timing_cache)

    def set_timing_cache(self, cache: Bytes, ignore_mismatch: bool) -> bool:
        self.timing = cache
        return True

    def get_timing_cache(self) -> Bytes:
        return Bytes(self.timing + b"x")


class Builder:
    def __init__(self, logger: ILogger) -> None:
        self.logger = logger

    def create_network(self, flags: int) -> Network:
        assert flags == 1 << int(NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        return Network()

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        name = Path(network.path).name
        if log := os.environ.get("FAKE_TENSORRT_LOG"):
            with open(log, "a") as file:
                file.write(f"{name} {sorted(flag.name for flag in config.flags)} {len(config.timing)}\n")
        for layer in network.layers:
            assert isinstance(layer, OtherLayer) or layer.attention.decomposable
        monitor = config.progress_monitor
        monitor.phase_start("build", None, 2)
        monitor.phase_start("tactics", "build", 2)
        monitor.step_complete("tactics", 0)
        time.sleep(float(os.environ.get("FAKE_TENSORRT_SECONDS", 0)))
        monitor.step_complete("tactics", 1)
        monitor.phase_finish("tactics")
        monitor.step_complete("build", 0)
        monitor.step_complete("build", 1)
        monitor.phase_finish("build")
        fail = os.environ.get("FAKE_TENSORRT_FAIL")
        if fail == "crash":
            os._exit(11)
        if fail and fail in name:
            self.logger.log(ILogger.Severity.ERROR, f"no implementation for a node of {name}")
            return None
        content = {"version": __version__, "onnx": network.path, "profiles": [p.shapes for p in config.profiles]}
        return json.dumps(content).encode()


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
        try:
            content = json.loads(serialized_engine)
        except ValueError:
            return None
        return Engine(content) if content["version"] == __version__ else None


class Engine:
    def __init__(self, content: dict[str, Any]) -> None:
        import onnxruntime

        self.profiles = content["profiles"]
        graph = onnx.load(content["onnx"], load_external_data=False).graph
        self.values = {value.name: value for value in (*graph.input, *graph.output)}
        self.inputs, self.outputs = [v.name for v in graph.input], [v.name for v in graph.output]
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 4, 1
        self.session = onnxruntime.InferenceSession(content["onnx"], options, providers=["CPUExecutionProvider"])

    num_io_tensors = property(lambda self: len(self.values))
    num_optimization_profiles = property(lambda self: len(self.profiles))

    def get_tensor_name(self, index: int) -> str:
        return [*self.inputs, *self.outputs][index]

    def get_tensor_mode(self, name: str) -> Any:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return KINDS[self.values[name].type.tensor_type.elem_type][0]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        dims = self.values[name].type.tensor_type.shape.dim
        return tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims)

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return BYTES_PER_PROFILE * (profile_index + 1)

    def create_execution_context(self, strategy: Any) -> Context:
        assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        return Context(self)


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.profile, self.memory = engine, -1, 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self.profile = profile_index
        return 0 <= profile_index < len(self.engine.profiles)

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 256 == 0 and size >= self.engine.get_device_memory_size_for_profile_v2(self.profile)
        cuda.device_memory(memory, size)
        self.memory = memory

    def set_input_shape(self, name: str, shape: Any) -> bool:
        low, _, high = self.engine.profiles[self.profile][name]
        self.shapes[name] = tuple(shape)
        return len(shape) == len(low) and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))

    def infer_shapes(self) -> list[str]:
        return [name for name in self.engine.inputs if name not in self.shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self.engine.inputs:
            return self.shapes[name]
        symbols: dict[str, int] = {}
        for given in self.engine.inputs:
            dims = self.engine.values[given].type.tensor_type.shape.dim
            symbols |= {
                dim.dim_param: size for dim, size in zip(dims, self.shapes[given], strict=True) if dim.dim_param
            }
        dims = self.engine.values[name].type.tensor_type.shape.dim
        return tuple(symbols[dim.dim_param] if dim.dim_param else dim.dim_value for dim in dims)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return name in self.engine.values

    def execute_async_v3(self, stream_handle: int) -> bool:
        if not self.memory or set(self.addresses) != set(self.engine.values):
            return False
        shapes = {name: self.get_tensor_shape(name) for name in self.engine.values}
        addresses = dict(self.addresses)

        def view(name: str) -> np.ndarray:
            kind = KINDS[self.engine.values[name].type.tensor_type.elem_type][1]
            size = int(np.prod(shapes[name])) * np.dtype(kind).itemsize
            return cuda.device_memory(addresses[name], size).view(kind).reshape(shapes[name])

        def run() -> None:
            outputs = self.engine.session.run(self.engine.outputs, {name: view(name) for name in self.engine.inputs})
            for name, value in zip(self.engine.outputs, outputs, strict=True):
                view(name)[:] = value

        cuda.submit(stream_handle, run)
        return True
