"""The bundle's golden test: clips whose latents and decode were stored when the bundle was exported, run again on a
backend of this machine. It says whether that backend computes the same model, within the tolerances of the manifest, or
of the dtype that it computes in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onedva_runtime.backends import Backend
from onedva_runtime.bundle import Bundle
from onedva_runtime.errors import BundleError
from onedva_runtime.graphs import decode_batch, encode_batch
from onedva_runtime.manifest import GoldenCase

__all__ = ["run_golden"]

DEFAULT_TOLERANCE = 5e-3  # of normalised latents, whose deviation is about 1: fp32 backends differ by 1e-4
# What a coarser dtype is held to instead of the manifest's bars: the decode's PSNR in dB, and a latent's difference.
# bf16 keeps 8 bits, so that a latent of 8 may be off by 0.03 before anything was computed with it.
COARSE_BARS = {"fp16": (50.0, 0.05), "bf16": (45.0, 0.25), "int8": (40.0, 0.5)}


def run_golden(bundle: Bundle, backend: Backend, cases: Sequence[GoldenCase] | None = None) -> list[dict[str, Any]]:
    """Run golden cases (all by default) on `backend`.

    Returns for each case its name, whether it passed, the PSNR of the decode against the golden one in dB (capped at
    100), and the largest absolute difference of each golden tensor. Raises BundleError where the golden file is
    unreadable.
    """
    from safetensors.numpy import load_file  # pyright: ignore[reportUnknownVariableType]

    try:
        tensors = load_file(bundle.golden_path)
    except Exception as error:  # SafetensorError derives from Exception only
        raise BundleError(f"{bundle.golden_path.name} is not readable: {error}") from error
    return [
        _run_case(bundle, backend, case, tensors) for case in (bundle.manifest.golden.cases if cases is None else cases)
    ]


def _run_case(
    bundle: Bundle, backend: Backend, case: GoldenCase, tensors: dict[str, npt.NDArray[Any]]
) -> dict[str, Any]:
    try:
        golden = {role: tensors[key][None] for role, key in case.tensors.items()}
        frames, anchors, decoded = golden["frames"], golden["anchors"], golden["decoded"]
        structural, latents = (golden[role].astype(np.float32) for role in ("structural", "latents"))
    except KeyError as error:
        raise BundleError(f"golden case {case.name!r} lacks the tensor {error}") from None
    outputs = encode_batch(backend, frames, anchors, [case.fps])
    got = dict(zip(("structural", "latents", "predicted_error"), outputs, strict=True))
    differences = {role: _difference(got[role], golden[role]) for role in got if role in golden}
    ways = (True, False) if backend.has_one_step and case.num_steps == 1 else (False,)
    psnr = min(
        _psnr(
            decode_batch(
                backend,
                structural,
                latents,
                anchors,
                [case.fps],
                [0],
                sampler=bundle.manifest.sampler,
                num_steps=case.num_steps,
                seed=case.seed,
                shortcuts=way,
            ),
            decoded,
        )
        for way in ways
    )
    tolerances, least = bundle.manifest.tolerances, bundle.manifest.golden.min_psnr_db
    coarse_psnr, coarse = COARSE_BARS.get(backend.dtype, (least, 0.0))
    passed = psnr >= min(least, coarse_psnr) and all(
        difference <= max(tolerances.get(role, DEFAULT_TOLERANCE), coarse) for role, difference in differences.items()
    )
    return {"name": case.name, "passed": passed, "psnr_db": psnr, "max_error": differences}


def _difference(got: npt.NDArray[Any], golden: npt.NDArray[Any]) -> float:
    """Largest absolute difference; infinite where the shapes differ or a value is not a number."""
    if got.shape != golden.shape:
        return math.inf
    difference = float(np.abs(got.astype(np.float32) - golden.astype(np.float32)).max(initial=0))
    return math.inf if math.isnan(difference) else difference


def _psnr(got: npt.NDArray[np.uint8], golden: npt.NDArray[Any]) -> float:
    if got.shape != golden.shape:
        return 0.0
    error = float(np.square(got.astype(np.float64) - golden).mean())
    return min(100.0, 10 * math.log10(255**2 / error)) if error else 100.0
