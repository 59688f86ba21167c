"""From files to arrays: reading and preprocessing images."""

from .preprocess import Preprocess
from .reading import ImageError, read_image

__all__ = ["ImageError", "Preprocess", "read_image"]
