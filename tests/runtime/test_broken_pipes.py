"""Pipes that break or are interrupted while video is read from them: what came is kept, an interrupt is never lost."""

import io

import pytest

from onedva_runtime.clips import make_clip
from onedva_runtime.errors import VideoError
from onedva_runtime.video_io import open_reader
from onedva_runtime.video_pipe import PipeWriter


class Breaks(io.BytesIO):
    """A stream whose bytes end in an error."""

    def __init__(self, data: bytes, error: BaseException) -> None:
        super().__init__(data)
        self._error = error

    def seekable(self) -> bool:
        return False

    def read1(self, size: int | None = -1) -> bytes:
        data = super().read1(min(size or 4096, 4096))
        if not data:
            raise self._error
        return data


def test_a_pipe_that_breaks_gives_what_came_and_an_interrupt_is_raised(caplog: pytest.LogCaptureFixture) -> None:
    whole = io.BytesIO()
    with PipeWriter(whole, width=64, height=48, fps=25) as writer:
        writer.write(make_clip(20, 48, 64))
    data = whole.getvalue()
    broken = OSError(5, "Input/output error")
    with open_reader(Breaks(data[: len(data) // 2], broken)) as reader:
        assert sum(len(frames) for frames, _ in reader) == reader.info.frames == 9 and reader.info.truncated
    with pytest.raises(VideoError, match=r"the pipe: cannot be read \(Input/output error\)"):
        open_reader(Breaks(data[:20], broken))
    for length in (20, len(data) // 2):
        with pytest.raises(KeyboardInterrupt):  # noqa: SIM117
            with open_reader(Breaks(data[:length], KeyboardInterrupt())) as reader:
                list(reader)
