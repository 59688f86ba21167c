"""NIfTI headers that contradict themselves: said aloud, with the option that chooses."""

import warnings

import numpy as np
import pytest

from natten_zoo.data.volumes import VolumeError, read_volume, write_mask
from natten_zoo.data.warning import DataWarning

nibabel = pytest.importorskip("nibabel")
VOXELS = np.arange(8 * 9 * 10, dtype=np.float32).reshape(8, 9, 10)


@pytest.fixture
def written(tmp_path):
    """Writes a header as it is asked for: nibabel itself would make it consistent."""

    def write(sform=None, qform=None, pixdim=None):
        image = nibabel.Nifti1Image(VOXELS, None)
        image.set_sform(scale(1, 1, 1) if sform is None else sform, 1)
        image.set_qform(scale(1, 1, 1) if qform is None else qform, 1)
        content = bytearray(image.to_bytes())
        if pixdim is None:
            given = sform if qform is None else qform
            pixdim = np.linalg.norm(given[:3, :3], axis=0)
        content[80:92] = np.array(pixdim, "<f4").tobytes()
        content[252:256] = np.array([qform is not None, sform is not None], "<i2").tobytes()
        (tmp_path / "a.nii").write_bytes(content)
        return tmp_path / "a.nii"

    return write


def scale(*sizes):
    return np.diag([*map(float, sizes), 1.0])


def turned(degrees, *sizes):
    angle = np.radians(degrees)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn @ scale(*sizes)


def quietly(path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_volume(path, **options)


def test_voxel_sizes_that_contradict_each_other(written, tmp_path):
    """As in a public data set of hearts: 1 mm in the sform, 1.3 x 1.3 x 10 mm elsewhere."""
    path = written(scale(-1, -1, 1), scale(-1.3, -1.3, 10))
    with pytest.raises(VolumeError, match=r"sform says voxels of 1 x 1 x 1 .*1\.3 x 1\.3 x 10"):
        read_volume(path)
    for choice, volume in (("sform", 1), ("qform", 16.9), ("pixdim", 16.9)):
        assert quietly(path, affine=choice).voxel_volume == pytest.approx(volume, rel=1e-5)
    read = read_volume(path, affine="qform")
    assert read.spacing == pytest.approx((1.3, 1.3, 10)) == read.file_spacing
    write_mask(tmp_path / "mask.nii.gz", np.ones(VOXELS.shape), read)
    mask = nibabel.load(tmp_path / "mask.nii.gz")  # lies where the file's other readers look
    for form in ("get_sform", "get_qform"):
        assert np.allclose(getattr(mask, form)(), getattr(nibabel.load(path), form)())
    with pytest.raises(ValueError, match="'affine' must be one of sform, qform, pixdim but got"):
        read_volume(path, affine="best")


@pytest.mark.parametrize("forms", [{"sform": scale(2, 2, 2)}, {"qform": scale(2, 2, 2)}])
def test_pixdim_against_one_form(written, forms):
    path = written(**forms, pixdim=(1, 1, 5))
    if "qform" in forms:  # whose voxel sizes are pixdim
        assert quietly(path).spacing == (1, 1, 5)
    else:
        with pytest.raises(VolumeError, match="contradicts itself"):
            read_volume(path)
        assert quietly(path, affine="pixdim").spacing == (1, 1, 5)


def test_axes_that_contradict_each_other(written):
    path = written(scale(2, 2, 2), scale(-2, 2, 2))
    with pytest.raises(VolumeError, match=r"along RAS, qform .* along LAS"):
        read_volume(path)
    right, left = (quietly(path, affine=name).voxels for name in ("sform", "qform"))
    assert np.array_equal(right, left[::-1])


@pytest.mark.parametrize("size", [0.0, np.nan, -2.0])
def test_sizes_that_are_none_do_not_tell(written, size):
    assert quietly(written(scale(2, 2, 2), pixdim=(size, 2, 2))).spacing == (2, 2, 2)


@pytest.mark.parametrize("size", [0.0, np.nan])
def test_a_quaternion_without_sizes(written, size):
    with pytest.raises(VolumeError, match="it has no affine: nothing tells"):
        read_volume(written(qform=scale(2, 2, 2), pixdim=(2, size, 2)))


def test_only_sizes(written):
    path = written(pixdim=(1, 2, 3))
    with pytest.raises(VolumeError, match=r"it has no affine: .* Choose 'affine' pixdim"):
        read_volume(path)
    assert quietly(path, affine="pixdim").spacing == (1, 2, 3)
    with pytest.raises(VolumeError, match="it has no qform, only pixdim"):
        read_volume(path, affine="qform")


def test_a_turn_of_one_form_is_said_and_changes_no_number(written):
    path = written(turned(20, 2, 2, 2), scale(2, 2, 2))
    with pytest.warns(DataWarning, match="sform and qform place a volume differently; the sform"):
        assert read_volume(path).spacing == pytest.approx((2, 2, 2))
    for angle in (0, 0.01):  # rounding is no difference
        assert quietly(written(turned(angle, 2, 2, 2), scale(2, 2, 2))).spacing == pytest.approx(
            (2,) * 3
        )


def test_sheared_axes_are_said(written):
    affine = scale(1, 2, 3)
    affine[1, 2] = 3 * np.tan(np.radians(15))  # a tilted gantry
    affine[:3, 2] *= 3 / np.linalg.norm(affine[:3, 2])
    with pytest.warns(DataWarning, match="15 degrees off a right angle"):
        read = read_volume(written(affine))
    assert read.spacing == pytest.approx((1, 2, 3))
    assert read.voxel_volume == pytest.approx(6 * np.cos(np.radians(15)))


def test_a_fill_must_be_a_number(written):
    with pytest.raises(ValueError, match="'fill' must be finite but got nan"):
        read_volume(written(scale(1, 1, 1)), fill=float("nan"))
