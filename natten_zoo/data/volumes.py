"""Reading and writing volumes: NIfTI files, their orientation and the size of their voxels."""

from __future__ import annotations

import gzip
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..files import write_whole
from .affines import AFFINES, AffineError, choose_affine
from .listing import why_no_file

VolumeSource = str | os.PathLike[str]
SUFFIXES = (".nii", ".nii.gz")
# What a volume may take, however small its file is, and as a multiple of that: masks deflate well.
FREE = 2 << 30
EXPANSION = 64
# Millimeters per unit; a file that does not tell means millimeters.
UNITS = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}


class VolumeError(ValueError):
    """A volume that cannot be read; the message names the file and the reason."""


@dataclass(frozen=True)
class Volume:
    """A volume whose axes point right, forward and up, however it lies in its file.

    Attributes:
        voxels: `[X, Y, Z, channels]` of float32.
        image: The file's image as nibabel has it, to write masks on its grid.
        chosen: The affine, where another than nibabel's is taken.
    """

    voxels: np.ndarray
    image: Any
    chosen: np.ndarray | None = None

    @property
    def affine(self) -> np.ndarray:
        """From the file's voxels to space, in its unit of length."""
        return self.image.affine if self.chosen is None else self.chosen

    @property
    def size(self) -> tuple[int, ...]:
        """Voxels per axis."""
        return self.voxels.shape[:3]

    @property
    def file_spacing(self) -> tuple[float, ...]:
        """Millimeters per voxel and axis of the file."""
        return tuple(np.linalg.norm(self._steps, axis=0).tolist())

    @property
    def spacing(self) -> tuple[float, ...]:
        """Millimeters per voxel and axis."""
        axes = import_nibabel().io_orientation(self.affine)[:, 0]
        return tuple(self.file_spacing[int(axis)] for axis in np.argsort(axes))

    @property
    def voxel_volume(self) -> float:
        """Cubic millimeters of a voxel."""
        return abs(float(np.linalg.det(self._steps)))

    @property
    def _steps(self) -> np.ndarray:
        """Where one step along each axis of the file leads, in millimeters, as columns."""
        return self.affine[:3, :3] * UNITS[self.image.header.get_xyzt_units()[0]]

    def on_file(self, mask: np.ndarray) -> np.ndarray:
        """A mask `[X, Y, Z]` with the axes of the file."""
        nibabel = import_nibabel()
        own = nibabel.io_orientation(self.affine)
        right = nibabel.orientations.axcodes2ornt("RAS")
        turn = nibabel.orientations.ornt_transform(right, own)
        return nibabel.apply_orientation(mask, turn)


def read_volume(
    path: VolumeSource, *, fill: float | None = None, affine: str | None = None
) -> Volume:
    """Read a volume, or several on one grid as its channels, from a NIfTI file.

    Args:
        path: A `.nii` or `.nii.gz` file of three axes, or of four, the last of them channels.
        fill: What stands for voxels that are no numbers. Default: they are an error.
        affine: Which part of a header that contradicts itself is right, `sform`, `qform` or
            `pixdim`; see [`natten_zoo.data.affines.choose_affine`][]. Default: an error.

    Raises:
        VolumeError: There is no such file, it is damaged or no NIfTI, has other than three or four
            axes, no affine that places it in space or several that contradict each other, or
            voxels that are no numbers.
        ImportError: nibabel is not installed.
        ValueError: `fill` is not finite, or there is no such `affine`.
    """
    path = Path(path)
    if fill is not None and not np.isfinite(fill):
        raise ValueError(f"[read_volume] 'fill' must be finite but got {fill}.")
    if affine not in (None, *AFFINES):
        raise ValueError(
            f"[read_volume] 'affine' must be one of {', '.join(AFFINES)} but got {affine!r}."
        )
    nibabel = import_nibabel()
    try:
        image = _load(nibabel, path)
        chosen = choose_affine(nibabel, image, affine)
        voxels = image.get_fdata(dtype=np.float32, caching="unchanged")
    except VolumeError as error:
        raise VolumeError(f"[read_volume] {path}: {error}") from None
    except AffineError as error:
        raise VolumeError(f"[read_volume] {path}: {error}.") from None
    except Exception as error:  # readers raise anything on damaged files, MemoryError to zlib.error
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"no volume ({error})"
        raise VolumeError(f"[read_volume] {path}: {reason}.") from error
    wrong = ~np.isfinite(voxels)
    if wrong.any():
        if fill is None:
            first = tuple(map(int, np.argwhere(wrong)[0]))
            raise VolumeError(
                f"[read_volume] {path}: {int(wrong.sum()):,} of its voxels are not finite, the "
                f"first at {first}; give a 'fill' to replace them."
            )
        voxels = np.where(wrong, np.float32(fill), voxels)
    turned = nibabel.apply_orientation(voxels, nibabel.io_orientation(chosen))
    turned = turned[..., None] if turned.ndim == 3 else turned
    return Volume(np.ascontiguousarray(turned), image, chosen)


def write_mask(path: VolumeSource, mask: np.ndarray, like: Volume) -> None:
    """Write a mask on the grid of a volume's file: its axes, its affine, its units.

    Args:
        path: A `.nii` or `.nii.gz` file; it appears whole or not at all.
        mask: Class indices `[X, Y, Z]`, axes as in `like.voxels`.
        like: The volume that the mask is of.

    Raises:
        ValueError: The name is none of a NIfTI file, or the mask has another size.
    """
    path = Path(path)
    check_name(path)
    if mask.shape != like.size:
        raise ValueError(f"[write_mask] 'mask' must be {like.size} but got {mask.shape}.")
    nibabel = import_nibabel()
    header = like.image.header.copy()
    dtype = np.uint8 if mask.max(initial=0) < 256 else np.uint16
    header.set_data_dtype(dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0
    is_nifti2 = isinstance(header, nibabel.Nifti2Header)
    kind = nibabel.Nifti2Image if is_nifti2 else nibabel.Nifti1Image
    image = kind(like.on_file(mask.astype(dtype)), like.image.affine, header)
    content = image.to_bytes()
    if path.suffix == ".gz":
        content = gzip.compress(content, mtime=0)
    write_whole(path, lambda file: file.write(content))


def check_name(path: Path) -> None:
    """Refuse a name that is none of a NIfTI file.

    Raises:
        ValueError: It ends in neither `.nii` nor `.nii.gz`.
    """
    if not path.name.lower().endswith(SUFFIXES):
        raise ValueError(f"{path}: the name of a mask must end in .nii or .nii.gz.")


def import_nibabel() -> Any:
    """The module that reads NIfTI.

    Raises:
        ImportError: It is not installed.
    """
    try:
        import nibabel
    except ImportError as error:
        raise ImportError(
            "reading volumes needs nibabel: pip install 'natten-zoo[volumes]'"
        ) from error
    return nibabel


def _load(nibabel: Any, path: Path) -> Any:
    if kind := why_no_file(path):
        raise VolumeError(f"{kind}, not a volume.")
    image = nibabel.load(path)
    if not isinstance(image, nibabel.Nifti1Pair):  # NIfTI-2 is one too
        raise VolumeError(f"a {type(image).__name__}, not a NIfTI file.")
    if image.get_data_dtype().kind not in "iuf":
        raise VolumeError(f"its voxels are {image.get_data_dtype()}, not single numbers.")
    if image.ndim not in (3, 4) or 0 in image.shape:
        raise VolumeError(f"it must have three axes, or four with channels, but is {image.shape}.")
    nbytes = 4 * math.prod(image.shape)  # as float32
    files = [Path(part.filename) for part in image.file_map.values() if part.filename]
    if nbytes > FREE + EXPANSION * sum(file.stat().st_size for file in files):
        raise VolumeError(
            f"it takes {nbytes / 1e9:.1f} GB, more than {EXPANSION} times its size, and is refused."
        )
    if int(image.header["xyzt_units"]) % 8 > 3:
        raise VolumeError("it has an unknown unit of length.")
    return image
