"""The three ways in which a NIfTI header says where voxels are, and what to do if they differ."""

from __future__ import annotations

from typing import Any

import numpy as np

from .warning import warn

# In the order of NIfTI's own preference.
AFFINES = ("sform", "qform", "pixdim")
# Voxel sizes that differ by more than this share contradict each other.
SIZE_TOLERANCE = 0.01
# Cosine of the largest angle between two axes that counts as a right one: 88 degrees.
SHEAR = 0.035


class AffineError(ValueError):
    """A header does not tell where its voxels are."""


def choose_affine(nibabel: Any, image: Any, choice: str | None) -> np.ndarray:
    """The affine `[4, 4]` of a file, from voxels to its unit of length.

    Args:
        nibabel: The module.
        image: A NIfTI image that it opened.
        choice: `sform` (the affine), `qform` (the quaternion) or `pixdim` (voxel sizes only,
            axes as they lie, the first from right to left). Default: the sform if there is one,
            else the qform, if nothing contradicts it.

    Raises:
        AffineError: There is none, it is not invertible, or nothing was chosen and another one says
            otherwise how large voxels are or which way axes point.
    """
    known = _known(nibabel, image)
    name = choice or next((name for name in AFFINES[:2] if name in known), None)
    if name is None:
        raise AffineError(
            "it has no affine: nothing tells its orientation and voxel size. Choose 'affine' "
            "pixdim to take its axes as they lie"
        )
    if name not in known:
        raise AffineError(f"it has no {name}, only {', '.join(known) or 'nothing'}")
    affine = known[name]
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise AffineError(f"its affine {affine.tolist()} is not invertible")
    if choice is None:
        _check_others(nibabel, known, name, image.shape)
    _check_angles(affine)
    return affine


def _known(nibabel: Any, image: Any) -> dict[str, np.ndarray]:
    header, found = image.header, {}
    # As they stand in the file: nibabel takes zeros for ones, and drops signs.
    place = image.file_map.get("header", image.file_map["image"])
    with nibabel.openers.ImageOpener(place.filename) as file:
        raw = type(header).from_fileobj(file, check=False)
    sizes = np.asarray(raw["pixdim"][1:4], np.float64)
    are_told = bool(np.isfinite(sizes).all() and sizes.all())
    for name in ("sform", "qform")[: 1 + are_told]:
        try:
            affine, code = getattr(header, f"get_{name}")(coded=True)
        except nibabel.spatialimages.HeaderDataError:
            continue  # a quaternion that is none, which matters only if it is chosen
        if code:
            found[name] = affine
    if are_told and (sizes > 0).all():
        found["pixdim"] = header.get_base_affine()
    return found


def _check_others(
    nibabel: Any, known: dict[str, np.ndarray], chosen: str, shape: tuple[int, ...]
) -> None:
    """Refuse a header whose other affines give voxels another size or axes another direction."""
    sizes = {name: np.linalg.norm(affine[:3, :3], axis=0) for name, affine in known.items()}
    differ = any((abs(size / sizes[chosen] - 1) > SIZE_TOLERANCE).any() for size in sizes.values())
    usable = {n: a for n, a in known.items() if n != "pixdim" and abs(np.linalg.det(a)) > 1e-12}
    axes = {name: "".join(nibabel.aff2axcodes(affine)) for name, affine in usable.items()}
    if differ or len(set(axes.values())) > 1:
        facts = [
            f"{name} says voxels of {' x '.join(f'{n:.4g}' for n in sizes[name])}"
            + (f" along {axes[name]}" if name in axes else "")
            for name in known
        ]
        raise AffineError(
            f"its header contradicts itself: {', '.join(facts)}; choose one as 'affine'"
        )
    places = [affine @ _corners(shape) for affine in usable.values()]
    if any(abs(place - places[0]).max() > sizes[chosen].max() for place in places):
        warn(f"sform and qform place a volume differently; the {chosen} is taken")


def _corners(shape: tuple[int, ...]) -> np.ndarray:
    corners = np.indices((2, 2, 2)).reshape(3, -1) * (np.array(shape[:3]) - 1)[:, None]
    return np.vstack([corners, np.ones(8)])


def _check_angles(affine: np.ndarray) -> None:
    """Warn of axes that are not at right angles: the model looks at them as if they were."""
    steps = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = abs(steps.T @ steps - np.eye(3))
    if cosines.max() > SHEAR:
        angle = 90 - np.degrees(np.arccos(np.minimum(cosines.max(), 1)))
        warn(f"a volume's axes are up to {angle:.0f} degrees off a right angle (sheared affine)")
