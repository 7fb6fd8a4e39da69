"""A made-up clip with the structure of real video, for a demo or test without one: a panned background of overlapping,
textured shapes, textured sprites that move in front of it, light that changes slowly, and a cut to another scene in the
middle."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def make_clip(frames: int = 48, height: int = 256, width: int = 256, *, seed: int = 0) -> NDArray[np.uint8]:
    """Make a clip (frames, height, width, 3) uint8 RGB; the same arguments give the same clip.

    `frames`, `height`, `width`: at least 1. The second scene starts at frame frames // 2 (one scene where frames is 1).
    Raises ValueError for sizes below 1.
    """
    if min(frames, height, width) < 1:
        raise ValueError(f"frames, height and width must be at least 1, got {frames}, {height}, {width}")
    clip = np.empty((frames, height, width, 3), np.uint8)
    for scene, part in enumerate((clip[: frames // 2], clip[frames // 2 :])):
        _paint_scene(part, np.random.default_rng((seed, scene)))
    return clip


def _paint_scene(clip: NDArray[np.uint8], random: np.random.Generator) -> None:
    frames, height, width = clip.shape[:3]
    side = min(height, width)
    speed = random.uniform(0.4, 1.2, 2) * random.choice((-1, 1), 2) * side / 128  # pixels per frame, in y and x
    margin = np.ceil(np.abs(speed) * frames).astype(int) + 2
    background = _background(random, height + margin[0], width + margin[1], side)
    start = np.where(speed > 0, 0, margin - 2)
    sprites = [_Sprite(random, height, width, side) for _ in range(5)]
    rows = np.linspace(-1, 1, height)[:, None, None]
    for index, picture in enumerate(clip):
        canvas = _shifted(background, start + speed * index, height, width)
        for sprite in sprites:
            sprite.paint(canvas, index)
        canvas *= 1 + 0.12 * np.sin(0.07 * index) * rows  # light that moves over the scene
        np.copyto(picture, np.clip(canvas, 0, 255), casting="unsafe")


class _Sprite:
    """An ellipse with a texture and colour of its own, on a curved path."""

    def __init__(self, random: np.random.Generator, height: int, width: int, side: int) -> None:
        size = max(4, int(side * random.uniform(0.15, 0.4)))
        self._texture, self._alpha = _texture(random, size, size), _ellipse(random, size)
        self._start = random.uniform(0.1, 0.9, 2) * (height, width)
        self._speed = random.uniform(-2, 2, 2) * side / 128
        self._swing, self._phase = random.uniform(0, 0.12) * side, random.uniform(0, 2 * np.pi)

    def paint(self, canvas: NDArray[np.float64], index: int) -> None:
        """Blend the sprite of frame `index` into `canvas` (H, W, 3), cut at its borders, to a fraction of a pixel."""
        swing = self._swing * np.sin(0.15 * index + self._phase) * np.array((1.0, -0.5))
        size = len(self._alpha)
        area = np.array(canvas.shape[:2]) + size  # what leaves on one side comes back on the other
        place = (self._start + self._speed * index + swing) % area - size
        corner = np.floor(place).astype(int)
        size -= 1
        fraction = 1 - (place - corner)
        alpha = _shifted(self._alpha, fraction, size, size)
        texture = _shifted(self._texture, fraction, size, size)
        top, left = np.maximum(corner, 0)
        bottom, right = np.minimum(corner + size, canvas.shape[:2])
        if top < bottom and left < right:
            inside = np.s_[top - corner[0] : bottom - corner[0], left - corner[1] : right - corner[1]]
            under = canvas[top:bottom, left:right]
            under += alpha[inside] * (texture[inside] - under)


def _background(random: np.random.Generator, height: int, width: int, side: int) -> NDArray[np.float64]:
    """Shapes (H, W, 3) of all sizes, each hiding what is behind it ("dead leaves"): edges, textures as in pictures."""
    canvas = _texture(random, height, width)
    for size in np.sort(side * random.uniform(0.05, 1, 60) ** 2)[::-1].astype(int) + 6:
        texture, alpha = _texture(random, size, size), _ellipse(random, size)
        top, left = (int(random.integers(-size // 2, length - size // 2)) for length in (height, width))
        area = canvas[max(top, 0) : top + size, max(left, 0) : left + size]
        inside = np.s_[max(-top, 0) :, max(-left, 0) :]
        alpha, texture = (part[inside][: area.shape[0], : area.shape[1]] for part in (alpha, texture))
        area += alpha * (texture - area)
    return canvas


def _ellipse(random: np.random.Generator, size: int) -> NDArray[np.float64]:
    """Coverage (size, size, 1), 0 to 1, of an ellipse of random shape and direction; its edge is two pixels wide."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    aspect, angle = random.uniform(0.5, 1), random.uniform(0, np.pi)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return np.clip((1 - np.hypot(u, v / aspect)) * aspect * size / 4, 0, 1)[..., None]


def _texture(random: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    """Noise (H, W, 3) around a random colour, smooth or rough, as surfaces are: amplitude 1 / frequency^(1.2 to 2)."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    spectrum = np.maximum(frequency, 1 / max(height, width)) ** -random.uniform(1.2, 2)
    spectrum *= np.exp(
        -((frequency / 0.25) ** 2)
    )  # band-limited, so that moving it by part of a pixel does not shimmer
    spectrum[0, 0] = 0
    noise = np.fft.irfft2(np.fft.rfft2(random.standard_normal((height, width))) * spectrum, (height, width))
    noise *= random.uniform(8, 24) / max(float(noise.std()), 1e-9)
    colour = 127 + random.normal(0, 35) + random.normal(0, 22, 3)
    return colour + noise[..., None] * (1 + random.normal(0, 0.2, 3))


def _shifted(image: NDArray[np.float64], place: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """The window (height, width) of `image` whose corner is at `place` (y, x), in pixels and fractions (bilinear)."""
    y, x = (int(n) for n in np.floor(place))
    fy, fx = place - np.floor(place)
    rows = image[y : y + height + 1]
    mixed = rows[:height] * (1 - fy) + (rows[1 : height + 1] * fy if fy else 0)
    columns = mixed[:, x : x + width + 1]
    return columns[:, :width] * (1 - fx) + (columns[:, 1 : width + 1] * fx if fx else 0)
