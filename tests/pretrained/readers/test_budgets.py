"""A small file takes little memory and little time, whatever it describes."""

import itertools
import json
import pickle
import struct
import time
import tracemalloc
import zipfile

import mlx.core as mx
import numpy as np
import pytest

from natten_zoo.pretrained.readers import CheckpointError, read_checkpoint
from natten_zoo.pretrained.readers.budget import MAX_AXES, MAX_SIDE, is_shape, parse_json
from natten_zoo.pretrained.readers.inert import Foreign, hashable

MEGABYTE = 1 << 20
MOST = 300 * MEGABYTE  # of memory that a file of a megabyte or two may make Python take
LONGEST = 20  # seconds of this process, on the slowest machine; each takes one or two


def measured(path, reason=None):
    """Reads a file, or has it refused; it must be done soon and take little."""
    start = time.process_time()
    tracemalloc.start()
    try:
        if reason is None:
            return read_checkpoint(path)
        with pytest.raises(CheckpointError, match=reason) as caught:
            read_checkpoint(path)
        assert len(str(caught.value)) < 2000
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MOST
        assert time.process_time() - start < LONGEST


def calls(torch_zip, function, argument, count):
    """A pickle that gives one argument to a function again and again."""
    module, _, name = function.rpartition(".")
    program = argument + b"\x85q\x010" + torch_zip.name(module, name) + b"q\x020"
    side = b"](" + b"h\x02h\x01R" * count + b"e"
    weights = torch_zip.dictionary(w=torch_zip.tensor())
    return torch_zip.write(program + torch_zip.dictionary(model=weights, side=side))


def test_calls_on_one_argument(torch_zip):
    text = torch_zip.literal("a" * MEGABYTE)
    measured(calls(torch_zip, "_codecs.encode", text, 2000), "pickled objects take more than 8")
    pairs = b"](" + b"](K\x01K\x02e" * 20_000 + b"e"
    measured(
        calls(torch_zip, "collections.OrderedDict", pairs, 2000), "pickled objects take more than 8"
    )
    sizes = b"(" + b"K\x01" * 50_000 + b"t"
    checkpoint = measured(calls(torch_zip, "torch.Size", sizes, 3))
    assert checkpoint.weights["w"].shape == (2, 3)


def numpy_states(torch_zip, count, as_weights):
    reconstruct = torch_zip.name("numpy.core.multiarray", "_reconstruct") + b")R"
    dtype = torch_zip.name("numpy", "dtype") + b"(U\x02f4\x89\x88tR"
    data = b"B" + struct.pack("<I", MEGABYTE) + bytes(MEGABYTE)
    state = b"(K\x01" + torch_zip.literal((MEGABYTE // 4,)) + dtype + b"\x89" + data + b"tq\x010"
    array = reconstruct + b"h\x01b"
    if as_weights:
        body = torch_zip.dictionary(**{f"w{i}": array for i in range(count)})
    else:
        weights = torch_zip.dictionary(w=torch_zip.tensor())
        body = torch_zip.dictionary(model=weights, side=b"](" + array * count + b"e")
    return torch_zip.write(state + body)


def test_one_state_of_many_numpy_arrays(torch_zip):
    assert set(measured(numpy_states(torch_zip, 2000, False)).weights) == {"w"}
    measured(numpy_states(torch_zip, 300, True), "tensors take more than 8 times")


def test_keys_whose_hashes_collide(torch_zip):
    modulus = 2**61 - 1
    numbers = [pickle.dumps(i * modulus, 2)[2:-1] for i in range(1, 60_000)]
    weights = torch_zip.dictionary(w=torch_zip.tensor())
    in_dict = b"}(" + b"N".join(numbers) + b"Nu"
    in_set = b"\x8f(" + b"".join(numbers) + b"\x90"
    for side in (in_dict, in_set):
        path = torch_zip.write(torch_zip.dictionary(model=weights, side=side))
        assert set(measured(path).weights) == {"w"}
    # A memo is a dict, too; indices in text have any size.
    memo = b"".join(b"p%d\n" % (i * modulus) for i in range(1, 20_000))
    measured(torch_zip.write(b"N" + memo + b"0" + weights), "its pickle is damaged")


def test_keys_stand_for_themselves_if_no_file_can_choose_their_hashes():
    for key in ("a", b"a", 3, -(2**59), 0.5, None, True):
        assert hashable(key) is key
    for key in (2**61 - 1, -(2**80), (1, 2), ((1,), "a"), frozenset([1])):
        assert isinstance(hashable(key), Foreign)
    for key in ([], {}, set(), bytearray()):
        with pytest.raises(TypeError):
            hashable(key)


def test_plain_instructions(torch_zip):
    path = torch_zip.write(b"N0" * (3 * MEGABYTE) + b"}")
    start = time.process_time()
    with pytest.raises(CheckpointError, match=r"more than .* instructions"):
        read_checkpoint(path)
    assert time.process_time() - start < LONGEST


def test_objects_are_counted_by_what_they_take(torch_zip):
    containers = b"\x8f" * 350_000 + b"}"
    measured(torch_zip.write(containers), "pickled objects take more than 8")


def test_names_of_weights_are_counted(torch_zip):
    """A long name of a dict is part of all names in it."""
    names = b"}(" + b"".join(torch_zip.literal(f"{i}") + b"h\x05" for i in range(60_000)) + b"u"
    tensor = torch_zip.tensor() + b"q\x050"
    nested = names
    for _ in range(6):
        nested = torch_zip.dictionary(**{"n" * 990: nested})
    measured(torch_zip.write(tensor + nested), "names take more than 8 times")
    long = torch_zip.dictionary(**{"n" * MEGABYTE: torch_zip.tensor(), "w": torch_zip.tensor()})
    assert set(measured(torch_zip.write(long)).weights) == {"w"}


def test_a_web_of_dicts(torch_zip):
    """Dicts that hold one another twice have 2^60 ways through them."""
    web = torch_zip.dictionary(w=torch_zip.tensor()) + b"q\x100"
    for _ in range(60):
        web += torch_zip.dictionary(a=b"h\x10", b=b"h\x10") + b"q\x100"
    measured(torch_zip.write(web + b"h\x10"), "no weights")


@pytest.mark.parametrize("digits", [700, 5000])
def test_integers_of_many_digits(torch_zip, digits):
    number = pickle.dumps(10**digits, 2)[2:-1]
    weights = torch_zip.dictionary(w=torch_zip.tensor())
    path = torch_zip.write(b"}(" + number + b"K\x01" + torch_zip.literal("model") + weights + b"u")
    assert set(measured(path).weights) == {"w"}
    measured(torch_zip.write(b"}(" + number + b"K\x01u"), "no weights")
    arch = torch_zip.dictionary(model=weights, arch=number)
    assert set(read_checkpoint(torch_zip.write(arch)).weights) == {"w"}


def overlapping(path, count, nbytes):
    """An archive whose directory names the same bytes many times."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/data/0", bytes(nbytes))
        info = archive.getinfo("archive/data/0")
        for index in range(1, count):
            other = zipfile.ZipInfo(f"archive/data/{index}")
            other.header_offset, other.CRC = info.header_offset, info.CRC
            other.file_size = other.compress_size = nbytes
            archive.filelist.append(other)
            archive.NameToInfo[other.filename] = other
    return path


def test_members_that_overlap(tmp_path):
    measured(overlapping(tmp_path / "w.pth", 5000, 8 * MEGABYTE), "overlaps another")
    measured(overlapping(tmp_path / "w.npz", 500, MEGABYTE), "overlaps another")


def test_npz_that_deflates_well(tmp_path):
    path = tmp_path / "w.npz"
    np.savez_compressed(path, w=np.zeros(256 * MEGABYTE // 4, np.float32))
    assert path.stat().st_size < MEGABYTE
    measured(path, "arrays take more than 8 times")
    np.savez_compressed(path, w=np.zeros((1000, 1000), np.float32))
    assert measured(path).weights["w"].shape == (1000, 1000)


def npy(header, data=b""):
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


@pytest.mark.parametrize(
    "member",
    [
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 4294967296), }"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }", bytes(4)),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", bytes(8)),
        npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }", bytes(4)),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': 3, }", bytes(12)),
        npy("__import__('os')"),
        b"",
        b"hello",
    ],
)
def test_npz_whose_headers_lie(tmp_path, member):
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("w.npy", member)
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "w.npz")


def test_npz_in_every_order(tmp_path):
    arrays = {"f": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "b": np.arange(3, dtype=">i4")}
    arrays |= {"e": np.zeros((0, 3), np.float32), "s": np.float32(3), "t": np.array([True, False])}
    np.savez(tmp_path / "w.npz", **arrays)
    weights = read_checkpoint(tmp_path / "w.npz").weights
    assert all(np.array_equal(np.array(weights[name]), arrays[name]) for name in arrays)
    assert weights["f"].dtype == mx.float32 and weights["e"].shape == (0, 3)


SHAPES = [(1 << 31,), (0, 1 << 31), (0, 1 << 40), (0,) * (MAX_AXES + 1), (1,) * 100_000]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: str(shape)[:20])
def test_shapes_that_mlx_cannot_have(tmp_path, torch_zip, shape):
    size = 0 if 0 in shape else 4
    entry = {"dtype": "F32", "shape": list(shape), "data_offsets": [0, size]}
    text = json.dumps({"w": entry}).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
    measured(path, "impossible shape")
    reconstruct = torch_zip.name("numpy.core.multiarray", "_reconstruct") + b")R"
    dtype = torch_zip.name("numpy", "dtype") + b"(U\x02f4\x89\x88tR"
    state = b"(K\x01" + torch_zip.literal(shape) + dtype + b"\x89C" + bytes([size]) + bytes(size)
    program = torch_zip.dictionary(w=reconstruct + state + b"tb", v=torch_zip.tensor())
    measured(torch_zip.write(program), "malformed NumPy|axes MLX cannot|wrong length")
    tensor = torch_zip.tensor(shape=shape, stride=(0,) * len(shape))
    measured(torch_zip.write(torch_zip.dictionary(w=tensor)), "a tensor of|more than 8 times")


def test_shapes():
    assert is_shape((0, MAX_SIDE)) and is_shape([]) and is_shape((1,) * MAX_AXES)
    for shape in ("ab", 3, (-1,), (1.0,), (True,), (MAX_SIDE, MAX_SIDE, MAX_SIDE)):
        assert not is_shape(shape)
    for a, b in itertools.permutations((0, 1, MAX_SIDE), 2):
        assert mx.zeros((0, a, b)).shape == (0, a, b)


def test_json_that_is_much_larger_when_it_is_read(tmp_path):
    text = b'{"a":[' + b"[]," * (5 * MEGABYTE) + b"[]]}"
    with pytest.raises(CheckpointError, match="JSON values take more than 8 times"):
        parse_json(tmp_path / "config.json", text, len(text))
    header = len(text).to_bytes(8, "little") + text
    (tmp_path / "w.safetensors").write_bytes(header)
    measured(tmp_path / "w.safetensors", "JSON values take more than 8 times")
    assert parse_json("x", b'{"a": [1, {"b": 2}]}', 20) == {"a": [1, {"b": 2}]}


def test_a_pipe_is_not_waited_for(tmp_path):
    import os

    os.mkfifo(tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="no regular file"):
        read_checkpoint(tmp_path / "w.pth")
