"""What training sees of a clip: random windows in space and time, and camera moves over a single frame."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from onedva.cache import Clip

__all__ = ["crop_run", "still_run"]

P_STRIDE_2 = 0.2
P_NATIVE_SCALE = 0.6  # the window is the crop's own size most of the time: what evaluation sees
P_MIRRORED = 0.5
P_BACKWARDS = 0.2  # most motion is as plausible backwards
FASTEST_PAN = 4.0  # pixels per frame
STRONGEST_ZOOM = 1.25  # from the first frame of a run to its last


def crop_run(
    clip: Clip, *, run: int, height: int, width: int, random: np.random.Generator
) -> tuple[NDArray[np.uint8], float]:
    """`run` frames of a clip, every one or every second, through a window that stays: (run, height, width, 3), fps.

    The window is of the crop's own size or up to twice as large, mirrored half the time, now and then backwards.
    """
    total, full_height, full_width = clip.frames.shape[:3]
    stride = 2 if random.random() < P_STRIDE_2 and total >= 2 * run - 1 else 1
    start = random.integers(0, total - stride * (run - 1))
    window = _window(full_height, full_width, height, width, random)
    top = random.integers(0, full_height - window[0] + 1)
    left = random.integers(0, full_width - window[1] + 1)
    time = slice(start, start + stride * (run - 1) + 1, stride)
    frames = np.array(clip.frames[time, top : top + window[0], left : left + window[1]])
    if random.random() < P_MIRRORED:
        frames = frames[:, :, ::-1]
    if random.random() < P_BACKWARDS:
        frames = frames[::-1]
    return _resize(frames, height, width), clip.fps / stride


def still_run(
    clip: Clip, *, run: int, height: int, width: int, random: np.random.Generator
) -> tuple[NDArray[np.uint8], float]:
    """A camera that pans and zooms evenly over one frame: any frame is also footage. Shapes as for `crop_run`."""
    total, full_height, full_width = clip.frames.shape[:3]
    frame = np.array(clip.frames[random.integers(0, total)])[None]
    window = _window(full_height, full_width, height, width, random)
    # scaled first, antialiased, so that a window of the crop's size is at hand and moves by interpolation alone
    tall, wide = (max(crop, round(crop * full / part)) for crop, full, part in
                  ((height, full_height, window[0]), (width, full_width, window[1])))  # fmt: skip
    frame = _resize(frame, tall, wide)
    zoom = STRONGEST_ZOOM ** random.uniform(-1, 1)
    sizes = np.linspace(1, zoom, run) / max(1.0, zoom)  # of the window, as a share of the crop; never beyond it
    room = np.array([tall - height, wide - width], dtype=np.float64) / 2  # from the middle to where an edge is met
    begin = random.uniform(-room, room)
    end = np.clip(begin + random.uniform(-FASTEST_PAN, FASTEST_PAN, 2) * (run - 1), -room, room)
    centres = np.linspace(begin, end, run)
    if random.random() < P_MIRRORED:
        frame = frame[:, :, ::-1]
    # affine_grid: output corners at ±1 go to size·(crop / frame) around the centre, in the frame's own ±1
    moves = np.zeros((run, 2, 3), np.float32)
    moves[:, 0, 0], moves[:, 1, 1] = sizes * width / wide, sizes * height / tall
    moves[:, 0, 2], moves[:, 1, 2] = 2 * centres[:, 1] / wide, 2 * centres[:, 0] / tall
    grid = F.affine_grid(torch.from_numpy(moves), [run, 3, height, width], align_corners=False)
    picture = torch.from_numpy(frame.copy()).permute(0, 3, 1, 2).float().expand(run, -1, -1, -1)
    video = F.grid_sample(picture, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return video.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy(), clip.fps


def _window(full_height: int, full_width: int, height: int, width: int, random: np.random.Generator) -> tuple[int, int]:
    """Height and width of what is cut out to become a crop of height × width: of its shape, and inside the frame."""
    most = min(full_height / height, full_width / width, 2.0)
    zoom = min(1.0, most) if random.random() < P_NATIVE_SCALE else random.uniform(min(0.75, most), most)
    return min(round(height * zoom), full_height), min(round(width * zoom), full_width)


def _resize(frames: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    if frames.shape[1:3] != (height, width):
        video = torch.from_numpy(frames.copy()).permute(0, 3, 1, 2)  # NumPy counts one frame backwards as contiguous
        video = F.interpolate(video, size=(height, width), mode="bilinear", antialias=True)
        frames = video.permute(0, 2, 3, 1).numpy()
    return np.ascontiguousarray(frames)
