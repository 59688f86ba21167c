"""Safetensors headers that lie."""

import json

import mlx.core as mx
import numpy as np
import pytest

from natten_zoo.pretrained.readers.errors import CheckpointError
from natten_zoo.pretrained.readers.safetensors_file import ITEMSIZE, read_safetensors


def write(path, header, data=bytes(24), length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + text + data)
    return path


def entry(dtype="F32", shape=(2, 3), begin=0, end=24):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def refused(path, reason):
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_safetensors(path)
    assert str(path) in str(caught.value)


def test_an_honest_file(tmp_path):
    path = write(tmp_path / "w.safetensors", {"w": entry()}, np.arange(6, dtype="<f4").tobytes())
    weights, metadata = read_safetensors(path)
    assert weights["w"].tolist() == [[0, 1, 2], [3, 4, 5]] and metadata == {}


@pytest.mark.parametrize("dtype", ITEMSIZE)
def test_every_dtype_that_passes_can_be_loaded(tmp_path, dtype):
    size = ITEMSIZE[dtype]
    header = {"w": entry(dtype, (2,), 0, 2 * size)}
    path = write(tmp_path / "w.safetensors", header, bytes(2 * size))
    array = read_safetensors(path)[0]["w"]
    assert array.nbytes == 2 * size and not mx.any(array != 0)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"w": entry(end=20)}, "needs 24 bytes but has 20"),
        ({"w": entry(shape=(2, 4))}, "needs 32 bytes but has 24"),
        ({"w": entry(shape=(2, 3, 10**12))}, "needs"),
        ({"w": entry(begin=8, end=32)}, "hole"),
        ({"w": entry(begin=24, end=0)}, "has -24"),
        ({"w": entry(begin=-24, end=0)}, "impossible"),
        ({"w": entry(shape=(-2, -3))}, "impossible"),
        ({"w": entry(shape=(True, 6))}, "impossible"),
        ({"w": entry(shape=(2.0, 3))}, "impossible"),
        ({"w": entry(shape=(1 << 50, 0), end=0)}, "impossible"),
        ({"w": entry("F64")}, "dtype 'F64'"),
        ({"w": entry(["F32"])}, "dtype"),
        ({"a": entry(), "b": entry()}, "overlaps"),
        ({"a": entry(shape=(3,), end=12), "b": entry(shape=(4,), begin=8)}, "overlaps"),
        ({"a": entry(shape=(1,), end=4), "b": entry(shape=(3,), begin=12)}, "hole"),
        ({"a": entry(shape=(3,), end=12)}, "describes 12 bytes of data but the file has 24"),
        ({"a": entry(shape=(8,), end=32)}, "describes 32 bytes of data but the file has 24"),
        ({}, "describes 0 bytes"),
        ({"w": {**entry(), "extra": 1}}, "malformed"),
        ({"w": {"dtype": "F32"}}, "malformed"),
        ({"w": None}, "malformed"),
        ({"w": entry(), "__metadata__": {"format": 1}}, "__metadata__"),
        ({"w": entry(), "__metadata__": "mlx"}, "__metadata__"),
        ([], "no JSON object"),
        (b"{]", "no valid JSON"),
        (b'{"w": \xff}', "no valid JSON"),
        (b'{"a":' * 100_000 + b"}" * 100_000, "no valid JSON"),
        (b'{"a": 1, "a": 2}', "occurs twice"),
    ],
)
def test_lies(tmp_path, header, reason):
    refused(write(tmp_path / "w.safetensors", header), reason)


@pytest.mark.parametrize("length", [0, 1, 10**6, 1 << 40, (1 << 64) - 1])
def test_header_length_that_lies(tmp_path, length):
    refused(write(tmp_path / "w.safetensors", {"w": entry()}, length=length), "truncated")


def test_huge_header(tmp_path):
    path = tmp_path / "w.safetensors"
    with open(path, "wb") as file:  # sparse: takes no room on the disk
        file.write((200_000_000).to_bytes(8, "little"))
        file.truncate(200_000_100)
    refused(path, "more than 100000000")


@pytest.mark.parametrize("keep", [0, 4, 8, 40, -1])
def test_truncated(data, tmp_path, keep):
    content = (data / "dinat-ls-tiny-random" / "model.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(content[:keep])
    refused(tmp_path / "w.safetensors", "truncated|describes")
