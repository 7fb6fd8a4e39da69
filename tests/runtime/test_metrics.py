"""psnr and ssim against their formulas, computed slowly."""

import numpy as np
import pytest

from onedva_runtime.clips import make_clip
from onedva_runtime.metrics import psnr, ssim


def test_psnr_is_the_formula() -> None:
    random = np.random.default_rng(0)
    a, b = (random.integers(0, 256, (3, 20, 31, 3), np.uint8) for _ in "ab")
    mse = np.mean((a.astype(float) - b.astype(float)) ** 2)
    assert psnr(a, b) == pytest.approx(10 * np.log10(255**2 / mse), abs=1e-9)


def test_psnr_of_known_errors() -> None:
    black = np.zeros((2, 12, 12, 3), np.uint8)
    assert psnr(black, black) == float("inf")
    assert psnr(black, black + 255) == pytest.approx(0)
    assert psnr(black, black + 1) == pytest.approx(48.1308, abs=1e-4)


def _slow_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. 2004, one window at a time."""
    offsets = np.arange(11) - 5
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    weights = np.outer(line, line) / np.outer(line, line).sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for t, c in np.ndindex(a.shape[0], 3):
        for y, x in np.ndindex(a.shape[1] - 10, a.shape[2] - 10):
            p, q = (v[t, y : y + 11, x : x + 11, c].astype(float) for v in (a, b))
            mp, mq = (weights * p).sum(), (weights * q).sum()
            vp, vq = (weights * (p - mp) ** 2).sum(), (weights * (q - mq) ** 2).sum()
            cov = (weights * (p - mp) * (q - mq)).sum()
            values.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    return float(np.mean(values))


@pytest.mark.parametrize("noise", [3, 40])
def test_ssim_is_the_formula(noise: int) -> None:
    a = make_clip(2, 24, 27)
    b = np.clip(a + np.random.default_rng(1).normal(0, noise, a.shape), 0, 255).astype(np.uint8)
    assert ssim(a, b) == pytest.approx(_slow_ssim(a, b), abs=2e-5)


def test_ssim_where_float32_is_tested_most() -> None:
    a = np.full((1, 11, 30, 3), 254, np.uint8)  # bright and almost flat: variances are small beside squared means
    b = a.copy()
    b[:, ::3, ::2] += 1
    assert ssim(a, a) == pytest.approx(1, abs=1e-6)
    assert ssim(a, b) == pytest.approx(_slow_ssim(a, b), abs=1e-3)


def test_wrong_arguments_say_what_is_allowed() -> None:
    a = np.zeros((2, 12, 12, 3), np.uint8)
    for function in (psnr, ssim):
        with pytest.raises(TypeError, match="uint8, got float32"):
            function(a.astype(np.float32), a)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="one shape"):
            function(a, a[:1])
        with pytest.raises(ValueError, match=r"\(\.\.\., H, W, 3\)"):
            function(a[..., 0], a[..., 0])
    with pytest.raises(ValueError, match="at least 11x11"):
        ssim(a[:, :10], a[:, :10])
