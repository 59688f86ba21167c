"""From files to arrays: reading and preprocessing images and sequences."""

from .preprocess import Preprocess, SequencePreprocess
from .reading import ImageError, read_image

__all__ = ["ImageError", "Preprocess", "SequencePreprocess", "read_image"]
