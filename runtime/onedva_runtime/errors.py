"""The errors a user of the runtime can meet, as types. `str(error)` is one clear line that says what was got, what is
allowed and what to do; the command line prints it and exits 2. Wrong arguments to Python functions are plain ValueError
and TypeError."""

__all__ = ["BackendError", "BundleError", "OneDVAError", "PacketError", "VideoError"]


class OneDVAError(Exception):
    """Base of every error that onedva raises on purpose about the outside world: files, bundles, backends."""


class VideoError(OneDVAError):
    """The input is not a video we read: refused format, empty, truncated, or over the reader's limits."""


class BundleError(OneDVAError):
    """A bundle is missing, damaged, tampered with, or of a schema this version does not know."""


class PacketError(OneDVAError):
    """A packet or a latent file is damaged, inconsistent, or was made by another model."""


class BackendError(OneDVAError):
    """A backend is unknown, not installed or not usable; the message names the `pip install 'onedva[…]'` that brings
    it."""
