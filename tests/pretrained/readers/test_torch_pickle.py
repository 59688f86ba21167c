"""What torch wrote is read, value for value, without torch."""

import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest

from natten_zoo.pretrained.readers.reader import read_checkpoint
from natten_zoo.pretrained.readers.torch_pickle import read_torch


@pytest.fixture(scope="module")
def tensors():
    from pathlib import Path

    folder = Path(__file__).parents[2] / "fixtures" / "pretrained"
    return read_checkpoint(folder / "tensors.pth").weights


INTEGERS = ("int64", "int32", "int16", "int8", "uint8")
BASE = np.arange(24, dtype=np.float32)
VIEWS = {
    "transposed": BASE.reshape(2, 3, 4).transpose(2, 0, 1),
    "slice": BASE[5:17:3],
    "column": BASE.reshape(6, 4)[:, 1:2],
    "expanded": np.broadcast_to(BASE[3:5], (4, 2)),
    "overlapping": np.lib.stride_tricks.as_strided(BASE[2:], (5, 4), (4, 8)),
    "scalar": BASE[7],
    "empty": np.zeros((0, 3), np.float32),
    "parameter": BASE.reshape(4, 6),
    "tied": BASE.reshape(4, 6),
}


@pytest.mark.parametrize("view", VIEWS)
def test_views_of_one_storage(tensors, view):
    assert tensors[view].shape == VIEWS[view].shape
    assert np.array_equal(np.array(tensors[view]), VIEWS[view])


@pytest.mark.parametrize(
    "dtype",
    ["float32", "float16", "bfloat16", "complex64", "bool", *INTEGERS],
)
def test_every_dtype(tensors, dtype):
    values = np.arange(-3, 9).reshape(3, 4) * 0.5
    if dtype in INTEGERS:
        values = values.astype(np.int64)  # torch truncates
    if dtype == "uint8":
        values %= 256
    kind = mx.bool_ if dtype == "bool" else getattr(mx, dtype)
    expected = mx.array(values.astype(np.float32)).astype(kind)
    assert tensors[dtype].dtype == kind
    assert mx.array_equal(tensors[dtype], expected)


def test_float64_becomes_float32(tensors):
    assert tensors["float64"].dtype == mx.float32
    assert mx.array_equal(tensors["float64"], tensors["float32"])


def test_tied_weights_are_one_array(tensors):
    assert tensors["tied"] is tensors["parameter"]


def test_big_endian_archive(torch_zip):
    path = torch_zip.write(
        torch_zip.dictionary(w=torch_zip.tensor(), h=torch_zip.tensor("1", "BFloat16Storage", 6)),
        {"0": np.arange(6, dtype=">f4"), "1": np.array([0x3F80, 0x4000, 0, 0, 0, 0], ">u2")},
        members={"archive/byteorder": b"big"},
    )
    weights = read_checkpoint(path).weights
    assert weights["w"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert weights["h"].tolist() == [[1, 2, 0], [0, 0, 0]]


def test_untyped_storage_with_a_dtype(torch_zip):
    program = torch_zip.dictionary(
        w=torch_zip.tensor(kind="UntypedStorage", count=24, dtype="float32"),
        u=torch_zip.tensor(
            kind="UntypedStorage", count=24, dtype="uint16", shape=(3,), stride=(2,), offset=1
        ),
    )
    weights = read_checkpoint(torch_zip.write(program)).weights
    assert weights["w"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert weights["u"].dtype == mx.uint16
    assert weights["u"].tolist() == np.arange(6, dtype="<f4").view("<u2")[1:7:2].tolist()


def test_unaligned_storage(torch_zip):
    for pad in range(1, 5):
        path = torch_zip.write(
            torch_zip.dictionary(w=torch_zip.tensor()),
            root="a" * pad,
            members={"a" * pad + "/v": b""},
        )
        assert read_checkpoint(path).weights["w"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_parts_that_are_not_the_weights_are_not_read(data):
    file = read_torch(data / "timm.pth")
    read_checkpoint(data / "timm.pth")
    assert set(file.root["optimizer"]["state"][0]) == {"exp_avg"}
    assert file._arrays == {}


def test_metadata_stay_inert(data):
    loaded = {*sys.modules}  # other tests may have imported torch
    checkpoint = read_checkpoint(data / "mmcv.pth")
    meta = checkpoint.metadata["meta"]
    assert meta["CLASSES"] == ("wall", "building")
    assert meta["PALETTE"].array.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert meta["counts"] == {"wall": 3}
    assert meta["size"] == (2, 3)
    assert meta["cfg"].name == "mmcv_somewhere.config.Config"
    assert checkpoint.ignored == ("mmcv_somewhere.config.Config", "pathlib.PosixPath")
    assert "mmcv_somewhere" not in sys.modules and {*sys.modules} <= loaded


MEASURE = """
import re, resource, sys
import mlx.core as mx
from natten_zoo.pretrained.readers.reader import read_checkpoint
def peak():
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Not ru_maxrss: Linux counts the parent's memory from before exec in it.
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = peak()
mx.eval(read_checkpoint(sys.argv[1]).weights)
print(peak() - before)
"""


def test_a_file_is_not_held_twice(torch_zip):
    count, number = 1 << 20, 48
    tensor = {"count": count, "shape": (1024, 1024), "stride": (1, 1024)}
    path = torch_zip.write(
        torch_zip.dictionary(
            **{f"w{i}": torch_zip.tensor(str(i), **tensor) for i in range(number)}
        ),
        {str(i): np.full(count, i, np.float32) for i in range(number)},
    )
    run = subprocess.run([sys.executable, "-c", MEASURE, path], capture_output=True, text=True)
    nbytes = 4 * count * number
    assert run.returncode == 0, run.stderr
    assert nbytes < int(run.stdout) < 1.25 * nbytes
