"""A classifier of the procedural scenes, trained on real ones: what bench/generation.py holds generated clips against.

A small 2D network over all frames of a clip as channels, at 32×32: it sees motion as differences between channels.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

SIDE = 32
EPOCHS, BATCH, RATE = 10, 64, 2e-3
NOISE = 0.05  # the most on pixels of the small frames, in [-1, 1]


class Judge(nn.Module):
    def __init__(self, classes: int, frames: int = 17) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((3 * frames, 64), (64, 96), (96, 128)):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        self.layers, self.out = nn.Sequential(*layers), nn.Linear(128, classes)

    def features(self, small: Tensor) -> Tensor:
        """What `shrink` gives (B, 3·T, 32, 32) → (B, 128)."""
        return self.layers(small).mean(dim=(2, 3))

    def forward(self, small: Tensor) -> Tensor:
        return self.out(self.features(small))


def shrink(frames: NDArray[np.uint8]) -> Tensor:
    """Clips (B, T, H, W, 3) → all their frames at 32×32 as channels, (B, 3·T, 32, 32) in [-1, 1]."""
    parts = []
    for part in np.array_split(frames, max(1, len(frames) // 64)):
        video = torch.from_numpy(part).flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1
        parts.append(F.adaptive_avg_pool2d(video, SIDE).reshape(len(part), -1, SIDE, SIDE))
    return torch.cat(parts)


def train_judge(frames: NDArray[np.uint8], labels: NDArray[np.int64], *, classes: int, seed: int = 0) -> Judge:
    """Fit a judge to clips (N, T, H, W, 3). Mirrored clips keep their class; noise keeps it from looking at pixels."""
    torch.manual_seed(seed)
    judge = Judge(classes, frames.shape[1]).train()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=RATE, weight_decay=0.02)
    steps = EPOCHS * (len(frames) // BATCH)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=steps)
    random, small = np.random.default_rng(seed), shrink(frames)
    for _ in range(EPOCHS):
        order = random.permutation(len(frames))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            rows = order[start : start + BATCH]
            batch = small[torch.from_numpy(rows)]
            for axis in (2, 3):
                if random.random() < 0.5:
                    batch = batch.flip(axis)
            batch = batch + torch.randn(batch.shape) * random.uniform(0, NOISE)
            loss = F.cross_entropy(judge(batch), torch.from_numpy(labels[rows]), label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
    return judge.eval()


@torch.inference_mode()
def judged(judge: Judge, frames: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Classes (N,) and features (N, 128) of clips."""
    features = torch.cat([judge.features(part) for part in shrink(frames).split(64)])
    return judge.out(features).argmax(dim=1).numpy(), features.double().numpy()
