"""NIfTI in and out: orientation, voxel size and affine are kept; what is no volume is refused."""

import gzip

import numpy as np
import pytest

from natten_zoo.data.volumes import VolumeError, read_volume, write_mask

nibabel = pytest.importorskip("nibabel")


def save(path, voxels, affine=None, kind=nibabel.Nifti1Image, units="mm"):
    affine = np.diag([2.0, 3.0, 4.0, 1.0]) if affine is None else affine
    image = kind(voxels, affine)
    image.header.set_xyzt_units(units)
    nibabel.save(image, path)
    return path


@pytest.fixture
def voxels():
    return np.random.RandomState(0).randint(-1000, 1000, (5, 6, 7)).astype(np.int16)


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SAR", "ILP", "ARI"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_a_mask_lies_where_the_volume_lay(tmp_path, voxels, axes, kind):
    to_axes = nibabel.orientations.axcodes2ornt(axes)
    turn = nibabel.orientations.ornt_transform(nibabel.orientations.axcodes2ornt("RAS"), to_axes)
    base = np.diag([2.0, 3.0, 4.0, 1.0])
    base[:3, 3] = 10, -20, 30
    affine = base @ nibabel.orientations.inv_ornt_aff(turn, voxels.shape)
    turned = nibabel.apply_orientation(voxels, turn)
    path = save(tmp_path / "ct.nii.gz", turned, affine, kind)
    volume = read_volume(path)
    assert np.array_equal(volume.voxels[..., 0], voxels)
    assert volume.spacing == (2.0, 3.0, 4.0) and volume.voxel_volume == pytest.approx(24)
    assert volume.size == (5, 6, 7) and sorted(volume.file_spacing) == [2.0, 3.0, 4.0]
    write_mask(tmp_path / "new/mask.nii.gz", (voxels > 0).astype(np.int32), volume)
    mask = nibabel.load(tmp_path / "new/mask.nii.gz")
    assert mask.shape == turned.shape and mask.get_data_dtype() == np.uint8
    assert np.array_equal(mask.affine, nibabel.load(path).affine) and type(mask) is kind
    assert nibabel.aff2axcodes(mask.affine) == tuple(axes)
    assert np.array_equal(np.asarray(mask.dataobj), turned > 0)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["mask.nii.gz"]


def test_scaled_voxels_channels_and_units(tmp_path, voxels):
    image = nibabel.Nifti1Image(voxels, np.eye(4))
    image.header.set_slope_inter(2, -100)
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "scaled.nii")
    volume = read_volume(tmp_path / "scaled.nii")
    assert np.allclose(volume.voxels[..., 0], nibabel.load(tmp_path / "scaled.nii").get_fdata())
    assert volume.spacing == pytest.approx((1e-3,) * 3)
    assert volume.voxel_volume == pytest.approx(1e-9)
    write_mask(tmp_path / "mask.nii", np.full((5, 6, 7), 300), volume)
    mask = nibabel.load(tmp_path / "mask.nii")
    assert mask.header.get_xyzt_units()[0] == "micron" and (mask.get_fdata() == 300).all()
    four = save(tmp_path / "four.nii.gz", np.stack([voxels, -voxels], axis=-1))
    volume = read_volume(four)
    assert volume.voxels.shape == (5, 6, 7, 2)
    write_mask(tmp_path / "mask.nii", np.ones((5, 6, 7), int), volume)
    assert nibabel.load(tmp_path / "mask.nii").shape == (5, 6, 7)


def test_voxels_that_are_no_numbers(tmp_path, voxels):
    voxels = voxels.astype(np.float32)
    voxels[1, 2, 3], voxels[4, 0, 0] = np.nan, np.inf
    path = save(tmp_path / "mri.nii.gz", voxels)
    with pytest.raises(VolumeError, match=r"mri.nii.gz: 2 of its voxels .* first at \(1, 2, 3\)"):
        read_volume(path)
    volume = read_volume(path, fill=-7)
    assert volume.voxels[1, 2, 3, 0] == volume.voxels[4, 0, 0, 0] == -7
    assert np.isfinite(volume.voxels).all()


def test_an_affine_is_needed(tmp_path, voxels):
    image = nibabel.Nifti1Image(voxels, None)
    image.header["sform_code"] = image.header["qform_code"] = 0
    nibabel.save(image, tmp_path / "lost.nii.gz")
    with pytest.raises(VolumeError, match="it has no affine: nothing tells its orientation"):
        read_volume(tmp_path / "lost.nii.gz")
    for bad in (0.0, np.nan):
        image = nibabel.Nifti1Image(voxels, np.eye(4))
        image.header["srow_x"] = bad
        (tmp_path / "flat.nii").write_bytes(
            image.header.binaryblock + bytes(4) + voxels.tobytes("F")
        )
        content = bytearray((tmp_path / "flat.nii").read_bytes())
        content[108:112] = np.float32(352).tobytes()  # where the voxels begin
        (tmp_path / "flat.nii").write_bytes(content)
        with pytest.raises(VolumeError, match=r"its affine .* is not invertible"):
            read_volume(tmp_path / "flat.nii")


def test_what_is_no_volume(tmp_path, voxels):
    def refused(name, reason):
        with pytest.raises(VolumeError, match=rf"\[read_volume\] .*{name}: {reason}"):
            read_volume(tmp_path / name)

    refused("none.nii.gz", "no such file")
    refused("", "a folder")
    (tmp_path / "text.nii").write_text("not a volume")
    refused("text.nii", "no volume")
    whole = save(tmp_path / "whole.nii.gz", voxels).read_bytes()
    (tmp_path / "half.nii.gz").write_bytes(whole[: len(whole) // 2])
    refused("half.nii.gz", "no volume")
    raw = gzip.decompress(whole)
    (tmp_path / "short.nii").write_bytes(raw[:-10])
    refused("short.nii", "no volume")
    save(tmp_path / "flat.nii.gz", voxels[0])
    refused("flat.nii.gz", r"it must have three axes, or four with channels, but is \(6, 7\)")
    save(tmp_path / "five.nii.gz", voxels[:, :, :, None, None].repeat(2, axis=-1))
    refused("five.nii.gz", "it must have three axes")
    save(tmp_path / "complex.nii.gz", voxels.astype(np.complex64))
    refused("complex.nii.gz", "its voxels are complex64")
    nibabel.save(nibabel.MGHImage(voxels.astype(np.int32), np.eye(4)), tmp_path / "brain.mgz")
    refused("brain.mgz", "a MGHImage, not a NIfTI file")
    volume = read_volume(tmp_path / "whole.nii.gz")
    with pytest.raises(ValueError, match=r"'mask' must be \(5, 6, 7\) but got \(7, 6, 5\)"):
        write_mask(tmp_path / "mask.nii", np.zeros((7, 6, 5), int), volume)
    with pytest.raises(ValueError, match=r"must end in \.nii or \.nii\.gz"):
        write_mask(tmp_path / "mask.png", np.zeros((5, 6, 7), int), volume)


def test_no_nibabel(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "nibabel", None)
    with pytest.raises(ImportError, match=r"pip install 'natten-zoo\[volumes\]'"):
        read_volume(tmp_path / "ct.nii.gz")
