"""The made-up clip has what makes a video a video: texture, motion and a cut."""

import numpy as np
import pytest

from onedva_runtime.clips import make_clip


def test_the_made_up_clip_is_like_a_video() -> None:
    clip = make_clip(24, 96, 128)
    assert clip.shape == (24, 96, 128, 3)
    assert clip.dtype == np.uint8
    assert np.array_equal(clip, make_clip(24, 96, 128))
    assert not np.array_equal(clip, make_clip(24, 96, 128, seed=1))
    change = np.abs(clip[1:].astype(int) - clip[:-1]).mean((1, 2, 3))
    assert change.argmax() == 11  # the cut, and nothing else, is a jump
    assert change.max() > 2 * np.delete(change, 11).max()
    assert np.delete(change, 11).min() > 1  # something always moves
    gradient = np.abs(np.diff(clip.astype(int), axis=2)).mean()
    assert 1 < gradient < 25  # textured, but not noise
    assert clip.std() > 25
    assert make_clip(1, 1, 1).shape == (1, 1, 1, 3)
    with pytest.raises(ValueError, match="at least 1"):
        make_clip(0)
