import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from generators import SIDE, nano_autoencoder
from onedva.checkpoint import load_model, save_model
from onedva.generation.latent_shards import LatentSet, read_plan, shard_path
from onedva.generation.scenes import CLASSES
from onedva.generation.tokenise import centre_crop, make_plan, tokenise
from onedva.model import OneDVA, to_video
from onedva.shards import pack_folder
from onedva_runtime.video_io import open_reader

SLOWLY = """
import sys, time
from pathlib import Path
import torch
from onedva.generation import tokenise as module
torch.set_num_threads(1)
where, output, model, size = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
real = module.write_shard
def slow(path, *rest, **more):
    real(path, *rest, **more)
    print(path.name, flush=True)
    (output / ".latents-000002.safetensors.1.tmp").write_bytes(b"half")
    time.sleep(60)
module.write_shard = slow
plan = module.make_plan(where, model, size=(size, size), continuation=True, videos_per_shard=6)
module.tokenise(where, output, plan, model=model)
"""


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.safetensors"))}


@pytest.fixture
def plan(scenes, autoencoder):
    return make_plan(scenes, autoencoder, size=(SIDE, SIDE), continuation=True, videos_per_shard=6)


def test_latents_are_the_models_own(scenes, autoencoder, latents):
    data, model = LatentSet(latents), OneDVA.from_pretrained(autoencoder)
    assert len(data) == 2 * len(CLASSES) and data.plan.classes == CLASSES and data.plan.tokens == 9
    index = data.names.index("orbit/00001.mp4#0")
    with open_reader(scenes / "orbit" / "00001.mp4") as reader:
        video = to_video(torch.from_numpy(np.concatenate([part for part, _ in reader]))[None])
    row = data.rows(np.array([index]))
    z = model.encode(video, anchors=row.anchors).latent_dist.mode()
    torch.testing.assert_close(row.structural, z.structural, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(row.latents, z.latents, atol=2e-3, rtol=2e-3)
    assert row.label.item() == CLASSES.index("orbit") == data.labels[index]
    goes_on = data.rows(np.array([index]), continuation=True)
    z = model.encode(video, anchors=goes_on.anchors, is_key=torch.zeros(1, dtype=torch.bool)).latent_dist.mode()
    torch.testing.assert_close(goes_on.structural[:, 1:], z.structural[:, 1:], atol=2e-3, rtol=2e-3)
    assert not goes_on.structural[:, 0].any()
    first = model.encode(video[:, :, :1], anchors=torch.arange(9)[None]).latent_dist.mode()
    assert goes_on.first is not None
    torch.testing.assert_close(goes_on.first[..., :6], first.structural[:, 0], atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(goes_on.first[..., 6:].flatten(1, 2), first.latents, atol=2e-3, rtol=2e-3)


def test_a_killed_run_goes_on_without_losing_or_doubling_a_clip(scenes, autoencoder, latents, plan, tmp_path):
    output = tmp_path / "latents"
    command = [sys.executable, "-c", SLOWLY, str(scenes), str(output), str(autoencoder), str(SIDE)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert process.stdout is not None and process.stdout.readline().strip() == "latents-000000.safetensors"
    while not list(output.glob(".*.tmp")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with pytest.raises(FileNotFoundError, match=r"lacks 2 of 3 shards.*onedva tokenize --resume"):
        LatentSet(output)
    with pytest.raises(FileExistsError, match="--resume"):
        tokenise(scenes, output, plan, model=autoencoder)
    written = shard_path(output, 0).stat().st_mtime_ns
    advanced = []
    done = tokenise(scenes, output, plan, model=autoencoder, resume=True, advance=advanced.append)
    assert (done.present, done.shards, done.clips) == (1, 2, 10) and sum(advanced) == 3
    assert shard_path(output, 0).stat().st_mtime_ns == written and not list(output.glob(".*.tmp"))
    assert sorted(LatentSet(output).names) == sorted(set(LatentSet(latents).names))
    assert digests(output) == digests(latents)


def test_a_resumed_run_must_have_the_same_plan(scenes, autoencoder, latents):
    for changes, named in (
        ({"videos_per_shard": 5}, "videos_per_shard"),
        ({"split": "dev"}, "split, videos, labels"),
        ({"clips_per_video": 1}, "clips_per_video"),
    ):
        other = make_plan(
            scenes, autoencoder, size=(SIDE, SIDE), continuation=True, **{"videos_per_shard": 6, **changes}
        )
        with pytest.raises(ValueError, match=rf"begun with another plan \({named}\)"):
            tokenise(scenes, latents, other, model=autoencoder, resume=True)


def test_workers_make_the_same_shards(scenes, autoencoder, latents, plan, tmp_path):
    done = tokenise(scenes, tmp_path / "latents", plan, model=autoencoder, workers=2)
    assert done.clips == 16 and digests(tmp_path / "latents") == digests(latents)


def test_shards_of_videos_give_the_same_latents(scenes, autoencoder, latents, tmp_path):
    pack_folder(scenes, tmp_path / "packed", split="train")
    plan = make_plan(tmp_path / "packed", autoencoder, size=(SIDE, SIDE), continuation=True, videos_per_shard=6)
    assert plan == read_plan(latents)
    tokenise(tmp_path / "packed", tmp_path / "latents", plan, model=autoencoder)
    assert digests(tmp_path / "latents") == digests(latents)


def test_long_videos_give_several_clips_and_short_ones_are_skipped(autoencoder, write_video, tmp_path):
    (tmp_path / "videos" / "wide").mkdir(parents=True)
    write_video(tmp_path / "videos" / "wide" / "long.mp4", frames=13, height=96, width=128)
    write_video(tmp_path / "videos" / "short.mp4", frames=4)
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"no video")
    plan = make_plan(tmp_path / "videos", autoencoder, size=(48, 64), tokens=4)
    done = tokenise(tmp_path / "videos", tmp_path / "latents", plan, model=autoencoder)
    data = LatentSet(tmp_path / "latents")
    assert data.names == ["wide/long.mp4#0", "wide/long.mp4#1"]
    assert plan.classes == ("wide",) and [len(line) for line in plan.labels] == [3] and 1 in plan.labels[0]
    assert len(done.skipped) == 2 and any("short.mp4: 4 frames, 5 needed" in line for line in done.skipped)
    assert data.rows(np.arange(2)).structural.shape == (2, 2, 3, 4, 6)


def test_a_set_without_clips_is_named(autoencoder, write_video, tmp_path):
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "short.mp4", frames=4)
    plan = make_plan(tmp_path / "videos", autoencoder, size=(48, 64))
    assert tokenise(tmp_path / "videos", tmp_path / "latents", plan, model=autoencoder).clips == 0
    assert load_file(shard_path(tmp_path / "latents", 0))["structural"].shape[0] == 0
    with pytest.raises(FileNotFoundError, match="all its videos were skipped"):
        LatentSet(tmp_path / "latents")


def test_placed_anchors_follow_the_clip(scenes, autoencoder, tmp_path):
    plan = make_plan(scenes, autoencoder, size=(SIDE, SIDE), anchors="generated", tokens=4, videos_per_shard=16)
    tokenise(scenes, tmp_path / "latents", plan, model=autoencoder)
    anchors = LatentSet(tmp_path / "latents").rows(np.arange(16)).anchors
    assert len({tuple(row.tolist()) for row in anchors}) > 4


def test_a_crop_covers_and_keeps_the_middle():
    frames = np.zeros((1, 100, 300, 3), np.uint8)
    frames[:, :, 150:] = 255
    cropped = centre_crop(frames, 48, 64)
    assert cropped.shape == (1, 48, 64, 3)
    assert cropped[0, :, :30].max() < 30 and cropped[0, :, 34:].min() > 225


def test_bad_plans_are_refused(scenes, autoencoder, tmp_path):
    with pytest.raises(ValueError, match="multiples of 16"):
        make_plan(scenes, autoencoder, size=(50, 48))
    with pytest.raises(ValueError, match="at most the model's 5, got 9"):
        make_plan(scenes, autoencoder, size=(48, 48), frames=9)
    with pytest.raises(FileNotFoundError):
        make_plan(tmp_path / "nothing", autoencoder, size=(48, 48))
    with pytest.raises(FileNotFoundError, match="onedva tokenize"):
        LatentSet(tmp_path)


def test_a_decoder_may_change_under_the_same_latents(autoencoder, tmp_path):
    from onedva.generation.checkpoint import latent_space

    model = nano_autoencoder()
    model.decoder.patch_out.weight.data.add_(1)
    zero = model.encoder.structural_head.bias.data
    zero[0] = 0.0
    save_model(model, tmp_path / "zero")
    zero[0] = -0.0
    save_model(model, tmp_path / "negative")
    assert latent_space(tmp_path / "zero") == latent_space(tmp_path / "negative"), "an average of weights has no −0"
    model.encoder.structural_head.bias.data.copy_(nano_autoencoder().encoder.structural_head.bias)
    save_model(model, tmp_path / "decoder")
    model.encoder.patch_in.weight.data.add_(1)
    save_model(model, tmp_path / "encoder")
    assert latent_space(tmp_path / "decoder") == latent_space(autoencoder) != latent_space(tmp_path / "encoder")
    save_model(model, tmp_path / "shipped", dtype=torch.float16)  # as bundles are; training on leaves float32
    save_model(load_model(tmp_path / "shipped"), tmp_path / "trained")
    assert latent_space(tmp_path / "trained") == latent_space(tmp_path / "shipped")


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_ray_job_gives_the_same_shards(scenes, autoencoder, latents, plan, tmp_path):
    ray = pytest.importorskip("ray")
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    from onedva.generation.ray_job import tokenise_on_ray

    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)  # a second node, with a raylet of its own, on this machine
        output = tmp_path / "latents"
        tokenise_first = {"model": autoencoder, "address": cluster.address}
        ray.init(address=cluster.address, log_to_driver=False)
        assert len(ray.nodes()) == 2
        done = tokenise_on_ray(scenes, output, plan, **tokenise_first)
        assert (done.shards, done.clips, done.skipped) == (3, 16, ()) and digests(output) == digests(latents)
        shard_path(output, 1).unlink()
        done = tokenise_on_ray(scenes, output, plan, resume=True, **tokenise_first)
        assert (done.present, done.shards) == (2, 1) and digests(output) == digests(latents)
    finally:
        ray.shutdown()
        cluster.shutdown()
