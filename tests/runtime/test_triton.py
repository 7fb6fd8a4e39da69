"""The Triton repository: its configurations are what Triton's own schema allows, and its Python models, run over ONNX
Runtime by a stand-in for Triton, give what the codec gives."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as schema
from typer.testing import CliRunner

from onedva.cli import app
from onedva_runtime import VideoCodec
from onedva_runtime.bundle import read_bundle
from onedva_runtime.clips import make_clip
from onedva_runtime.errors import BundleError
from onedva_runtime.triton_repository import write_triton

SCHEMA: Any = schema  # its names are made at import
NUMPY = {"TYPE_UINT8": np.uint8, "TYPE_INT64": np.int64, "TYPE_FP32": np.float32, "TYPE_BOOL": np.bool_}
NUMPY |= {"TYPE_INT32": np.int32, "TYPE_UINT64": np.uint64}


def config_of(folder: Path) -> Any:
    """The configuration of one model, parsed by the schema: unknown fields and values raise."""
    return text_format.Parse((folder / "config.pbtxt").read_text(), SCHEMA.ModelConfig())


def fitted(spec: Any, array: np.ndarray, batched: bool) -> None:
    """Fail where Triton would refuse the array for this input or output."""
    assert array.dtype == NUMPY[SCHEMA.DataType.Name(spec.data_type)], spec.name
    sizes = array.shape[1:] if batched else array.shape
    assert len(sizes) == len(spec.dims), (spec.name, array.shape, list(spec.dims))
    assert all(want in (-1, got) for want, got in zip(spec.dims, sizes, strict=True)), (spec.name, array.shape)


class Stub(ModuleType):
    """What Python models see of Triton, over a repository."""

    def __init__(self, repository: Path) -> None:
        super().__init__("triton_python_backend_utils")
        calls: list[str] = []
        sessions: dict[str, Any] = {}

        class Tensor:
            def __init__(self, name: str, array: np.ndarray) -> None:
                assert array.flags.c_contiguous
                self._name, self._array = name, array

            def name(self) -> str:
                return self._name

            def as_numpy(self) -> np.ndarray:
                return self._array

        class TritonError:
            def __init__(self, message: str) -> None:
                self._message = message

            def message(self) -> str:
                return self._message

        class InferenceResponse:
            def __init__(self, output_tensors: list[Tensor], error: TritonError | None = None) -> None:
                self._tensors, self._error = output_tensors, error

            def output_tensors(self) -> list[Tensor]:
                return self._tensors

            def has_error(self) -> bool:
                return self._error is not None

            def error(self) -> TritonError | None:
                return self._error

        class InferenceRequest:
            def __init__(self, model_name: str, requested_output_names: list[str], inputs: list[Tensor]) -> None:
                self._model, self._outputs, self._inputs = model_name, requested_output_names, inputs

            def inputs(self) -> list[Tensor]:
                return self._inputs

            def exec(self) -> InferenceResponse:
                config = config_of(repository / self._model)
                calls.append(self._model)
                if self._model not in sessions:
                    path = repository / self._model / "1" / config.default_model_filename
                    sessions[self._model] = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
                given = {tensor.name(): tensor.as_numpy() for tensor in self._inputs}
                assert set(given) == {spec.name for spec in config.input}
                feeds: dict[str, np.ndarray] = {}
                for spec in config.input:
                    fitted(spec, given[spec.name], True)
                    flat = spec.HasField("reshape") and not spec.reshape.shape
                    feeds[spec.name] = given[spec.name][:, 0] if flat else given[spec.name]
                outputs = sessions[self._model].run(self._outputs, feeds)
                specs = {spec.name: spec for spec in config.output}
                for name, array in zip(self._outputs, outputs, strict=True):
                    fitted(specs[name], array, True)
                tensors = [Tensor(name, array) for name, array in zip(self._outputs, outputs, strict=True)]
                return InferenceResponse(tensors)

        def get_output_tensor_by_name(response: InferenceResponse, name: str) -> Tensor:
            return next(tensor for tensor in response.output_tensors() if tensor.name() == name)

        self.__dict__.update(
            Tensor=Tensor,
            TritonError=TritonError,
            InferenceResponse=InferenceResponse,
            InferenceRequest=InferenceRequest,
            get_output_tensor_by_name=get_output_tensor_by_name,
            calls=calls,
        )


@pytest.fixture(scope="module")
def repository(fake_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_triton(read_bundle(fake_bundle), tmp_path_factory.mktemp("triton") / "repository")


@pytest.fixture
def ask(repository: Path, monkeypatch: pytest.MonkeyPatch):
    """`ask("encode", frames=…)`: a request to a Python model; its outputs by name."""
    stub: Any = Stub(repository)
    monkeypatch.setitem(sys.modules, stub.__name__, stub)

    def call(name: str, **inputs: Any) -> dict[str, np.ndarray]:
        folder = repository / f"onedva_{name}"
        spec = importlib.util.spec_from_file_location(f"triton_{name}", folder / "1" / "model.py")
        assert spec is not None and spec.loader is not None
        module: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        model, config = module.TritonPythonModel(), config_of(folder)
        model.initialize({"model_repository": str(folder), "model_version": "1", "model_name": f"onedva_{name}"})
        types = {one.name: NUMPY[SCHEMA.DataType.Name(one.data_type)] for one in config.input}
        arrays = {key: np.atleast_1d(np.asarray(value, types[key])) for key, value in inputs.items()}
        for one in config.input:
            assert one.optional or one.name in arrays, one.name
            if one.name in arrays:
                fitted(one, arrays[one.name], False)
        tensors = [stub.Tensor(key, np.ascontiguousarray(array)) for key, array in arrays.items()]
        (answer,) = model.execute([stub.InferenceRequest(f"onedva_{name}", [], tensors)])
        if answer.has_error():
            raise ValueError(answer.error().message())
        outputs = {tensor.name(): tensor.as_numpy() for tensor in answer.output_tensors()}
        for one in config.output:
            fitted(one, outputs[one.name], False)
        return outputs

    call.calls = stub.calls  # type: ignore[attr-defined]
    return call


def test_configurations_follow_the_schema(repository: Path) -> None:
    folders = sorted(folder.name for folder in repository.iterdir())
    assert folders == [f"onedva_{name}" for name in ("condition", "decode", "encode", "encoder", "velocity")]
    for folder in repository.iterdir():
        config = config_of(folder)
        assert config.name == folder.name
        assert all(spec.data_type != 0 and spec.dims for spec in [*config.input, *config.output])
        if config.backend == "onnxruntime":
            assert config.HasField("dynamic_batching") and config.max_batch_size > 1
            assert (folder / "1" / config.default_model_filename).is_file()
        else:
            assert config.backend == "python" and (folder / "1" / "model.py").is_file() and config.max_batch_size == 0


def test_the_schema_can_refuse(repository: Path, tmp_path: Path) -> None:
    text = (repository / "onedva_encoder" / "config.pbtxt").read_text()
    for old, new in (("dynamic_batching", "dynamic_bathing"), ("TYPE_UINT8", "TYPE_UINT9")):
        (tmp_path / "config.pbtxt").write_text(text.replace(old, new))
        with pytest.raises(text_format.ParseError):
            config_of(tmp_path)


@pytest.mark.parametrize(("tokens", "steps"), [(16, 1), (0, 1), (-1, 3)])
def test_key_and_continuation_clips_are_the_codecs(ask: Any, codec: VideoCodec, tokens: int, steps: int) -> None:
    frames = make_clip(33, 40, 60)
    packets = codec.encode(frames, tokens="auto" if tokens < 0 else tokens, cuts=False)
    expected = codec.decode(packets, num_steps=steps, seed=9)
    shown: list[np.ndarray] = []
    for packet in packets:
        own = frames[packet.first_frame : packet.first_frame + packet.frames]
        before = {} if packet.is_key else {"context_frame": frames[packet.first_frame - 1]}
        coded = ask("encode", frames=own, tokens=tokens, **before)
        np.testing.assert_array_equal(coded["anchors"], packet.anchors)
        np.testing.assert_allclose(coded["structural"], packet.structural, atol=1e-5)
        predicted = coded.pop("predicted_error")
        assert predicted.shape == coded["anchors"].shape
        context = {} if packet.is_key else {"context_frame": shown[-1][-1]}
        options = {"num_steps": steps, "seed": 9, "first_frame": packet.first_frame}
        shown.append(ask("decode", **coded, size=own.shape[:3], **options, **context)["frames"])
    decoded = np.concatenate(shown)
    assert decoded.shape == expected.shape and np.abs(decoded.astype(int) - expected).max() <= 1
    wanted = {"onedva_encoder", "onedva_condition", "onedva_velocity"}
    assert set(ask.calls) == wanted and ask.calls.count("onedva_velocity") == steps * len(packets)


def test_wrong_requests_are_answered_with_an_error(ask: Any) -> None:
    coded = ask("encode", frames=make_clip(5, 32, 32), tokens=0)
    coded.pop("predicted_error")
    with pytest.raises(ValueError, match="num_steps"):
        ask("decode", **coded, size=(5, 32, 32), num_steps=1000)
    with pytest.raises(ValueError, match="structural"):
        ask("decode", **coded, size=(5, 64, 32))


def test_the_verb_writes_it_whole_or_not_at_all(fake_bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "repository"
    command = ["export", str(fake_bundle), "--triton", str(target)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0 and done.stdout.strip() == str(target), done.output
    assert CliRunner().invoke(app, command).exit_code == 2  # it is there already
    assert CliRunner().invoke(app, [*command, "-f"]).exit_code == 0
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine").touch()
    with pytest.raises(BundleError, match="something else"):
        write_triton(read_bundle(fake_bundle), other, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "repository"]
