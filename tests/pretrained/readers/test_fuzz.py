"""Damage anywhere in a file: it is read, or refused with `CheckpointError`; nothing else."""

import io
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from natten_zoo.pretrained.readers.errors import CheckpointError
from natten_zoo.pretrained.readers.pickle_machine import Machine, PickleError
from natten_zoo.pretrained.readers.reader import read_checkpoint

DATA = Path(__file__).parents[2] / "fixtures" / "pretrained"
FILES = {
    "torch": (DATA / "mmcv.pth").read_bytes(),
    "tensors": (DATA / "tensors.pth").read_bytes(),
    "safetensors": (DATA / "dinat-ls-tiny-random" / "model.safetensors").read_bytes()[:20_000],
}
fuzz = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def read_or_refuse(path: Path, content: bytes) -> bool:
    path.write_bytes(content)
    try:
        weights = read_checkpoint(path).weights
    except CheckpointError as error:
        assert str(path) in str(error)
        return False
    assert sum(w.nbytes for w in weights.values()) <= 8 * len(content)
    return True


@pytest.mark.parametrize("kind", FILES)
@fuzz
@given(st.data())
def test_bit_flips(tmp_path, kind, data):
    content = bytearray(FILES[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    read_or_refuse(tmp_path / "w", bytes(content))


@pytest.mark.parametrize("kind", FILES)
@fuzz
@given(st.data())
def test_truncations(tmp_path, kind, data):
    length = data.draw(st.integers(0, len(FILES[kind]) - 1))
    assert not read_or_refuse(tmp_path / "w", FILES[kind][:length])


@pytest.mark.parametrize("kind", ["torch", "safetensors"])
@fuzz
@given(st.data())
def test_splices(tmp_path, kind, data):
    content = FILES[kind]
    begin, end = sorted(data.draw(st.integers(0, len(content))) for _ in range(2))
    middle = data.draw(st.binary(max_size=40))
    read_or_refuse(tmp_path / "w", content[:begin] + middle + content[end:])


@pytest.mark.parametrize("kind", ["mmcv", "timm", "tensors"])
@fuzz
@given(st.data())
def test_mutated_pickles_with_right_checksums(tmp_path, kind, data):
    with zipfile.ZipFile(DATA / f"{kind}.pth") as original:
        members = {info.filename: original.read(info) for info in original.infolist()}
    name = next(name for name in members if name.endswith("/data.pkl"))
    program = bytearray(members[name])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(2, len(program) - 1))
        # An instruction that something hangs on, or any byte at all.
        program[at] = data.draw(st.sampled_from(b"RbcQt(}]hq0u.") | st.integers(0, 255))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as mutated:
        for member, content in {**members, name: bytes(program)}.items():
            mutated.writestr(member, content)
    read_or_refuse(tmp_path / "w", archive.getvalue())


@fuzz
@given(st.binary(max_size=200), st.sampled_from(["", ".", "}.", "ubR."]))
def test_random_programs(body, end):
    machine = Machine({}, lambda reference: reference)
    with suppress(PickleError):
        machine.run(body + end.encode())
