"""Operators that are exported: the same bits on a CPU, the tier's own launches on a GPU."""

import mlx.core as mx
import pytest

from natten_zoo import metal as sources
from natten_zoo import ops
from natten_zoo.export.graph import kernels, operations, place_on_gpu, read_kernels
from natten_zoo.metal.excerpt import NAME, _items, excerpt
from natten_zoo.ops.gpu.device import machine, use_device
from tests import metal_emulator
from tests.metal_emulator.fixtures import toolchain  # noqa: F401
from tests.ops.cases import CASES, attention


@pytest.mark.parametrize("name", CASES)
def test_the_same_bits(name, tmp_path):
    case, path = CASES[name], str(tmp_path / "op.mlxfn")
    arrays = case.arrays("query", "key", "value", "rpb")
    with ops.exporting("cpu"):
        mx.export_function(path, attention(case), *arrays)
    with ops.use_backend("pure"):
        wanted = attention(case)(*arrays)
    for ours, theirs in zip(mx.import_function(path)(*arrays), wanted, strict=True):
        assert mx.array_equal(ours, theirs, equal_nan=True)


def test_unfused_operators(tmp_path):
    x = mx.random.normal((2, 9, 11, 4, 8), key=mx.random.key(0))

    def both(x):
        logits = ops.na2d_qk(x, x, (3, 5))
        return logits, ops.na2d_av(mx.softmax(logits, axis=-1), x, (3, 5))

    path = str(tmp_path / "op.mlxfn")
    with ops.exporting("cpu"):
        mx.export_function(path, both, x)
    with ops.use_backend("pure"):
        wanted = both(x)
    assert all(map(mx.array_equal, mx.import_function(path)(x), wanted))


@pytest.mark.parametrize("name", ["2-D", "3-D", "all strides", "varlen", "MQA"])
def test_the_kernels_of_the_tier_are_in_the_file(name, tmp_path, toolchain):  # noqa: F811
    case, path = CASES[name], tmp_path / "op.mlxfn"
    arrays = case.arrays("query", "key", "value", "rpb")
    with ops.exporting("metal"):
        traces = [operations(attention(case), arrays)]
        mx.export_function(str(path), attention(case), *arrays)
    place_on_gpu(path, traces)
    found = read_kernels(path)
    assert found == kernels(traces) != []
    with metal_emulator.install(), use_device(machine(None)), metal_emulator.record() as launches:
        mx.eval(attention(case)(*arrays))
    assert (launches[-1].grid, launches[-1].threadgroup) == (found[0].grid, found[0].threadgroup)
    assert excerpt("", sources.body("attention_forward"))[1] in found[0].source
    mentioned = set(NAME.findall(found[0].source))
    for header in ("tile.h", "dialect_metal.h", "window.h"):
        items = [x for x in _items(sources.source(header)) if x.declares & mentioned]
        assert len(items) > 3 and all(x.text in found[0].source for x in items)


def test_finer_queries(tmp_path):
    query, small = (
        mx.random.normal((1, *n, 2, 8), key=mx.random.key(0)) for n in ((14, 8), (7, 4))
    )

    def attend(query, key, value):
        return ops.na2d(query, key, value, (5, 3))

    path = str(tmp_path / "op.mlxfn")
    with ops.exporting("cpu"):
        mx.export_function(path, attend, query, small, small)
    with ops.use_backend("pure"):
        wanted = attend(query, small, small)
    assert mx.array_equal(mx.import_function(path)(query, small, small)[0], wanted)
    with ops.exporting("metal"):
        traces = [operations(attend, [query, small, small])]
    (kernel,) = kernels(traces)
    assert excerpt("", sources.body("attention_forward"))[1] in kernel.source


def test_what_cannot_be_exported_says_so():
    x = mx.zeros((1, 9, 2, 8))
    for tier, why in (("nanobind", "what is compiled|not built"), ("fast_metal", "for a CPU")):
        with (
            ops.exporting("cpu"),
            ops.use_backend(tier),
            pytest.raises(RuntimeError, match=f"backend '{tier}' cannot run this: .*({why})"),
        ):
            ops.na1d(x, x, x, 3)
    with pytest.raises(ValueError, match=r"\[exporting\] 'target' must be"), ops.exporting("cuda"):
        pass


def test_nothing_stays_of_it():
    x = mx.random.normal((1, 9, 2, 8))
    before = ops.explain(ops.na1d, x, x, x, 3)
    for target, tier in (("metal", "fast_metal"), ("cpu", "pure")):
        with ops.exporting(target):
            (chosen,) = ops.explain(operations, lambda x: ops.na1d(x, x, x, 3), [x])
        assert chosen.tier == tier
    assert ops.explain(ops.na1d, x, x, x, 3) == before
    assert mx.grad(lambda x: ops.na1d(x, x, x, 3).sum())(x).shape == x.shape
