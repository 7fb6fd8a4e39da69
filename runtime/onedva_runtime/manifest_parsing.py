"""manifest.json → `Manifest`: refuses by name what this version does not know (a schema, a placement, a sampler, a
prediction kind, a noise algorithm), and values that make no sense."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import cast

from onedva_runtime.errors import BundleError
from onedva_runtime.manifest import FEW_STEPS, SCHEMA_VERSION, Manifest
from onedva_runtime.typed_json import as_mapping, parse_as

__all__ = ["parse_manifest"]


def parse_manifest(text: str | bytes | Mapping[str, object]) -> Manifest:
    """Parse manifest.json, given as text or as the object it holds.

    Raises BundleError naming the first key that is missing, of the wrong type, or has a value that this version does
    not know.
    """
    try:
        value: object = dict(text) if isinstance(text, Mapping) else json.loads(text)
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise BundleError(f"manifest.json is not readable JSON: {error}") from None
    except RecursionError:
        raise BundleError("manifest.json is not readable JSON: nested too deep") from None
    raw = as_mapping(value, "manifest.json")
    if raw.get("schema") != "onedva-bundle":
        raise BundleError(f"manifest.json has the schema {raw.get('schema')!r}, not 'onedva-bundle'")
    version = raw.get("schema_version")
    if type(version) is not int or version != SCHEMA_VERSION:
        older = type(version) is int and version < SCHEMA_VERSION
        todo = "export the model again with this onedva" if older else "upgrade onedva"
        got = f"the bundle {raw.get('name')!r} has schema version {version!r}"
        raise BundleError(f"{got}; this onedva reads {SCHEMA_VERSION}: {todo}")
    manifest = cast(Manifest, parse_as(Manifest, {**raw, "raw": raw}, "manifest"))
    _check_values(manifest)
    return manifest


def _check_values(manifest: Manifest) -> None:
    """Raise BundleError for numbers that are typed right and make no sense."""
    lengths, clip, sampler = manifest.lengths, manifest.clip, manifest.sampler
    rules = {
        "model.patch must be [4, 16, 16]": manifest.model.patch == (4, 16, 16),
        "model.structural_channels and latent_channels must be positive": min(
            manifest.model.structural_channels, manifest.model.latent_channels
        )
        > 0,
        "preprocessing must be range [0, 255] and multiple 16": manifest.preprocessing.range == (0, 255)
        and manifest.preprocessing.multiple == 16,
        "clip.frames must be 1 + 4n": clip.frames > 0 and clip.frames % 4 == 1,
        "clip.max_video_positions must be positive": clip.max_video_positions > 0,
        "lengths must be at least length_multiple, which must be positive": min(
            lengths.max_tokens, lengths.trained_tokens
        )
        >= lengths.length_multiple
        > 0,
        "policy.density must be finite and not negative": 0 <= manifest.policy.density < float("inf"),
        "sampler.schedule.min_t must be in [0, 1]": 0 <= sampler.schedule.min_t <= 1,
        "sampler steps must be 0 <= default_steps <= max_steps <= 50": 0
        <= sampler.default_steps
        <= sampler.max_steps
        <= 50,
        "graphs must be encoder, condition, velocity and, where they pay, one_step, and begin, step and finish": (
            {"encoder", "condition", "velocity"}
            <= manifest.graphs.keys()
            <= {"encoder", "condition", "velocity", "one_step", *FEW_STEPS, "generator"}
        )
        and (manifest.has_few_steps or not FEW_STEPS & manifest.graphs.keys()),
        "generator must be there with its graph, and only then": (manifest.generator is not None)
        == ("generator" in manifest.graphs),
        "golden.cases must not be empty": len(manifest.golden.cases) > 0,
        "tensorrt must have the names of graphs, frames of 1 + 4n and sides that are multiples of 16": all(
            static.graphs.keys() == manifest.graphs.keys() - {"generator", *FEW_STEPS}
            and static.frames > 0
            and static.frames % 4 == 1
            and min(static.height, static.width) > 0
            and static.height % 16 == static.width % 16 == 0
            for static in manifest.tensorrt
        ),
    }
    if {"condition", "velocity"} <= manifest.graphs.keys():
        given = {value.name for value in manifest.graphs["condition"].outputs}
        rules["graphs.velocity must want nothing that condition does not give"] = given.issuperset(
            manifest.stepping_values
        )
    generator = manifest.generator
    if generator is not None:
        rules |= {
            "generator.frames must be 1 + 4n, at most clip.frames": generator.frames % 4 == 1
            and 0 < generator.frames <= clip.frames,
            "generator.max_tokens and length_multiple must be positive": min(
                generator.max_tokens, generator.length_multiple
            )
            > 0,
            "generator.fps must be positive and finite": 0 < generator.fps < float("inf"),
            "generator.sizes must be (height, width), multiples of 16": len(generator.sizes) > 0
            and all(len(size) == 2 and min(size) > 0 and not any(n % 16 for n in size) for size in generator.sizes),
            "generator.text_tokens and text_channels go together": min(generator.text_tokens, generator.text_channels)
            >= 0
            and (generator.text_tokens > 0) == (generator.text_channels > 0),
        }
    for rule, holds in rules.items():
        if not holds:
            raise BundleError(f"manifest.json: {rule}")
