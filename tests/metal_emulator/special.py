"""Problems that random ones leave out, for the judge of changed kernels (judge.py)."""

from __future__ import annotations

import math
from dataclasses import replace

import mlx.core as mx

from natten_zoo.ops import Neighborhood, gpu
from natten_zoo.ops.gpu import plan
from natten_zoo.ops.problem import Problem, pack, unpack
from tests.metal_emulator.test_mutants import CASES
from tests.ops.gpu.problems import Case, case_of, errors, numpy


def single() -> Case:
    """Windows of one key, whose bias is one number of each head, eight of which are not padded."""
    problem = Problem(Neighborhood.of(1, 1), 1, (9,), 8, 1, 8, 8, 1.0, mx.float32, has_rpb=True)
    return case_of(problem)


def busy() -> Case:
    """So many heads that a threadgroup sums the gradient of the bias over several tiles."""
    heads = plan.BIAS_THREADGROUPS
    hood = Neighborhood.of(1, 3)
    return case_of(Problem(hood, 1, (70,), heads, 1, 4, 4, 0.5, mx.float32, has_rpb=True))


def longer() -> Case:
    """The same over so many slabs that a tour's three boxes come round."""
    problem = Problem(Neighborhood.of(1, 330), 1, (331,), 2, 1, 64, 64, 0.1, mx.float32)
    return case_of(problem)


def high() -> Case:
    """Logits of 4e8 in 3-D, in two heads, of keys that lie otherwise than values."""
    problem = Problem(Neighborhood.of(3, (2, 3, 2)), 2, (3, 4, 5), 2, 1, 8, 12, 0.25, mx.float32)
    case = case_of(problem)
    value = mx.repeat(case.value, 2, axis=-1)[..., ::2]
    return replace(case, query=1e4 * case.query, key=1e4 * case.key, value=value)


# In which lanes of a team may part ways (core_scalar.h says why).
LARGE = (CASES["climbing"], CASES["large"], high)


def spiky() -> Case:
    """Single logits of 128 among zeros, one in a fragment, which no place of it must hide."""
    case = case_of(Problem(Neighborhood.of(1, 40), 1, (600,), 1, 1, 16, 16, 1.0, mx.float16))
    spikes = mx.where(mx.arange(600)[:, None, None] % 33 == 0, 8, 0).astype(mx.float16)
    return replace(case, query=mx.ones_like(case.query), key=mx.ones_like(case.key) * spikes)


def far() -> Case:
    """A bias so large that its gradient is summed in device memory."""
    hood = Neighborhood.of(2, 29, stride=7)
    return case_of(Problem(hood, 1, (29, 31), 1, 1, 8, 8, 0.25, mx.float32, has_rpb=True))


def apace() -> Case:
    """Windows of whole teams, of which slabs have two fragments, one, or a single token."""
    hood = Neighborhood.of(1, 17, window_stride=8)
    return case_of(Problem(hood, 1, (160,), 1, 1, 96, 96, 0.1, mx.float32))


def aside() -> Case:
    """In 2-D, where slabs that are cut on x have rows of one team and none of another."""
    hood = Neighborhood.of(2, (4, 20), window_stride=(2, 4))
    return case_of(Problem(hood, 1, (8, 43), 1, 1, 96, 96, 0.1, mx.float32))


def beyond() -> Case:
    """Fragments of two rows, of which the last one ends beyond its slab."""
    return _deep(6)


def behind() -> Case:
    """Columns of single tokens, of which a team has fewer than one that it keeps pace with."""
    return _deep(5)


def _deep(height: int) -> Case:
    hood = Neighborhood.of(2, (height, 8))
    return case_of(Problem(hood, 1, (26, 8), 1, 1, 96, 96, 0.1, mx.float32))


def seen_by_all(*spatial: int) -> Case:
    """Every query sees every key: nothing is masked where fragments end with rows and columns."""
    hood = Neighborhood.of(len(spatial), spatial)
    return case_of(Problem(hood, 1, spatial, 1, 1, 16, 16, 0.25, mx.float32))


def twice() -> Case:
    """Rows so long that the pass over keys goes twice over its slabs, one of each head."""
    hood = Neighborhood.of(2, (3, 5))
    return case_of(Problem(hood, 1, (3, 5), 3, 1, 64, 64, 0.1, mx.float32))


def again() -> Case:
    """The same over more slabs, all of one head."""
    hood = Neighborhood.of(2, (5, 7))
    return case_of(Problem(hood, 1, (20, 26), 1, 1, 64, 64, 0.1, mx.float32))


def unseen() -> Case:
    """Keys that nobody sees: the first query of their class is two behind, and looks back one."""
    hood = Neighborhood.of(1, 3, stride=3, dilation=4)
    return case_of(Problem(hood, 1, (19,), 1, 1, 8, 8, 0.5, mx.float32))


def thin() -> Case:
    """Values of one channel; a slab has all of a head's tokens, in several rounds."""
    return case_of(Problem(Neighborhood.of(1, 9), 1, (20,), 2, 1, 64, 1, 0.1, mx.float32))


def slim() -> Case:
    """Rows of 16 bytes, which move at once."""
    return case_of(Problem(Neighborhood.of(1, 3), 1, (9,), 1, 1, 4, 4, 0.5, mx.float32))


def odd() -> Case:
    """Rows of one channel more than a simdgroup moves at once."""
    return case_of(Problem(Neighborhood.of(1, 5), 1, (20,), 1, 1, 33, 33, 0.2, mx.float16))


def ragged() -> Case:
    """Samples of no tokens and of some; tokens that do not fill a team's rows."""
    hood, lengths = Neighborhood.of(1, 3), mx.array([[0], [7]], mx.int32)
    problem = Problem(hood, 2, (21,), 2, 1, 9, 9, 0.5, mx.float32, has_lengths=True)
    return case_of(problem, lengths=lengths)


def packed() -> Case:
    """Queries, keys and values that one array may hold."""
    hood = Neighborhood.of(2, (3, 4), dilation=(1, 2))
    return case_of(Problem(hood, 2, (9, 14), 4, 2, 16, 16, 0.25, mx.float32, has_rpb=True))


def sparse() -> Case:
    """The same, of which some queries are left out."""
    hood = Neighborhood.of(2, (3, 4), stride=(2, 3), dilation=(1, 2))
    return case_of(Problem(hood, 2, (9, 14), 4, 2, 16, 16, 0.25, mx.float32, has_rpb=True))


def apart() -> Case:
    """Channels that lie two apart."""
    case = packed()
    views = {
        n: mx.repeat(getattr(case, n), 2, axis=-1)[..., ::2] for n in ("query", "key", "value")
    }
    return replace(case, **views)


def askew() -> Case:
    """Rows that begin where 16 bytes don't."""
    case = packed()
    arrays = {name: getattr(case, name) for name in ("query", "key", "value")}
    wide = {n: mx.concatenate([x[..., :1], x], axis=-1) for n, x in arrays.items()}
    return replace(case, **{n: x[..., 1:] for n, x in wide.items()})


def aslant() -> Case:
    """Cells of which only the first rows begin where 16 bytes do."""
    hood = Neighborhood.of(1, 3)
    case = case_of(Problem(hood, 1, (8,), 4, 2, 16, 16, 0.25, mx.float32, finer=(2,)))
    more = mx.concatenate([case.query, case.query[..., :2]], axis=-1)
    lies = mx.contiguous(more.swapaxes(1, 2))
    mx.eval(lies)
    return replace(case, query=lies.swapaxes(1, 2)[..., :16])


def tilted() -> Case:
    """Planes of which only the first begins where 16 bytes do; slabs of several rounds."""
    hood = Neighborhood.of(3, (2, 3, 4))
    case = case_of(Problem(hood, 1, (3, 5, 6), 1, 1, 32, 32, 0.2, mx.float32))

    def lies(x: mx.array) -> mx.array:
        planes = x.reshape(3, -1)
        pitch = planes.shape[1] + 1
        longer = mx.concatenate([planes, planes[:, :1]], axis=1)
        return mx.as_strided(longer, x.shape, (3 * pitch, pitch, 6 * 32, 32, 32, 1))

    return replace(case, query=lies(case.query), key=lies(case.key), value=lies(case.value))


def check_padding(case: Case) -> dict[str, float]:
    """`check_attention` where no number stands behind the end of a sample."""
    problem = case.problem
    behind = mx.arange(problem.spatial[0]) >= case.lengths
    given = [
        mx.where(behind[..., None, None], math.nan, x)
        for x in (case.query, case.key, case.value, case.query)
    ]
    *arrays, d_out = given
    out, lse, stats = gpu.forward(problem, *arrays, None, case.lengths)
    d_lse = mx.where(behind[..., None], math.nan, 1.0) * mx.ones_like(lse)
    grads = gpu.backward(problem, *arrays, None, case.lengths, out, stats, d_out, d_lse)
    exact = [numpy(x) for x in (case.query, case.key, case.value)]
    ends = numpy(case.query), numpy(mx.ones_like(lse))
    wanted = [*case.reference.forward(*exact, None), *case.reference.backward(*exact, None, *ends)]
    names = ("out", "lse", "d_query", "d_key", "d_value")
    return errors(names, (out, lse, *grads[:3]), wanted[:5])


def check_packed(case: Case) -> dict[str, float]:
    """`check_attention` on views of one array, and with one array of gradients."""
    arrays = unpack(case.problem, pack(case.problem, case.query, case.key, case.value))
    out, lse, stats = gpu.forward(case.problem, *arrays, case.rpb, None)
    d_qkv, d_rpb = gpu.backward_packed(
        case.problem, *arrays, case.rpb, None, out, stats, case.query, lse
    )
    exact = [numpy(x) for x in (case.query, case.key, case.value, case.rpb)]
    wanted = case.reference.backward(*exact, numpy(case.query), numpy(lse))
    names = ("d_query", "d_key", "d_value", "d_rpb")
    return errors(names, (*unpack(case.problem, d_qkv), d_rpb), wanted)


def check_without_lse(case: Case) -> dict[str, float]:
    """`check_attention` of a problem that has no LSE."""
    problem, ref = replace(case.problem, has_lse=False), case.reference
    given = (case.query, case.key, case.value, case.rpb)
    out, _, stats = gpu.forward(problem, *given, None)
    grads = gpu.backward(problem, *given, None, out, stats, out)
    exact = [None if x is None else numpy(x) for x in given]
    found, lse = ref.forward(*exact)
    wanted = [found, *ref.backward(*exact, numpy(out), 0 * lse)]
    return errors(("out", "d_query", "d_key", "d_value", "d_rpb"), (out, *grads), wanted)
