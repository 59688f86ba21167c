"""Reading one image: upright, opaque, 8 bits per channel, whatever the file holds."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
from PIL import Image, ImageOps, JpegImagePlugin, UnidentifiedImageError
from tqdm import tqdm

from .listing import images_in, why_no_file

Item = TypeVar("Item")
Found = TypeVar("Found")
ImageSource = str | os.PathLike[str] | Image.Image | np.ndarray

# Beyond Pillow's own limit (179 million pixels) a JPEG is decoded at a half to an eighth of its
# size, which its format allows without ever holding the whole; other formats are refused.
LARGEST_JPEG = 2**29
DRAFT_SIZE = 2048
REDUCED = "reduced"  # in the `info` of such an image
ORIENTATION = 0x0112  # in EXIF; 1 is upright
BAND = 1 << 20  # pixels that are converted at once


class ImageError(ValueError):
    """An image that cannot be read; the message names the file and the reason."""


def look_at_all(
    look: Callable[[Item], Found], items: Sequence[Item], complaint: str, workers: int
) -> list[Found]:
    """What a look at each of many files finds, in threads and with a progress bar.

    Raises:
        ImageError: Naming what no look succeeded at, up to fifty of it.
    """

    def found_or_why(item: Item) -> tuple[Found | None, str | None]:
        try:
            return look(item), None
        except ImageError as error:
            return None, str(error)

    with ThreadPoolExecutor(workers) as pool:
        done = pool.map(found_or_why, items)
        seen = list(tqdm(done, "checking images", len(items), leave=False, disable=None))
    if bad := [why for _, why in seen if why is not None]:
        raise ImageError(
            f"[data] {len(bad)} of {len(items)} {complaint}:\n  "
            + "\n  ".join(bad[:50] + ([f"... {len(bad) - 50} more"] if len(bad) > 50 else []))
        )
    return [cast(Found, found) for found, _ in seen]


def read_image(source: ImageSource, channels: int = 3) -> Image.Image:
    """Reads an image as the photographer saw it.

    The EXIF orientation is applied, transparent pixels are laid on white (dropping the alpha
    channel would uncover whatever color lies hidden below), 16-bit gray is scaled to 8 bits (not
    clipped), palettes, CMYK and gray are converted; of an animation the first frame is taken.

    Args:
        source: A path, a Pillow image, or an array `[H, W]` or `[H, W, 1 | 3 | 4]` of uint8
            (gray may be uint16).
        channels: 3 for RGB, 1 for gray (ITU-R 601 luma).

    Returns:
        A Pillow image of mode `RGB` or `L`.

    Raises:
        ImageError: If there is no such file, it is no image, is truncated, has more pixels than
            can be decoded safely or a mode without a defined conversion.
        TypeError: If `source` is none of the above.
    """
    if channels not in (1, 3):
        raise ValueError(f"[read_image] 'channels' must be 1 or 3 but got {channels}.")
    if not isinstance(source, str | os.PathLike | Image.Image | np.ndarray):
        raise TypeError(
            "[read_image] 'source' must be a path, a Pillow image or a NumPy array but got "
            f"{type(source).__name__}."
        )
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else "image"
    try:
        if isinstance(source, Image.Image):
            return upright(source, channels)
        if isinstance(source, np.ndarray):
            return upright(_from_array(source), channels)
        with open_image(Path(source)) as image:
            return upright(image, channels)
    except ImageError as error:
        raise ImageError(f"[read_image] {name}: {error}") from None
    except Exception as error:  # readers raise anything on damaged files, RuntimeError to KeyError
        raise ImageError(f"[read_image] {name}: {_reason(name, error)}.") from error


def open_image(path: Path) -> Image.Image:
    """Opens a file without decoding it; a JPEG that is too large as a smaller one (`REDUCED`).

    Raises:
        ImageError: If it is a folder, a pipe or a device, which nothing may ever come from.
        Exception: Whatever Pillow raises of what it cannot open.
    """
    if kind := why_no_file(path):
        empty = kind == "a folder" and not images_in(path)
        raise ImageError("a folder without images." if empty else f"{kind}, not an image.")
    try:
        return Image.open(path)
    except Image.DecompressionBombError as error:
        try:
            # Made directly, the JPEG reader does not check the number of pixels.
            image = JpegImagePlugin.JpegImageFile(str(path))
        except SyntaxError:
            raise error from None
        if image.width * image.height > LARGEST_JPEG:
            image.close()
            raise
        image.draft(None, (DRAFT_SIZE, DRAFT_SIZE))  # the smallest decoding not below this size
        image.info[REDUCED] = True
        return image


def _reason(name: str, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, UnidentifiedImageError):
        if name.lower().endswith((".heic", ".heif")):
            return "HEIC is not read; convert it first, on macOS: sips -s format jpeg IN --out OUT"
        return "not an image in a format that is read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error).rstrip(".") or type(error).__name__


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    gray = array.ndim == 2 and array.dtype in (np.uint8, np.uint16)
    color = array.ndim == 3 and array.shape[2] in (3, 4) and array.dtype == np.uint8
    if not (gray or color):
        raise ImageError(
            "an array must be [H, W] of uint8 or uint16 or [H, W, 1 | 3 | 4] of uint8 but got "
            f"{list(array.shape)} of {array.dtype}."
        )
    if 0 in array.shape:
        raise ImageError(f"an array must not be empty but got {list(array.shape)}.")
    return Image.fromarray(np.ascontiguousarray(array))


def upright(image: Image.Image, channels: int = 3) -> Image.Image:
    """An opened image as the photographer saw it; see [`read_image`][].

    Raises:
        ImageError: Its pixels have no agreed white.
    """
    image.load()  # some formats tell the orientation after the pixels
    if image.getexif().get(ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    mode = "RGB" if channels == 3 else "L"
    if image.mode == "F":
        raise ImageError("floating-point pixels have no agreed white; save it with 8 or 16 bits.")
    if image.mode.startswith("I"):
        return _in_bands(image, mode, _eight_bits)
    if image.has_transparency_data:
        return _in_bands(image, mode, _on_white)
    return image if image.mode == mode else image.convert(mode)


def _in_bands(
    image: Image.Image, mode: str, convert: Callable[[Image.Image], Image.Image]
) -> Image.Image:
    """Converts some rows at a time: a small file can hold an image of half a gigabyte."""
    result = Image.new(mode, image.size)
    rows = max(1, BAND // image.width)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        result.paste(convert(band).convert(mode), (0, top))
    return result


def _on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scales 16-bit gray, which older Pillow opens as 32-bit integers and clips at 255."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError("32-bit pixels have no agreed white; save it with 8 or 16 bits.")
    gray = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    clear = image.info.get("transparency")  # the one gray value that is transparent
    if isinstance(clear, int):
        gray.paste(255, mask=Image.fromarray(values == clear))
    return gray
