"""What lies beside the weights, whatever it is, stays inert and does no harm to them."""

import argparse
import collections
import datetime
import decimal
import enum
import functools
import logging
import pathlib
import random
import sys
import types
import uuid

import numpy as np
import pytest

from natten_zoo import load_pretrained
from natten_zoo.models import NAT
from natten_zoo.pretrained.readers import CheckpointError, read_checkpoint

from ..conftest import Tensor, save_torch


class Thing:
    """An object of a class that a reader does not know."""

    def __init__(self):
        self.weights = {"a": Tensor(np.ones(2))}


class Color(enum.Enum):
    RED = 1


class Schedule(dict):
    """A dict of another class, like those of omegaconf, mmengine and EasyDict."""


Point = collections.namedtuple("Point", "x y")


def from_module(module: str, name: str):
    """An object of a class of a package that is not installed."""
    thing = type(name, (), {"__module__": module, "__qualname__": name})()
    thing.state = {Tensor([1]): {"exp_avg": Tensor([2, 3])}, 0: Tensor([1])}
    thing.hooks = collections.OrderedDict()
    return thing


SIDE = {
    "NumPy strings": np.array(["rose", "tulip"]),
    "NumPy objects": np.array(["rose", None, 3], dtype=object),
    "NumPy records": np.zeros(2, [("a", "f4"), ("b", "i4")]),
    "NumPy dates": np.array(["2024-01-01"], dtype="datetime64[D]"),
    "NumPy long double": np.zeros(2, np.longdouble),
    "NumPy text": np.str_("rose"),
    "NumPy number": np.float64(0.5),
    "NumPy dtype": np.dtype("O"),
    "NumPy masked": np.ma.masked_array([1, 2], [True, False]),
    "NumPy numbers": np.arange(6.0).reshape(2, 3),
    "NumPy state": np.random.RandomState(0).get_state(),
    "NumPy generator": np.random.default_rng(0),
    "random state": random.getstate(),
    "optimizer": from_module("torch.optim.adamw", "AdamW"),
    "scheduler": from_module("torch.optim.lr_scheduler", "CosineAnnealingLR"),
    "configuration": from_module("omegaconf.dictconfig", "DictConfig"),
    "object": Thing(),
    "class": Thing,
    "function": save_torch,
    "method": Thing.__init__,
    "partial": functools.partial(print, 1),
    "namespace": argparse.Namespace(lr=1, out=pathlib.PurePosixPath("/x")),
    "simple namespace": types.SimpleNamespace(lr=1),
    "path": pathlib.Path("/x/y"),
    "Windows path": pathlib.PureWindowsPath("C:/x"),
    "date": datetime.datetime.now(datetime.timezone.utc),
    "duration": datetime.timedelta(days=1),
    "enum": Color.RED,
    "dict of a class": Schedule(lr=1),
    "keys of enum": {Color.RED: 1},
    "keys of tuples": {(1, 2): "a", (1, (2, "x")): "b"},
    "keys of frozensets": {frozenset([1]): 2},
    "keys of large numbers": {2**200: 1, -(2**70): 2},
    "named tuple": Point(1, 2),
    "default dict": collections.defaultdict(list, a=[1]),
    "counter": collections.Counter("abca"),
    "deque": collections.deque([1, 2], 3),
    "ordered": collections.OrderedDict([((1, 2), 3), (Color.RED, 4)]),
    "decimal": decimal.Decimal("1.5"),
    "uuid": uuid.UUID(int=1),
    "complex": 1 + 2j,
    "range": range(3),
    "slice": slice(1, 2),
    "set": {1, "a", (2, 3)},
    "frozen set": frozenset({1, (2, 3)}),
    "bytes": b"abc",
    "byte array": bytearray(b"abc"),
    "huge integer": 10**5000,
    "ellipsis": ...,
    "nothing": None,
    "exception": ValueError("a"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SIDE)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_in_the_dict_around(tmp_path, kind, protocol):
    weights = {"a.weight": Tensor([1, 2, 3]), "b": Tensor([[4]])}
    value = {"model": weights, "side": SIDE[kind], "deep": {"er": [SIDE[kind]], "n": 3}}
    path = save_torch(tmp_path / "w.pth", value, protocol=protocol)
    checkpoint = read_checkpoint(path)
    assert {n: w.tolist() for n, w in checkpoint.weights.items()} == {
        "a.weight": [1, 2, 3],
        "b": [[4]],
    }
    assert checkpoint.part == "model" and set(checkpoint.metadata) == {"side", "deep"}


@pytest.mark.parametrize("kind", SIDE)
def test_in_the_dict_of_the_weights(tmp_path, kind, pico, pico_state, caplog):
    path = save_torch(tmp_path / "nat_pico_fashion.pth", {**pico_state, "side": SIDE[kind]})
    with caplog.at_level(logging.WARNING, "natten_zoo"):
        weights = read_checkpoint(path).weights
    assert set(weights) == set(pico_state) and "side" in caplog.text


def test_of_unknown_weights_nothing_is_passed_over_unasked(tmp_path):
    path = save_torch(tmp_path / "w.pth", {"w": Tensor([1]), "epoch": 3, "names": SIDE["set"]})
    with pytest.raises(CheckpointError, match=r"'epoch' is no tensor but a int; .*--skip 'epoch'"):
        read_checkpoint(path)
    assert set(read_checkpoint(path, skip=("epoch", "na*")).weights) == {"w"}
    with pytest.raises(CheckpointError, match="nothing to leave out that is called 'epoc'"):
        read_checkpoint(path, skip=("epoc", "na*", "epoch"))


@pytest.mark.parametrize("name", ["model_ema", "ema", "state_dict_ema", "ema_model", "swa_model"])
def test_an_averaged_module_beside_plain_weights(tmp_path, name, pico, pico_state, caplog):
    path = save_torch(tmp_path / "nat_pico_fashion.pth", {"model": pico_state, name: Thing()})
    with caplog.at_level(logging.WARNING, "natten_zoo"):
        model = load_pretrained(NAT, path)
    assert f"its '{name}' is a" in caplog.text and "those of 'model'" in caplog.text
    assert model.config.num_classes == 3
    caplog.clear()
    load_pretrained(NAT, path, ema=False)
    assert not caplog.text


def test_nothing_is_imported(tmp_path):
    name = "natten_zoo_tests_no_such_module"
    thing = from_module(name, "Thing")
    path = save_torch(tmp_path / "w.pth", {"model": {"w": Tensor([1])}, "side": thing})
    checkpoint = read_checkpoint(path)
    assert checkpoint.ignored == (f"{name}.Thing",) and name not in sys.modules


def test_a_weight_that_cannot_be_read_is_no_side_entry(torch_zip):
    storage = torch_zip.tensor(kind="QInt8Storage")
    first = torch_zip.tensor()
    program = torch_zip.dictionary(**{"patch_embed.weight": first, "levels.0.w": storage})
    with pytest.raises(CheckpointError, match=r"'levels.0.w': .*QInt8Storage, which MLX does not"):
        read_checkpoint(torch_zip.write(program))


def test_tensors_of_a_subclass_or_with_attributes(torch_zip):
    inner = torch_zip.tensor()
    call = torch_zip.name("torch._utils", "_rebuild_tensor_v2")
    start = inner.index(b"(", len(call))
    arguments = inner[start:-1]
    program = torch_zip.name("torch._tensor", "_rebuild_from_type_v2") + b"(" + call
    program += torch_zip.name("my.tensors", "Image") + arguments + b"}tR"
    weights = read_checkpoint(torch_zip.write(torch_zip.dictionary(w=program))).weights
    assert weights["w"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    "root", ["nat_10:14:29", "acc:0.81", "C:", "a b", "naïve", "nat\\best", "...", "a..b"]
)
def test_the_folder_in_an_archive_is_a_label(tmp_path, root):
    path = save_torch(tmp_path / "w.pth", {"w": Tensor([1, 2])}, root=root)
    assert read_checkpoint(path).weights["w"].tolist() == [1, 2]


@pytest.mark.parametrize("root", ["..", "."])
def test_a_label_that_is_a_way(tmp_path, root):
    path = save_torch(tmp_path / "w.pth", {"w": Tensor([1, 2])}, root=root)
    with pytest.raises(CheckpointError, match="more than one folder"):
        read_checkpoint(path)


def test_classes_are_known_by_their_whole_names(torch_zip):
    for module in ("os", "torch.evil", "numpy"):
        inner = torch_zip.tensor().replace(b"ctorch\nFloat", f"c{module}\nFloat".encode())
        path = torch_zip.write(torch_zip.dictionary(w=inner))
        with pytest.raises(CheckpointError, match=rf"{module}\.FloatStorage, which MLX does not"):
            read_checkpoint(path)
