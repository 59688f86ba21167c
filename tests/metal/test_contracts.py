"""What Python says of the kernels' texts, held against the texts."""

from __future__ import annotations

import re

import mlx.core as mx
import numpy as np
import pytest

from natten_zoo import metal
from natten_zoo.metal import FLOAT32, INT32, KERNELS, deformable
from natten_zoo.ops import Neighborhood
from natten_zoo.ops.gpu.device import machine
from natten_zoo.ops.gpu.params import Axis
from natten_zoo.ops.gpu.plan import lay_out
from natten_zoo.ops.problem import Problem

NAME = re.compile(r"\b(?:d_)?[a-z]+\b")


def described(kernel: str, what: str) -> list[str]:
    """The names in a line `// inputs` or `// outputs` of a kernel's head, with those below."""
    head = metal.body(kernel).split("\nconstexpr")[0].replace("\n//           ", " ")
    (line,) = re.findall(rf"^// {what} +(.*)$", head, re.MULTILINE)
    bare = re.sub(r"\[[^]]*\]|\([^)]*\)|;.*$|, to be .*$|\bfloat\b", " ", line)
    return NAME.findall(bare)


@pytest.mark.parametrize("kernel", KERNELS)
def test_arrays_are_those_of_the_text(kernel):
    assert described(kernel, "inputs") == list(KERNELS[kernel].inputs)
    assert described(kernel, "outputs") == list(KERNELS[kernel].outputs)
    code = re.sub(r"//.*", "", metal.body(kernel))
    for name in KERNELS[kernel].outputs:
        assert re.search(rf"\b{name}\b", code), f"{kernel} never writes {name}"


@pytest.mark.parametrize("kernel", deformable.KERNELS)
def test_arrays_of_deformable_attention_are_those_of_the_text(kernel):
    inputs, outputs = deformable.KERNELS[kernel]
    assert described(kernel, "inputs") == [*inputs]
    assert described(kernel, "outputs") == [*outputs]


def test_every_text_has_its_arrays():
    folder = metal.resources.files(metal.__name__)
    assert {f.name for f in folder.iterdir() if f.name.endswith(".metal")} == {
        f"{kernel}.metal" for kernel in (*KERNELS, *deformable.KERNELS)
    }
    arrays = {name for k in KERNELS.values() for name in (*k.inputs, *k.outputs)}
    assert arrays >= {*FLOAT32, *INT32}


def test_numbers_of_an_enum():
    assert list(metal.enumerators("na_param").items())[-3:] == [
        ("NA_QUERY_HEADS", 8), ("NA_AXES", 9), ("NA_AXIS", 16),
    ]  # fmt: skip
    assert metal.enumerators("na_axis_param")["NA_KERNEL"] == 2
    with pytest.raises(ValueError, match=r"\[enumerators\] 'enum' must be one of tile\.h"):
        metal.enumerators("na_parm")


def test_every_field_of_the_parameter_block_is_written_where_it_is_read():
    hood = Neighborhood.of(
        2, (5, 3), dilation=(2, 3), stride=(3, 2), window_stride=(4, 3), is_causal=(True, False)
    )
    problem = Problem(hood, 7, (41, 37), 6, 2, 8, 8, 1.0, mx.float32, has_lengths=True)
    plan = lay_out(problem, machine(None), (8, 8), scale=2.0, fill=-1.0)
    at, axis_at = metal.enumerators("na_param"), metal.enumerators("na_axis_param")
    block = np.array(plan.params)
    head = {name: int(block[i]) for name, i in at.items() if i < at["NA_AXES"]}
    as_int = {value: int(np.float32(value).view(np.int32)) for value in (2.0, -1.0)}
    assert head == {
        "NA_HEADS": 6, "NA_KV_HEADS": 2, "NA_SCALE": as_int[2.0], "NA_FILL": as_int[-1.0],
        "NA_RAGGED": 1, "NA_ITEMS": plan.slices, "NA_BINS": 9 * 5, "NA_SHARING": 3,
        "NA_QUERY_HEADS": 6,
    }  # fmt: skip
    assert set(axis_at) == set(Axis.of(problem, 0).params(1, 1, 0, 1, 1))
    assert len(axis_at) <= at["NA_AXIS"]
    axes = block[at["NA_AXES"] :].reshape(3, at["NA_AXIS"])
    for name, wanted in {
        "NA_LENGTH": (1, 41, 37), "NA_OUTPUTS": (1, 14, 19), "NA_KERNEL": (1, 5, 3),
        "NA_DILATION": (1, 2, 3), "NA_STRIDE": (1, 3, 2), "NA_WINDOW_STRIDE": (1, 4, 3),
        "NA_CAUSAL": (0, 1, 0), "NA_CLASSES": (1, 2, 3), "NA_FINER": (1, 1, 1),
        "NA_QUERIES": (1, 14, 19),
    }.items():  # fmt: skip
        assert axes[:, axis_at[name]].tolist() == list(wanted), name


def test_finer_queries_in_the_parameter_block():
    problem = Problem(
        Neighborhood.of(2, 3), 1, (41, 37), 24, 2, 8, 8, 1.0, mx.float32, finer=(4, 3)
    )
    at, axis_at = metal.enumerators("na_param"), metal.enumerators("na_axis_param")
    block = np.array(lay_out(problem, machine(None), (8, 8), scale=2.0).params)
    assert (block[at["NA_HEADS"]], block[at["NA_QUERY_HEADS"]]) == (24, 2)
    axes = block[at["NA_AXES"] :].reshape(3, at["NA_AXIS"])
    fine = axes[:, [axis_at[name] for name in ("NA_FINER", "NA_OUTPUTS", "NA_OWN", "NA_QUERIES")]]
    assert fine.tolist() == [[1, 1, 1, 1], [4, 164, 41, 164], [3, 111, 37, 111]]
