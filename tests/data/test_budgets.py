"""A small file takes one copy of its pixels, and archives and volumes unpack to what they may."""

import gzip
import io
import re
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from natten_zoo.data import archives, volumes
from natten_zoo.data.labeled import open_labeled
from natten_zoo.data.reading import BAND, read_image
from natten_zoo.data.volumes import VolumeError, read_volume

MEASURE = """
import re, resource, sys
from natten_zoo.data.reading import read_image
def peak():
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = peak()
read_image(sys.argv[1], int(sys.argv[2]))
print(peak() - before)
"""
SIDE = 5000


@pytest.mark.parametrize(
    ("mode", "channels", "nbytes"),
    [("RGB", 3, 3), ("RGBA", 3, 4 + 3), ("I;16", 3, 2 + 3), ("LA", 1, 2 + 1), ("L", 1, 1)],
)
def test_one_copy(tmp_path, mode, channels, nbytes):
    path = tmp_path / "flat.png"
    Image.new(mode, (SIDE, SIDE)).save(path)
    assert path.stat().st_size < 1 << 19
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, path, str(channels)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    # Pillow keeps three channels in four bytes, two in four, and decodes 16 bits into four.
    own = {"RGB": 4, "RGBA": 8, "I;16": 8, "LA": 5, "L": 1}[mode]
    assert int(run.stdout) < own * SIDE**2 + (60 << 20)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16", "La", "PA"])
def test_bands_join_without_a_seam(mode):
    rng = np.random.default_rng(0)
    size = (700, 2 * BAND // 700 + 3)
    pixels = rng.integers(0, 256, (size[1], size[0], 4), np.uint8)
    if mode == "I;16":
        image = Image.fromarray(pixels.view(np.uint16)[..., 0].copy())
        values = np.asarray(image).astype(np.int64)
        expected = ((values * 255 + 32767) // 65535).astype(np.uint8)
        assert np.array_equal(np.asarray(read_image(image, 1)), expected)
        return
    image = Image.fromarray(pixels)
    if mode == "P":
        image = image.convert("RGB").quantize(16)
        image.info["transparency"] = 3
    else:
        image = image.convert("RGBa" if mode == "La" else "LA" if mode == "PA" else mode)
    whole = image.convert("RGBA")
    expected = Image.alpha_composite(Image.new("RGBA", size, "white"), whole)
    for channels, kind in ((3, "RGB"), (1, "L")):
        found = read_image(image, channels)
        assert found.mode == kind and np.array_equal(found, expected.convert(kind))


def flat_image(side):
    content = io.BytesIO()
    Image.new("L", (side, side)).save(content, "BMP")
    return content.getvalue()


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_archives_that_unpack_to_too_much(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(archives, "FREE", 1 << 20)
    path, content = tmp_path / f"images.{kind}", flat_image(1200)
    names = [f"{name}/{i}.bmp" for name in ("a", "b") for i in range(3)]
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as package:
            for name in names:
                package.writestr(name, content)
    else:
        with tarfile.open(path, "w:gz") as tar:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    with pytest.raises(ValueError, match="unpacks to more than 20 times its size"):
        open_labeled(path, 0.5, 0, tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))
    monkeypatch.setattr(archives, "FREE", 64 << 20)
    assert open_labeled(path, 0.4, 0, tmp_path / "out").classes == ("a", "b")


def test_a_volume_that_unpacks_to_too_much(tmp_path, monkeypatch):
    nibabel = pytest.importorskip("nibabel")
    path = tmp_path / "v.nii.gz"
    image = nibabel.Nifti1Image(np.zeros((200, 200, 200), np.uint8), np.eye(4))
    path.write_bytes(gzip.compress(image.to_bytes()))
    assert read_volume(path).size == (200, 200, 200)
    monkeypatch.setattr(volumes, "FREE", 1 << 20)
    with pytest.raises(VolumeError, match=re.escape("it takes 0.0 GB, more than 64 times")):
        read_volume(path)
