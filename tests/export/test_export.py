"""onedva_export: a bundle is one file of weights, graphs that point into it, and proof; or nothing is written."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from nano import NANO, nano_model
from onedva.model import OneDVA, to_frames, to_video
from onedva_export import ParityError, export_bundle, to_onnx, verify
from onedva_export.verify import Case
from onedva_export.weights import stored_tensors
from onedva_runtime import VideoCodec
from onedva_runtime.bundle import read_bundle
from onedva_runtime.clips import make_clip
from onedva_runtime.noise import gaussian
from onedva_runtime.seams import soften


def test_bundle_passes_the_runtimes_checks_and_its_own_golden_test(bundle: Path):
    manifest = read_bundle(bundle).manifest
    assert manifest.name == "nano-v1"
    assert manifest.max_tokens == 64
    assert all(case["passed"] for case in VideoCodec.from_pretrained(bundle).selftest())


def test_weights_are_stored_once_in_16_bit(bundle: Path):
    for name in ("encoder", "condition", "velocity"):
        graph = onnx.load(bundle / f"{name}.onnx", load_external_data=False).graph
        inside = [tensor for tensor in graph.initializer if tensor.data_location != onnx.TensorProto.EXTERNAL]
        outside = [tensor for tensor in graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
        assert outside
        assert {entry.value for tensor in outside for entry in tensor.external_data if entry.key == "location"} == {
            "model.safetensors"
        }
        assert all(tensor.ByteSize() < 10_000 for tensor in inside)  # the filter across borders: 48×48 values
    stored = sum(path.stat().st_size for path in bundle.glob("*") if path.name != "golden.safetensors")
    assert stored < 2.3 * OneDVA(NANO).parameters_count + 200_000


def test_graphs_use_only_standard_operators_and_tell_nothing_of_the_machine(bundle: Path):
    for path in bundle.glob("*.onnx"):
        model = onnx.load(path, load_external_data=False)
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 23)]
        assert model.ir_version <= 10
        assert not {node.op_type for node in model.graph.node} & {"Loop", "If", "Scan", "RandomNormal", "RandomUniform"}
        assert b"onedva/" not in path.read_bytes() and b".py" not in path.read_bytes()


def test_bundle_is_a_checkpoint(bundle: Path):
    model = OneDVA.from_pretrained(bundle)
    assert model.config == NANO
    assert model.parameters_count == nano_model().parameters_count


def test_runtime_decodes_what_pytorch_decodes(bundle: Path):
    """Any frame count, an odd size and a length between the multiples go through both, to within rounding."""
    codec, model = VideoCodec.from_pretrained(bundle, backend="onnxruntime"), OneDVA.from_pretrained(bundle)
    frames = make_clip(13, 61, 90, seed=3)
    packet = codec.encode_clip(frames, tokens=37)
    assert packet.tokens == 48
    with torch.inference_mode():
        video = to_video(torch.from_numpy(frames)[None])
        z = model.encode(video, tokens=37, follow_camera=True).latent_dist.mode()
        preview = model.decode(z, num_steps=0).sample[0]
    assert np.array_equal(z.anchors[0].numpy(), packet.anchors)
    assert np.allclose(z.latents[0].numpy(), packet.latents, atol=1e-4)
    pixels = ((preview + 1) * 127.5).clamp(0, 255).round().permute(1, 2, 3, 0).numpy()
    decoded = codec.decode_clip(packet, num_steps=0)
    assert decoded.shape == frames.shape
    assert np.abs(decoded.astype(int) - pixels.astype(int)).max() <= 1


def test_runtime_decodes_the_chain_that_pytorch_decodes(bundle: Path):
    """A key clip, a full and a short continuation, each on its decoder's own last frame: rounding alone parts them."""
    codec, model = VideoCodec.from_pretrained(bundle, backend="onnxruntime"), OneDVA.from_pretrained(bundle)
    source = make_clip(80, 61, 90, seed=3)[:39]
    packets = codec.encode(source, tokens=37, keyframe_interval=0)
    assert [(packet.first_frame, packet.frames, packet.is_key) for packet in packets] == [
        (0, 17, True), (17, 16, False), (33, 6, False),
    ]  # fmt: skip
    decoded = codec.decode(packets, num_steps=2, seed=5)
    last: np.ndarray | None = None
    for packet in packets:
        first = packet.first_frame - (0 if packet.is_key else 1)
        coded = source[first : packet.first_frame + packet.frames]
        coded = np.concatenate([coded, np.repeat(coded[-1:], packet.padded_frames - len(coded), axis=0)])
        noise = gaussian(5, first_frame=first, frames=len(coded), height=64, width=96)
        with torch.inference_mode():
            z = model.encode(
                to_video(torch.from_numpy(coded)[None]),
                tokens=37,
                is_key=torch.tensor([packet.is_key]),
                follow_camera=True,
            ).latent_dist.mode()
            context = None if last is None else to_video(torch.from_numpy(last)[None, None])[:, :, 0]
            video = model.decode(z, num_steps=2, noise=torch.from_numpy(noise)[None], context_frame=context).sample
        assert np.array_equal(z.anchors[0].numpy(), packet.anchors)
        assert np.allclose(z.latents[0].numpy(), packet.latents, atol=1e-4)
        own = to_frames(video)[0][packet.first_frame - first :][: packet.frames]
        own = own if last is None else soften(last, own)
        got = decoded[packet.first_frame : packet.first_frame + packet.frames]
        assert np.abs(got.astype(int) - own.astype(int)).max() <= 1
        last = got[-1]  # both go on from one frame, or one level of rounding would be compared with its consequences


def test_in_context_velocity_model_exports_too(tmp_path: Path):
    """The paper's kind of model: no stem, no preview, no principal components, fixed anchors."""
    config = replace(
        NANO,
        stem_depth=0,
        conditioning="in_context",
        prediction="velocity",
        pca=False,
        anchors="fixed",
        residual_channels=0,
    )
    nano_model(config).save_pretrained(tmp_path / "paper")
    folder = export_bundle(tmp_path / "paper", tmp_path / "bundle", max_tokens=64, resolutions=[])
    codec = VideoCodec.from_pretrained(folder, backend="onnxruntime")
    frames = make_clip(17, 48, 64)
    packet = codec.encode_clip(frames, tokens=16)
    assert codec.decode_clip(packet, num_steps=2).shape == frames.shape
    with pytest.raises(ValueError, match="preview"):
        codec.decode_clip(packet, num_steps=0)


def test_broken_parity_writes_nothing_and_says_where(
    checkpoint: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_graph = to_onnx.write_graph
    entries = json.loads((bundle / "manifest.json").read_text())["graphs"]

    def wrong(plan, folder: Path):
        if plan.name != "velocity":  # of the same checkpoint: exporting it again would take half a minute each
            shutil.copyfile(bundle / f"{plan.name}.onnx", folder / f"{plan.name}.onnx")
            return entries[plan.name]
        bias = plan.module.get_parameter("decoder.patch_out.bias")
        with torch.no_grad():
            bias.add_(3.0)
        entry = write_graph(plan, folder)
        with torch.no_grad():
            bias.sub_(3.0)
        return entry

    monkeypatch.setattr(to_onnx, "write_graph", wrong)
    monkeypatch.setattr(to_onnx, "point_into", lambda graph, weights: 0)
    with pytest.raises(ParityError, match=r"parity broke at 1×1×64×96, 5 latents, key clip .*1 step .* dB"):
        export_bundle(checkpoint, tmp_path / "broken", max_tokens=64, resolutions=[])
    assert list(tmp_path.iterdir()) == []


def test_bad_options_are_refused_before_any_work(checkpoint: Path, bundle: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="1 \\+ 4n, got 16"):
        export_bundle(checkpoint, tmp_path / "x", frames=16)
    with pytest.raises(ValueError, match="at most the model's 17, got 21"):
        export_bundle(checkpoint, tmp_path / "x", frames=21)
    with pytest.raises(FileExistsError, match="there already"):
        export_bundle(checkpoint, bundle)
    with pytest.raises(ValueError, match="at least 16, got 8"):
        export_bundle(checkpoint, tmp_path / "x", max_tokens=8)


def test_parity_report_is_in_the_manifest(bundle: Path):
    parity = json.loads((bundle / "manifest.json").read_text())["parity"]
    cases = [entry["case"] for entry in parity["cases"]]
    assert {0, 1, 37, 64} <= {case["tokens"] for case in cases}
    assert {1, 5, 9, 17} <= {case["frames"] for case in cases}  # each has directions of its own
    assert [True, False, True] in [case["is_key"] for case in cases]
    assert {case["frames"] for case in cases if False in case["is_key"]} == {5, 9, 17}
    assert {entry["optimised"] for entry in parity["cases"]} == {True, False}
    assert parity["worst_db"]["one_step"] >= 60 and parity["worst_db"]["four_step"] >= 50


@pytest.mark.parametrize("frames", [1, 5])
def test_no_case_is_longer_than_the_models_clips(frames: int):
    cases = verify.default_cases(max_tokens=64, frames=frames, resolutions=[(64, 96)])
    assert max(case.frames for case in cases) == frames
    assert any(False in case.is_key for case in cases) == (frames > 1)


def test_verify_sees_a_difference_as_small_as_the_bar(bundle: Path):
    """The proof must be able to fail: an error of what 60 dB allow breaks it at twice that energy, not at half."""
    model = OneDVA.from_pretrained(bundle)
    assert model.transform is not None
    bias, case = model.get_parameter("decoder.patch_out.bias"), Case(9, 64, 64, 16, is_key=(False,))
    coefficients = 4 / 10 ** (verify.ONE_STEP_DB / 10) * 3072 * 9 / 8  # energy of a patch's; one frame of nine is given
    shift = (coefficients / model.transform.remainder_std.square().sum()).sqrt()
    for share, breaks in ((0.5, False), (2.0, True)):
        with torch.no_grad():
            bias.add_(share**0.5 * shift)
        if breaks:
            with pytest.raises(ParityError, match="continuation clip"):
                verify.verify(model, bundle, [case])
        else:
            verify.verify(model, bundle, [case])
        with torch.no_grad():
            bias.sub_(share**0.5 * shift)


def test_graphs_share_the_transform_and_fold_what_is_constant(bundle: Path, tmp_path: Path):
    """One copy of its tables for all graphs; once loaded, no step multiplies, casts or turns what never changes."""
    import onnxruntime

    wanted = {"basis": {"encoder", "condition", "velocity"}, "directions": {"encoder", "condition"}}
    offsets = {stored.name: str(stored.offset) for stored in stored_tensors(bundle / "model.safetensors")}
    for name in ("encoder", "condition", "velocity"):
        graph = onnx.load(bundle / f"{name}.onnx", load_external_data=False).graph
        pointed = {e.value for tensor in graph.initializer for e in tensor.external_data if e.key == "offset"}
        for table, graphs in wanted.items():
            assert (offsets[f"transform.{table}"] in pointed) == (name in graphs)

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(tmp_path / f"{name}.onnx")
        onnxruntime.InferenceSession(bundle / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
        loaded = onnx.load(tmp_path / f"{name}.onnx", load_external_data=False).graph
        constant = {tensor.name for tensor in loaded.initializer}
        idle = [node.op_type for node in loaded.node if node.input and constant.issuperset(filter(None, node.input))]
        assert idle == []


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_one_step_is_one_graph_and_gives_what_the_others_give(bundle: Path, backend: str):
    """Key and continuation clips, whatever the seed: at t = 1 the noise has no weight, so the graph draws none."""
    from onedva_runtime.graphs import decode_batch

    codec = VideoCodec.from_pretrained(bundle, backend=backend, dtype="fp32", threads=1)
    opened, packet = codec._engine.backend, codec.encode_clip(make_clip(13, 64, 96, seed=3), tokens=32)
    context = make_clip(1, 64, 96, seed=4)[0]

    def decode(seed: int, context: np.ndarray | None, *, shortcuts: bool = True) -> np.ndarray:
        return decode_batch(
            opened,
            packet.structural[None],
            packet.latents[None],
            packet.anchors[None],
            [24.0],
            [0],
            sampler=codec.manifest.sampler,
            num_steps=1,
            seed=seed,
            context_frames=[context],
            shortcuts=shortcuts,
        )

    assert opened.has_one_step
    for before in (None, context):
        fast = decode(0, before)
        slow = [decode(seed, before, shortcuts=False) for seed in (0, 1)]
        assert fast.dtype == np.uint8 and fast.shape == slow[0].shape
        assert np.abs(fast.astype(int) - slow[0]).max() <= 1 and (fast != slow[0]).mean() < 1e-3
        assert np.abs(slow[1].astype(int) - slow[0]).max() <= 1
        assert (fast[0, 0] == context).all() == (before is not None)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("steps", [2, 4])
def test_several_steps_in_coefficients_are_the_models(bundle: Path, backend: str, steps: int):
    """Key and continuation clips in one batch, against PyTorch with the same noise."""
    from onedva_runtime.graphs import decode_batch

    codec = VideoCodec.from_pretrained(bundle, backend=backend, dtype="fp32", threads=1)
    frames = np.stack([make_clip(13, 64, 96, seed=seed) for seed in (3, 4)])
    model, key = OneDVA.from_pretrained(bundle).eval(), torch.tensor([True, False])
    video = to_video(torch.from_numpy(frames))
    z = model.encode(video, tokens=32, is_key=key).latent_dist.mode()
    noise = torch.from_numpy(gaussian(5, first_frame=0, frames=13, height=64, width=96))[None].expand(2, -1, -1, -1, -1)
    wanted = to_frames(model.decode(z, num_steps=steps, noise=noise, context_frame=video[:, :, 0]).sample)
    assert codec._engine.backend.has_few_steps
    got = decode_batch(
        codec._engine.backend,
        z.structural.detach().numpy(),
        z.latents.detach().numpy(),
        z.anchors.numpy(),
        [24.0, 24.0],
        [0, 0],
        sampler=codec.manifest.sampler,
        num_steps=steps,
        seed=5,
        context_frames=[None, frames[1, 0]],
    )
    assert got.dtype == np.uint8 and got.shape == frames.shape
    assert np.abs(got.astype(int) - wanted).max() <= 1 and (got != wanted).mean() < 1e-3
    assert (got[1, 0] == frames[1, 0]).all()


def test_only_models_that_decode_in_coefficients_get_the_graphs_for_it(bundle: Path):
    from onedva.few_steps import in_coefficients

    assert in_coefficients(NANO)
    assert all((bundle / f"{name}.onnx").exists() for name in ("one_step", "begin", "step", "finish"))
    assert not in_coefficients(replace(NANO, pca=False))
    assert not in_coefficients(replace(NANO, prediction="velocity", pca=False))
