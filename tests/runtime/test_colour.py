"""Colour in and out: each matrix, range and format against values computed by hand, through real files."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import cast

import av
import numpy as np
import pytest
from av.video.stream import VideoStream
from numpy.typing import NDArray

from onedva_runtime.errors import VideoError
from onedva_runtime.video_io import Video, VideoWriter, read_video

# (AVColorSpace number, Kr, Kb): ITU-R BT.709, BT.601, SMPTE 240M, BT.2020, FCC
MATRICES = {
    "bt709": (1, 0.2126, 0.0722),
    "bt601": (6, 0.299, 0.114),
    "smpte240m": (7, 0.212, 0.087),
    "bt2020": (9, 0.2627, 0.0593),
    "fcc": (4, 0.30, 0.11),
}
LIMITED, FULL = 1, 2

Source = Callable[..., Video]


def patches(bits: int, *, columns: int = 8, rows: int = 6) -> NDArray[np.uint16]:
    """(3, rows, columns) Y, U, V levels, most of them inside the RGB cube; grey, black and white among them."""
    random = np.random.default_rng(bits)
    levels = np.stack([random.integers(60, 190, (rows, columns)), *random.integers(90, 166, (2, rows, columns))])
    levels[:, 0, :3] = np.array([[16, 235, 126], [128] * 3, [128] * 3])
    return (levels << (bits - 8)).astype(np.uint16)


def to_rgb(levels: NDArray[np.uint16], matrix: str, *, bits: int, full: bool) -> NDArray[np.float64]:
    """R'G'B' 0-255 (rows, columns, 3) of the levels, by the equations of BT.709 §3 and BT.2100 table 9."""
    _, kr, kb = MATRICES[matrix]
    y, u, v = levels.astype(float)
    unit = 2 ** (bits - 8)
    if full:
        y, cb, cr = (plane / (2**bits - 1) for plane in (y, u - 128 * unit, v - 128 * unit))
    else:
        y, cb, cr = (y - 16 * unit) / (219 * unit), (u - 128 * unit) / (224 * unit), (v - 128 * unit) / (224 * unit)
    r, b = y + 2 * (1 - kr) * cr, y + 2 * (1 - kb) * cb
    return np.clip(np.stack([r, (y - kr * r - kb * b) / (1 - kr - kb), b], -1) * 255, 0, 255)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Writes planes of levels, in patches of 16x16 pixels, to a lossless file with the tags given, and reads it."""

    def make(
        levels: NDArray[np.uint16], pixel_format: str, *, codec: str = "ffv1", suffix: str = ".mkv", **tags: int
    ) -> Video:
        big = np.repeat(np.repeat(levels, 16, 1), 16, 2)
        frame = av.VideoFrame(big.shape[2], big.shape[1], pixel_format)
        for plane, values in zip(frame.planes, big, strict=True):
            step = big.shape[2] // plane.width, big.shape[1] // plane.height
            values = values[:: step[1], :: step[0]]
            size = 2 if "16" in pixel_format or "10" in pixel_format else 1
            padded = np.zeros((plane.height, plane.line_size // size), np.uint16 if size == 2 else np.uint8)
            padded[:, : plane.width] = values
            plane.update(padded.tobytes())
        path = tmp_path / f"source{suffix}"
        with av.open(str(path), "w") as container:
            stream = cast(
                VideoStream,
                container.add_stream(codec, rate=25, options={"qp": "0", "crf": "0"} if "264" in codec else {}),
            )
            stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, pixel_format
            for name, value in tags.items():
                setattr(stream.codec_context, name, value)
                setattr(frame, name, value)
            for moment in range(2):
                frame.pts = moment
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return read_video(path)

    return make


def centres(video: Video) -> NDArray[np.float64]:
    assert video.frames.shape[0] == 2
    assert np.array_equal(video.frames[0], video.frames[1])
    return video.frames[0, 8::16, 8::16].astype(float)


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize(
    ("pixel_format", "bits"), [("yuv444p", 8), ("yuv420p", 8), ("yuv420p10le", 10), ("yuv422p10le", 10)]
)
def test_every_matrix_range_and_depth(source: Source, matrix: str, full: bool, pixel_format: str, bits: int) -> None:
    levels = patches(bits)
    video = source(levels, pixel_format, colorspace=MATRICES[matrix][0], color_range=FULL if full else LIMITED)
    colour = video.info.colour
    assert (colour.matrix, colour.full_range, colour.guessed) == (matrix, full, False)
    error = np.abs(centres(video) - to_rgb(levels, matrix, bits=bits, full=full))
    # The scaler narrows 10 bits full range by a shift (1023 to 255.75), which costs 0.75 of a level at white.
    assert error.max() <= (1.3 if full and bits == 10 else 0.6)
    other = to_rgb(levels, "bt709" if matrix != "bt709" else "bt601", bits=bits, full=full)
    assert np.abs(centres(video) - other).max() > 1.5  # the test can tell them apart


def test_values_known_from_the_standards(source: Source) -> None:
    levels = np.zeros((3, 2, 4), np.uint16)
    levels[:, 0] = np.array([(81, 90, 240), (145, 54, 34), (41, 240, 110), (235, 128, 128)]).T  # BT.601 bars
    levels[:, 1] = np.array([(16, 128, 128), (180, 128, 128), (210, 16, 146), (126, 128, 128)]).T
    rgb = centres(source(levels, "yuv444p", colorspace=6, color_range=LIMITED))
    bars = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]
    others = [(0, 0, 0), (191, 191, 191), (255, 255, 0), (128, 128, 128)]
    assert np.abs(rgb - np.array([bars, others])).max() <= 1.5


@pytest.mark.parametrize(
    ("columns", "rows", "matrix"),
    [
        (8, 6, "bt601"),
        (64, 4, "bt601"),
        (45, 5, "bt601"),
        (80, 3, "bt709"),
        (3, 80, "bt709"),
        (60, 45, "bt709"),
        (60, 44, "bt601"),
    ],
)
def test_untagged_video_is_read_by_its_size(source: Source, columns: int, rows: int, matrix: str) -> None:
    levels = patches(8, columns=columns, rows=rows)
    video = source(levels, "yuv420p")
    assert (video.info.colour.matrix, video.info.colour.guessed, video.info.colour.full_range) == (matrix, True, False)
    assert np.abs(centres(video) - to_rgb(levels, matrix, bits=8, full=False)).max() <= 0.6


def test_jpeg_formats_are_full_range_untagged(source: Source) -> None:
    levels = patches(8)
    video = source(levels, "yuvj420p", codec="libx264", suffix=".mp4")
    assert video.info.colour.full_range
    assert np.abs(centres(video) - to_rgb(levels, "bt601", bits=8, full=True)).max() <= 0.6


def test_h264_keeps_its_tags(source: Source) -> None:
    levels = patches(8)
    tags = {"colorspace": 9, "color_primaries": 9, "color_trc": 14, "color_range": FULL}
    video = source(levels, "yuv420p", codec="libx264", suffix=".mp4", **tags)
    assert str(video.info.colour) == "bt2020, full range, primaries bt2020, transfer bt2020"
    assert np.abs(centres(video) - to_rgb(levels, "bt2020", bits=8, full=True)).max() <= 0.6


@pytest.mark.parametrize(("number", "name"), [(16, "pq"), (18, "hlg")])
def test_hdr_undoes_the_matrix_only_and_says_so(
    source: Source, caplog: pytest.LogCaptureFixture, number: int, name: str
) -> None:
    levels = patches(10)
    with caplog.at_level(logging.WARNING, "onedva"):
        video = source(levels, "yuv420p10le", colorspace=9, color_primaries=9, color_trc=number, color_range=LIMITED)
    assert f"HDR ({name}) is read without tone mapping" in caplog.text
    assert video.info.colour.transfer == name
    assert np.abs(centres(video) - to_rgb(levels, "bt2020", bits=10, full=False)).max() <= 0.6


@pytest.mark.parametrize(
    ("pixel_format", "tag", "black", "white"),
    [("gray", 0, 0, 255), ("gray", FULL, 0, 255), ("gray", LIMITED, 16, 235), ("gray16le", LIMITED, 4096, 60160)],
)
def test_grey(source: Source, pixel_format: str, tag: int, black: int, white: int) -> None:
    levels = np.linspace(black, white, 48).round().astype(np.uint16).reshape(1, 6, 8)
    video = source(levels, pixel_format, **({"color_range": tag} if tag else {}))
    rgb = centres(video)
    assert (rgb == rgb[..., :1]).all()
    expected = (levels[0].astype(float) - black) * (255 / (white - black))
    # Deeper limited grey is narrowed to 8 bits before it is stretched: twice rounded.
    assert np.abs(rgb[..., 0] - expected).max() <= (2 if pixel_format == "gray16le" else 0.6)
    assert video.info.colour.matrix == "gray"


def test_grey_h264_is_limited_unless_tagged(source: Source) -> None:
    levels = np.linspace(16, 235, 48).round().astype(np.uint16).reshape(1, 6, 8)
    rgb = centres(source(levels, "gray", codec="libx264", suffix=".mp4"))
    assert np.abs(rgb - ((levels[0] - 16.0) * (255 / 219))[..., None]).max() <= 0.6


@pytest.mark.parametrize(("codec", "pixel_format"), [("libx264rgb", "rgb24"), ("ffv1", "bgr0"), ("png", "rgb24")])
@pytest.mark.parametrize("tag", [LIMITED, FULL])
def test_rgb_is_taken_as_it_is(tmp_path: Path, codec: str, pixel_format: str, tag: int) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (33, 47, 3), np.uint8)
    path = tmp_path / ("rgb.mov" if codec == "png" else "rgb.mkv")
    with av.open(str(path), "w") as container:
        stream = cast(VideoStream, container.add_stream(codec, rate=25, options={"qp": "0"}))
        stream.width, stream.height, stream.pix_fmt = 47, 33, pixel_format
        stream.codec_context.color_range = tag
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=pixel_format)))
        container.mux(stream.encode(None))
    video = read_video(path)
    assert np.array_equal(video.frames[0], picture)
    assert video.info.colour.matrix == "rgb"


def test_an_unknown_matrix_is_refused_by_number(source: Source) -> None:
    with pytest.raises(VideoError, match="matrix number 8"):  # YCgCo
        source(patches(8), "yuv444p", codec="libx264", suffix=".mp4", colorspace=8)


def test_alpha_is_composited_over_black(tmp_path: Path) -> None:
    path = tmp_path / "alpha.mov"
    picture = np.zeros((32, 48, 4), np.uint8)
    picture[..., :3] = 200, 100, 50
    picture[:, :16, 3], picture[:, 16:32, 3], picture[:, 32:, 3] = 255, 128, 0
    with av.open(str(path), "w") as container:
        stream = cast(VideoStream, container.add_stream("qtrle", rate=25))
        stream.width, stream.height, stream.pix_fmt = 48, 32, "argb"
        frame = av.VideoFrame.from_ndarray(picture, format="rgba").reformat(format="argb")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    columns = read_video(path).frames[0, 16, 8::16]
    assert np.abs(columns.astype(int) - [(200, 100, 50), (100, 50, 25), (0, 0, 0)]).max() <= 1


@pytest.mark.parametrize(("width", "suffix"), [(64, ".mp4"), (63, ".mp4"), (64, ".mkv"), (64, ".webm")])
def test_what_goes_out_is_bt709_limited_and_tagged_so(tmp_path: Path, width: int, suffix: str) -> None:
    random = np.random.default_rng(0)
    rgb = random.integers(0, 256, (1, 3, 4, 3)).repeat(16, 1).repeat(16, 2)[:, :, :width].astype(np.uint8)
    path = tmp_path / f"out{suffix}"
    with VideoWriter(path, width=width, height=48, fps=25, crf=0) as writer:
        writer.write(rgb)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    assert frame.format.name == ("yuv420p" if width % 2 == 0 else "yuv444p")
    assert (frame.colorspace, frame.color_range) == (1, LIMITED)
    if suffix != ".webm":  # VP9 itself says matrix and range only; the reader takes the rest from the container
        assert (frame.color_primaries, frame.color_trc) == (1, 1)
    r, g, b = np.moveaxis(rgb[0, 8::16, 8::16].astype(float) / 255, -1, 0)
    y = 0.2126 * r + 0.7152 * g + 0.0722 * b
    expected = 16 + 219 * y, 128 + 224 * (b - y) / 1.8556, 128 + 224 * (r - y) / 1.5748
    for plane, levels in zip(frame.planes, expected, strict=True):
        got = np.frombuffer(cast(memoryview, plane), np.uint8).reshape(-1, plane.line_size)
        step = 16 if plane.width == width else 8
        assert np.abs(got[step // 2 :: step, step // 2 : plane.width : step][:3, :4] - levels).max() <= 1.1
    video = read_video(path)
    assert str(video.info.colour) == "bt709, limited range, primaries bt709, transfer bt709"
    assert np.abs(video.frames[0, 8::16, 8::16].astype(int) - rgb[0, 8::16, 8::16]).max() <= 3
