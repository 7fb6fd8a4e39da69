"""Engines in the cache, without building any: which lengths share a profile, and what a key depends on."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from onedva_export.to_tensorrt import input_profiles
from onedva_runtime.bundle import Bundle, read_bundle
from onedva_runtime.engines import EngineOptions, Gpu, buckets, engine_facts, profile_of
from onedva_runtime.errors import BackendError
from onedva_runtime.private_cache import cache_key

SIZE = (5, 32, 48)
H100 = Gpu("Fake H100", "9.0", "10.16.1.11")


@pytest.fixture(scope="module")
def bundle(fake, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The fake bundle with graphs of one clip size: 12 positions, so at most 12 latents."""
    return read_bundle(fake.make_fake_bundle(tmp_path_factory.mktemp("trt") / "fake-v1", static=[SIZE]))


# Profiles


@pytest.mark.parametrize(
    ("profiles", "longest", "expected"),
    [
        ((64, 256, 1024), 1024, ((1, 64), (65, 256), (257, 1024))),
        ((64, 256, 1024), 320, ((1, 64), (65, 256), (257, 320))),
        ((64,), 1024, ((1, 64), (65, 1024))),
        ((64, 256), 64, ((1, 64),)),
        ((64, 256), 12, ((1, 12),)),
        ((1,), 1, ((1, 1),)),
    ],
)
def test_buckets_are_disjoint_and_cover_every_length(profiles, longest, expected) -> None:
    assert buckets(profiles, longest) == expected
    covered = [length for low, high in expected for length in range(low, high + 1)]
    assert covered == list(range(1, longest + 1))


def test_a_length_finds_its_profile_at_and_between_the_edges() -> None:
    profiles = buckets((64, 256, 1024), 1024)
    found = [profile_of(profiles, tokens) for tokens in (1, 63, 64, 65, 200, 256, 257, 1024)]
    assert found == [0, 0, 0, 1, 1, 1, 2, 2]
    for tokens in (0, 1025):
        with pytest.raises(BackendError, match=rf"no profile for {tokens} latents: the engine was built for 1 to 1024"):
            profile_of(profiles, tokens)


def test_every_input_has_its_shapes(bundle: Bundle) -> None:
    static = bundle.manifest.tensorrt[0]
    first, second = input_profiles(static.graphs["condition"], ((1, 4), (5, 12)), max_batch=2)
    assert first["latents"] == [[1, 1, 3], [1, 4, 3], [2, 4, 3]]
    assert second["latents"] == [[1, 5, 3], [1, 12, 3], [2, 12, 3]]
    assert second["structural"] == [[1, 2, 2, 3, 3], [1, 2, 2, 3, 3], [2, 2, 2, 3, 3]]
    assert set(first) == {value.name for value in static.graphs["condition"].inputs}


@pytest.mark.parametrize(
    "wrong",
    [{"profiles": (64, 64)}, {"profiles": ()}, {"profiles": (0, 4)}, {"max_batch": 0}, {"opt_level": 6}],
)
def test_options_that_make_no_sense_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match=r"must be"):
        EngineOptions(**wrong)


# Keys


def test_the_key_changes_with_what_the_engine_depends_on_and_with_nothing_else(bundle: Bundle, tmp_path: Path) -> None:
    static, options = bundle.manifest.tensorrt[0], EngineOptions()
    same = engine_facts(bundle, static, "velocity", options, H100)

    def key(*, of: Bundle = bundle, graph: str = "velocity", options: EngineOptions = options, gpu: Gpu = H100) -> str:
        return cache_key(engine_facts(of, static, graph, options, gpu))

    manifest = bundle.manifest
    other_weights = replace(bundle, manifest=replace(manifest, model=replace(manifest.model, fingerprint="0" * 64)))
    file = static.graphs["velocity"].file
    other_graph = replace(
        bundle,
        manifest=replace(manifest, files={**manifest.files, file: replace(manifest.files[file], sha256="1" * 64)}),
    )
    keys = [
        key(),
        key(of=other_weights),
        key(of=other_graph),
        key(graph="condition"),
        key(gpu=replace(H100, name="Fake A100", capability="8.0")),
        key(gpu=replace(H100, tensorrt="11.4.0")),
        *(
            key(options=replace(options, **{name: value}))
            for name, value in {
                "profiles": (8,),
                "max_batch": 2,
                "workspace_mib": 64,
                "opt_level": 5,
                "hardware_compatible": True,
            }.items()
        ),
    ]
    assert len(set(keys)) == len(keys)
    # nothing else: where it lies, what it is called, what it says of itself, how often and when it is asked
    moved = replace(bundle, folder=tmp_path, manifest=replace(manifest, name="renamed", parity={"new": 1}, tools={}))
    assert key(of=moved) == key() == cache_key(json.loads(json.dumps(same)))
    portable = replace(options, hardware_compatible=True)
    assert key(options=portable) == key(options=portable, gpu=replace(H100, name="Fake L40", capability="8.9"))
    # profiles that come to the same buckets are the same engine
    assert key(options=replace(options, profiles=(12, 99))) == key(options=replace(options, profiles=(12,)))
