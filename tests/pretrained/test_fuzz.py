"""Damage anywhere in a file: it is read, or refused with `CheckpointError`; nothing else."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from natten_zoo.pretrained.errors import CheckpointError
from natten_zoo.pretrained.pickle_machine import Machine, PickleError
from natten_zoo.pretrained.reader import read_checkpoint

DATA = Path(__file__).parents[1] / "data" / "pretrained"
FILES = {
    "torch": (DATA / "mmcv.pth").read_bytes(),
    "tensors": (DATA / "tensors.pth").read_bytes(),
    "safetensors": (DATA / "dinat-ls-tiny-random" / "model.safetensors").read_bytes()[:20_000],
}
fuzz = settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
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


@fuzz
@given(st.binary(max_size=200), st.sampled_from(["", ".", "}.", "ubR."]))
def test_random_programs(body, end):
    machine = Machine({}, lambda reference: reference)
    with suppress(PickleError):
        machine.run(body + end.encode())
