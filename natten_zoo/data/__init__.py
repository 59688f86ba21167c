"""From files to arrays, and videos back: reading and preprocessing images and sequences."""

from .preprocess import Preprocess, SequencePreprocess
from .reading import ImageError, read_image
from .video_writing import write_video

__all__ = ["ImageError", "Preprocess", "SequencePreprocess", "read_image", "write_video"]
