"""Video files in and out, through PyAV: the public names. Reading is in video_read, writing in video_write, what may
be opened in video_open, what RGB means in colour."""

from .colour import Colour
from .limits import Limits
from .video_info import Video, VideoInfo
from .video_read import VideoReader, open_reader, probe, read_video
from .video_write import VideoWriter

__all__ = ["Colour", "Limits", "Video", "VideoInfo", "VideoReader", "VideoWriter", "open_reader", "probe", "read_video"]
