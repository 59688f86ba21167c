"""Hostile, damaged and foreign files: an error that names file and reason, and nothing runs."""

import os
import pickle
import shutil
import struct
import tarfile
import zipfile

import numpy as np
import pytest

from natten_zoo.pretrained.readers.errors import CheckpointError
from natten_zoo.pretrained.readers.reader import read_checkpoint


def refused(path, reason):
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)


class Payload:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def payload(function, *arguments) -> bytes:
    return pickle.dumps(Payload(function, *arguments), 2)[2:-1]


@pytest.fixture
def tripwire(tmp_path):
    """A path that every payload below would create."""
    path = tmp_path / "tripwire"
    yield path
    assert not path.exists(), "the payload ran"


def call(where: str, tripwire) -> bytes:
    """`os.system("touch tripwire")` by several routes."""
    command = f"touch {tripwire}"
    text, name = pickle.dumps(command, 2)[2:-1], lambda m, a: f"c{m}\n{a}\n".encode()
    return {
        "reduce": payload(os.system, command),
        "eval": payload(eval, f"open({str(tripwire)!r}, 'w')"),
        "getattr": name("builtins", "getattr")
        + b"(" + name("builtins", "__import__") + b"(U\x02ostRU\x06systemtR(" + text + b"tR",
        "dotted": b"\x8c\x02os\x8c\x06system\x93(" + text + b"tR",
        "inst": b"(" + text + b"ios\nsystem\n",
        "obj": b"(" + name("os", "system") + text + b"o",
        "newobj": name("os", "system") + b"(" + text + b"t\x81",
        "newobj_ex": name("os", "system") + b"(" + text + b"t}\x92",
        "build": name("builtins", "object")
        + b")\x81}U\x0c__setstate__"
        + name("os", "system")
        + b"sb",
        "nested": name("torch", "os.system") + b"(" + text + b"tR",
        "through_torch": name("torch._utils", "os.system") + b"(" + text + b"tR",
    }[where]  # fmt: skip


ROUTES = ("reduce", "eval", "getattr", "dotted", "inst", "obj", "newobj", "newobj_ex", "build")
ROUTES = (*ROUTES, "nested", "through_torch")


@pytest.mark.parametrize("route", ROUTES)
def test_call_in_place_of_the_weights(torch_zip, tripwire, route):
    refused(torch_zip.write(call(route, tripwire)), "which was not called")


@pytest.mark.parametrize("route", ROUTES)
def test_call_in_place_of_a_weight(torch_zip, tripwire, route):
    program = torch_zip.dictionary(a=torch_zip.tensor(), b=call(route, tripwire))
    refused(torch_zip.write(program), "weight 'b' is no tensor but a .*; nothing was called")


@pytest.mark.parametrize("part", ["state_dict", "model", "state_dict_ema"])
def test_call_in_place_of_a_part(torch_zip, tripwire, part):
    program = torch_zip.dictionary(**{part: call("reduce", tripwire)})
    refused(torch_zip.write(program), f"its '{part}' is a posix.system, which was not built")


@pytest.mark.parametrize("route", ROUTES)
def test_call_in_metadata_stays_inert(torch_zip, tripwire, route):
    weights = torch_zip.dictionary(w=torch_zip.tensor())
    program = torch_zip.dictionary(state_dict=weights, meta=call(route, tripwire))
    checkpoint = read_checkpoint(torch_zip.write(program))
    assert set(checkpoint.weights) == {"w"} and checkpoint.ignored


def test_call_as_an_argument_of_a_tensor(torch_zip, tripwire):
    program = torch_zip.name("torch._utils", "_rebuild_tensor_v2") + b"("
    program += call("reduce", tripwire) + b"K\x00(K\x02t(K\x01t\x89NtR"
    refused(torch_zip.write(torch_zip.dictionary(w=program)), "without a storage")


def test_a_storage_of_a_foreign_class(torch_zip):
    for kind in ("os.system", "QInt8Storage", "FloatStorage.__class__"):
        program = torch_zip.dictionary(w=torch_zip.tensor(kind=kind))
        refused(torch_zip.write(program), "which MLX does not know")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"count": 1 << 40, "shape": (1 << 20, 1 << 20)}, "more than 8 times"),
        ({"count": 7}, "should hold 7 elements of 4 bytes but has 24 bytes"),
        ({"shape": (3, 3)}, "past the end of its storage"),
        ({"offset": 1}, "past the end of its storage"),
        ({"offset": -1}, "impossible shape"),
        ({"shape": (-2, -3)}, "impossible shape"),
        ({"stride": (-3, 1)}, "impossible shape"),
        ({"shape": (2, 3, 1)}, "more sizes than strides"),
        ({"shape": (1 << 30, 1 << 30), "stride": (0, 0)}, "more than 8 times the file's size"),
        ({"shape": (10**30,), "stride": (0,)}, "impossible shape"),
        ({"shape": (0, 1 << 40)}, "a tensor of shape"),
        ({"shape": (1,) * 40, "stride": (1,) * 40}, "impossible shape"),
        ({"shape": (2.0, 3.0)}, "impossible shape"),
        ({"shape": (True, 3)}, "impossible shape"),
        ({"count": -6}, "malformed storage"),
        ({"count": 10**400}, "malformed storage"),
        ({"key": "../0"}, "no member"),
        ({"key": "1"}, "no member"),
        ({"kind": "DoubleStorage"}, "should hold 6 elements of 8 bytes"),
        ({"dtype": "float8_e4m3fn"}, "torch.float8_e4m3fn, which MLX does not know"),
        ({"dtype": "float64"}, "past the end"),
    ],
)
def test_lying_tensors(torch_zip, change, reason):
    refused(torch_zip.write(torch_zip.dictionary(w=torch_zip.tensor(**change))), reason)


@pytest.mark.parametrize(
    "program",
    {
        "nothing": b"",
        "no value": b"0",
        "unknown opcode": b"\xff",
        "stack underflow": b"\x86",
        "memo miss": b"h\x07",
        "mark missing": b"t",
        "get of a huge index": b"j\xff\xff\xff\x7f",
        "bytes longer than the file": b"\x8e" + b"\xff" * 7 + b"\x7f",
        "string longer than the file": b"X\xff\xff\xff\x7f",
        "long longer than the file": b"\x8b\xff\xff\xff\x7f",
        "unhashable key": b"}]K\x01s",
        "deep key": b"}" + b")" + b"\x85" * 200_000 + b"K\x01s",
        "extension registry": b"\x82\x01",
        "out-of-band buffer": b"\x97",
        "text persistent id": b"P0\n",
        "persistent id": b"K\x01Q",
        "call of a string": b"U\x01a)R",
        "call with a list": b"cos\nsystem\n]R",
        "huge integer": b"I" + b"9" * 10_000 + b"\n",
        "append to a tuple": b")K\x01a",
        "odd dict": b"(K\x01d",
        "name that is no string": b"K\x01K\x02\x93",
    }.items(),
    ids=lambda item: item[0],
)
def test_broken_pickles(torch_zip, program):
    refused(torch_zip.write(program[1]), "its pickle")


def test_a_memo_index_allocates_nothing(torch_zip):
    # The C unpickler would make room for two billion entries.
    program = b"\x89r\xff\xff\xff\x7f0" + torch_zip.dictionary(w=torch_zip.tensor())
    assert set(read_checkpoint(torch_zip.write(program)).weights) == {"w"}


def test_deep_nesting(torch_zip):
    deep = b"]" * 500_000 + b"a" * 499_999
    program = torch_zip.dictionary(a=torch_zip.tensor(), b=deep)
    refused(torch_zip.write(program), "no tensor but a list")


def test_huge_pickle(torch_zip):
    refused(torch_zip.write(b"N0" * (9 << 20) + b"}"), "its pickle takes")


def test_numpy_arrays_are_checked(torch_zip):
    reconstruct = torch_zip.name("numpy.core.multiarray", "_reconstruct") + b")R"
    dtype = torch_zip.name("numpy", "dtype") + b"(U\x02%s\x89\x88tR"

    def array(kind, shape, content):
        state = b"(K\x01" + torch_zip.literal(shape) + dtype % kind + b"\x89"
        return torch_zip.dictionary(w=reconstruct + state + content + b"tb", v=torch_zip.tensor())

    good = np.arange(4, dtype="<f4").tobytes()
    path = torch_zip.write(array(b"f4", (2, 2), b"C\x10" + good))
    assert read_checkpoint(path).weights["w"].tolist() == [[0, 1], [2, 3]]
    refused(torch_zip.write(array(b"f4", (2, 3), b"C\x10" + good)), "wrong length")
    refused(torch_zip.write(array(b"f4", (1 << 40,), b"C\x10" + good)), "wrong length")
    refused(torch_zip.write(array(b"O8", (2,), b"C\x10" + good)), "no plain number")
    refused(torch_zip.write(array(b"f4", (4,), b"]")), "without bytes")


# The archive.


@pytest.mark.parametrize(
    "member",
    [
        "../evil",
        "archive/../../evil",
        "/etc/passwd",
        "archive/a\\b",
        "C:/x",
        "other/data/0",
        "a//b",
    ],
)
def test_path_tricks(torch_zip, member):
    path = torch_zip.write(torch_zip.dictionary(w=torch_zip.tensor()), members={member: b"x"})
    refused(path, "a member named|more than one folder")


def test_compressed_members(torch_zip):
    program = torch_zip.dictionary(w=torch_zip.tensor(count=1 << 24, shape=(1 << 24,), stride=(1,)))
    path = torch_zip.write(program, {"0": np.zeros(1 << 24, np.float32)}, compress=True)
    assert path.stat().st_size < 1 << 20
    refused(path, "is compressed")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name(torch_zip):
    program = torch_zip.dictionary(w=torch_zip.tensor())
    path = torch_zip.write(program, members={"archive/data/0": b"x" * 24})
    refused(path, "two members of one name")


def test_encrypted_member(data, tmp_path):
    content = bytearray((data / "vitrpb_64.pth").read_bytes())
    at = content.rindex(b"PK\x01\x02")
    content[at + 8] |= 1
    (tmp_path / "w.pth").write_bytes(content)
    refused(tmp_path / "w.pth", "is encrypted")


def test_member_that_lies_about_its_place(data, tmp_path):
    content = bytearray((data / "vitrpb_64.pth").read_bytes())
    at = content.rindex(b"PK\x01\x02")
    content[at + 42 : at + 46] = struct.pack("<I", 0xFFFFFF)
    (tmp_path / "w.pth").write_bytes(content)
    refused(tmp_path / "w.pth", "outside the file")


def test_damaged_weight(data, tmp_path):
    content = bytearray((data / "vitrpb_64.pth").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "w.pth").write_bytes(content)
    refused(tmp_path / "w.pth", "wrong checksum")


@pytest.mark.parametrize("keep", [0.0, 0.0001, 0.01, 0.5, 0.999])
def test_truncated(data, tmp_path, keep):
    content = (data / "vitrpb_64.pth").read_bytes()
    (tmp_path / "w.pth").write_bytes(content[: int(keep * len(content))])
    refused(tmp_path / "w.pth", "empty|truncated or damaged|no torch checkpoint")


def test_unknown_byte_order(torch_zip):
    program = torch_zip.dictionary(w=torch_zip.tensor())
    refused(torch_zip.write(program, members={"archive/byteorder": b"middle"}), "byte order")


def test_no_pickle_inside(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("archive/readme", b"hello")
    refused(tmp_path / "w.pth", r"no data\.pkl")


def test_no_weights_inside(torch_zip, tripwire):
    refused(torch_zip.write(torch_zip.dictionary(epoch=b"K\x01")), "no weights .*epoch")
    refused(torch_zip.write(b"]"), "it holds a list")
    program = torch_zip.dictionary(extra=call("reduce", tripwire))
    refused(torch_zip.write(program), "wants to call posix.system, which was not done")


# Other formats, told apart.


def test_old_formats(data, tmp_path):
    refused(data / "legacy.pth", "format before 1.6")
    refused(data / "torchscript.pt", "TorchScript")
    with tarfile.open(tmp_path / "w.pth", "w") as archive:
        archive.add(data / "linear.npz", "storages")
    refused(tmp_path / "w.pth", "tar archive, torch's format before 0.1.10")
    (tmp_path / "w.pth").write_bytes(b"<!DOCTYPE html><html>Not found</html>")
    refused(tmp_path / "w.pth", "no torch checkpoint")


def test_bare_pickle_does_not_run(tmp_path, tripwire):
    (tmp_path / "w.pth").write_bytes(pickle.dumps(Payload(os.system, f"touch {tripwire}")))
    refused(tmp_path / "w.pth", "bare pickle")


def test_hugging_face_folder_with_a_payload(data, tmp_path, torch_zip, tripwire):
    folder = tmp_path / "model"
    shutil.copytree(data / "nat-tiny-random", folder, copy_function=shutil.copyfile)
    shutil.move(torch_zip.write(call("reduce", tripwire)), folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin.*posix\.system"):
        read_checkpoint(folder)
