"""Random problems of the whole range of inputs, logits from 0 to the largest among them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import mlx.core as mx
import numpy as np

from natten_zoo import ops
from tests.ops.bounds import LARGEST, ROUNDING, SMALLEST, Attention, Bounded, relative
from tests.ops.cases import RANKED, Case, float64, options
from tests.reference import Reference

DIMS = (1, 3, 4, 5, 8, 12, 16, 31, 32, 33, 48, 64, 80, 96, 127, 128, 160, 200, 256, 288)
SHARES = {"attention": 0.5, "extra": 0.1, "varlen": 0.2, "qk": 0.1, "av": 0.1}
LOGITS = {"float32": 28.0, "float16": 10.0, "bfloat16": 28.0}  # powers of ten, at most


@dataclass(frozen=True)
class Extreme(Case):
    """A case whose numbers have sizes of their own.

    `lift` is added to every logit of a row, and `climb` once more from token to token. `ones`
    says that the first channel of the values is 1, so that it is 1 in every output. `hidden` is
    the bias that some offsets have, or all of them if `hides` is 1.
    """

    kind: str = "attention"
    queries: float = 1.0
    keys: float = 1.0
    lift: float = 0.0
    climb: float = 0.0
    ones: bool = False
    hidden: float = 0.0
    hides: float = 0.0
    extra: int = 0

    @cached_property
    def numbers(self) -> dict[str, mx.array]:
        names = {"qk": ("query", "key", "rpb", "attn"), "av": ("attn", "value", "d_out")}
        usual = ("query", "key", "value", "rpb", "d_out", "d_lse")
        chosen = [n for n in names.get(self.kind, usual) if n != "rpb" or self.has_rpb]
        found = {name: self.array(name) for name in chosen}
        if self.extra:
            one, seed = (1,), self.seed + 1
            more = replace(self, spatial=(self.extra,), kernel_size=one, dilation=one, stride=one,
                           window_stride=one, is_causal=(False,), seed=seed)  # fmt: skip
            found |= {f"extra {name}": more.array(name) for name in ("key", "value")}
        return found

    @cached_property
    def expected(self) -> dict[str, Bounded]:
        with np.errstate(over="ignore", invalid="ignore"):
            return EXPECTED[self.kind](self)

    def array(self, name: str) -> mx.array:
        x = super().array(name)
        limit = LARGEST[self.dtype] / 2
        if name in ("query", "key"):
            x = x.astype(mx.float32) * (self.queries if name == "query" else self.keys)
            if name == "query" and (self.lift or self.climb):
                x[..., 0] = 1.0
            if name == "key":
                axes = range(1, len(self.spatial) + 1)
                place = sum(
                    mx.arange(x.shape[a]).reshape(-1, *[1] * (x.ndim - 2 - a)) for a in axes
                )
                x[..., 0] = x[..., 0] + self.lift + self.climb * place
        elif name == "value" and self.ones:
            x[..., 0] = 1.0
        elif name == "rpb" and self.hides:
            chosen = mx.random.uniform(shape=x.shape, key=mx.random.key(self.seed)) < self.hides
            x = mx.where(chosen, mx.array(self.hidden, mx.float32), x.astype(mx.float32))
            return x.astype(getattr(mx, self.dtype))
        return mx.clip(x, -limit, limit).astype(
            x.dtype if name == "d_lse" else getattr(mx, self.dtype)
        )


def draw(kind: str, rng: np.random.Generator) -> Extreme:
    """A problem of a kind in `SHARES`."""
    rank = int(rng.integers(1, 4))
    most = {1: 40, 2: 8, 3: 5}[rank] if rng.random() < 0.95 else {1: 200, 2: 16, 3: 7}[rank]
    spatial = tuple(int(n) for n in rng.integers(1, most + 1, rank))
    whole = rng.random() < 0.2
    kernel = tuple(
        n if whole or rng.random() < 0.1 else int(rng.integers(1, n + 1)) for n in spatial
    )
    steps = [int(rng.integers(1, n // k + 1)) if rng.random() < 0.5 else 1
             for n, k in zip(spatial, kernel, strict=True)]  # fmt: skip

    def some(share: float) -> tuple[int, ...]:
        use = rng.random() < share
        return tuple(int(rng.integers(1, k + 1)) if use else 1 for k in kernel)

    dtype = str(rng.choice(["float32", "float16", "bfloat16"], p=[0.6, 0.2, 0.2]))
    small = rng.random() < 0.8
    dim, value_dim = (int(rng.choice(DIMS[:9] if small else DIMS)) for _ in range(2))
    batch = int(rng.integers(1, 3))
    case = Extreme(
        spatial, kernel, tuple(steps), some(0.4), some(0.3),
        tuple(bool(rng.random() < 0.3) for _ in spatial),
        batch, int(rng.integers(1, 3)), int(rng.integers(1, 4)), dim, value_dim,
        _scale(rng), bool(rng.random() < 0.5), None, dtype,
        str(rng.choice(["plain", "transposed", "sliced"], p=[0.8, 0.1, 0.1])),
        int(rng.integers(2**31)), kind,
    )  # fmt: skip
    if kind == "varlen":
        sizes = tuple(tuple(int(rng.integers(0, n + 1)) for n in spatial) for _ in range(batch))
        case = replace(case, lengths=sizes)
    if kind == "extra":
        case = replace(case, extra=int(rng.integers(1, 6)))
    return _with_sizes(case, rng)


def _scale(rng: np.random.Generator) -> float | None:
    choices = [None, 0.0, float(rng.random()), -float(rng.random()), 10 ** rng.uniform(-6, 6)]
    return choices[rng.choice(5, p=[0.5, 0.05, 0.2, 0.1, 0.15])]


def _with_sizes(case: Extreme, rng: np.random.Generator) -> Extreme:
    """Half of the problems have logits as networks have them; the others up to the largest."""
    most = LOGITS[case.dtype]
    size = 10 ** (rng.uniform(-1, 1.5) if rng.random() < 0.5 else rng.uniform(1, most))
    size = 0.0 if rng.random() < 0.05 else size
    both = size / max(abs(case.used_scale), 1e-9) / case.head_dim**0.5
    limit = LARGEST[case.dtype] / 8
    queries = min(10 ** rng.uniform(-2, np.log10(limit) / 2), limit) if size else 0.0
    keys = min(both / queries, limit) if size else 1.0
    case = replace(case, queries=min(queries, 1e14), keys=keys)
    style = rng.random()
    if style < 0.15:  # all large, and nearly alike
        case = replace(case, queries=1.0, keys=1.0, lift=float(min(both, limit)))
    elif style < 0.25:
        case = replace(case, queries=1.0, keys=1.0, climb=float(min(both, limit / 1e3)))
    if case.value_dim > 1 and rng.random() < 0.5:
        case = replace(case, ones=True)
    if case.has_rpb and rng.random() < 0.4:
        hidden = float(rng.choice([-1e3, -1e9, -1e20, -np.inf]))
        case = replace(case, hidden=hidden, hides=float(rng.choice([0.2, 0.8, 1.0])))
    return case


def worst(case: Extreme, tier: str) -> dict[str, float]:
    """Of every result of a tier the largest error over what it may be."""
    with ops.use_backend(tier):
        got = RUNS[case.kind](case)
    assert got.keys() == case.expected.keys()
    found = {}
    for name, bounded in case.expected.items():
        assert got[name].shape == bounded.value.shape, name
        dtype = "float32" if name == "lse" else case.dtype
        found[name] = bounded.stored(dtype).worst(got[name], dtype)
    if "d_value" in found and "lse" in got:
        found["sum of d_value"] = _sum_of_weights(case, got)
    return found


def _sum_of_weights(case: Extreme, got: dict[str, np.ndarray]) -> float:
    """Weights of a query add up to 1 backward, too: what values get is what outputs are given."""
    d_out = np.where(np.isinf(got["lse"])[..., None], 0, float64(case.numbers["d_out"]))
    d_out = d_out.reshape(case.batch, -1, case.kv_heads, case.group, case.value_dim)
    given = [got[name] for name in ("d_value", "d_extra value") if name in got]
    given = np.concatenate([x.reshape(case.batch, -1, *x.shape[-2:]) for x in given], axis=1)
    if not np.isfinite(given).all():
        return 0.0  # it has overflowed, as it may or not: that is told above
    size, rounded = np.abs(d_out).sum((1, 3)), np.abs(given).sum(1)
    # What the dtype rounds is given, what additional keys get and the dtype has rounded, too.
    error = relative(d_out.shape[1] * case.group + case.hood.volume) * size
    rounding = ROUNDING[case.dtype] * (rounded + (2 * size if case.extra else 0))
    slack = error + rounding + given.shape[1] * SMALLEST[case.dtype] + 1e-25
    return float((np.abs(d_out.sum((1, 3)) - given.sum(1)) / slack).max(initial=0))


def _vjp(function, inputs: dict[str, mx.array], upper: list[mx.array], names: list[str]):
    """Results and gradients, by name, in float64."""
    results, grads = mx.vjp(function, list(inputs.values()), upper)
    pairs = zip([*names, *(f"d_{name}" for name in inputs)], [*results, *grads], strict=True)
    return {name: float64(x) for name, x in pairs}


def _run_attention(case: Extreme) -> dict[str, np.ndarray]:
    named = {name: x for name, x in case.numbers.items() if not name.startswith("d_")}

    def function(*arrays: mx.array) -> list[mx.array]:
        given = dict(zip(named, arrays, strict=True))
        more = {"rpb": given.get("rpb"), "scale": case.scale, "return_lse": True}
        qkv = [given[name] for name in ("query", "key", "value")]
        if case.extra:
            more |= {f"additional_{n}s": given[f"extra {n}"] for n in ("key", "value")}
        if case.lengths is None:
            return list(RANKED[""][case.rank](*qkv, case.kernel_size, **options(case), **more))
        sizes = mx.array(np.array(case.lengths, np.int32).reshape(case.batch, case.rank))
        run = RANKED["_varlen"][case.rank]
        return list(run(*qkv, sizes, case.kernel_size, **options(case), **more))

    upper = [case.numbers[name] for name in ("d_out", "d_lse")]
    return _vjp(function, named, upper, ["out", "lse"])


def _run_qk(case: Extreme) -> dict[str, np.ndarray]:
    named = {n: x for n, x in case.numbers.items() if n != "attn"}

    def function(query: mx.array, key: mx.array, *rpb: mx.array) -> list[mx.array]:
        more = {"rpb": rpb[0] if rpb else None, "scale": case.scale}
        return [RANKED["_qk"][case.rank](query, key, case.kernel_size, **options(case), **more)]

    return _vjp(function, named, [case.numbers["attn"]], ["logits"])


def _run_av(case: Extreme) -> dict[str, np.ndarray]:
    named = {n: case.numbers[n] for n in ("attn", "value")}

    def function(attn: mx.array, value: mx.array) -> list[mx.array]:
        return [RANKED["_av"][case.rank](attn, value, case.kernel_size, **options(case))]

    return _vjp(function, named, [case.numbers["d_out"]], ["out"])


def _expect_attention(case: Extreme) -> dict[str, Bounded]:
    numbers = {name: float64(x) for name, x in case.numbers.items()}

    def rows(*names: str) -> np.ndarray:
        """`[B, H, tokens, D]` of those arrays that there are, one behind the other."""
        arrays = [numbers[n] for n in names if n in numbers]
        arrays = [x.reshape(len(x), -1, *x.shape[-2:]) for x in arrays]
        return np.moveaxis(np.concatenate(arrays, axis=1), 2, 1)

    def home(x: Bounded, name: str) -> Bounded:
        """In the shape of an array."""
        return _each(x, lambda a: np.moveaxis(a, 1, 2).reshape(numbers[name].shape))

    full, numbers["query"] = numbers["query"], case.keep(numbers["query"])
    numbers["d_lse"] = numbers["d_lse"][..., None]
    problem = Attention(
        case.reference, rows("query"), rows("key", "extra key"), rows("value", "extra value"),
        numbers.get("rpb"), rows("d_out"), rows("d_lse")[..., 0], case.dtype, case.extra,
    )  # fmt: skip
    numbers["d_lse"] = numbers["d_lse"][..., 0]
    grads, tokens = problem.backward(), math.prod(case.spatial)
    found = {"out": home(problem.out, "d_out"), "lse": home(problem.lse, "d_lse")}
    found["d_query"] = _spread(case, home(grads["query"], "query"), full.shape)
    for name in ("key", "value"):
        found[f"d_{name}"] = home(_each(grads[name], lambda x: x[:, :, :tokens]), name)
        if case.extra:
            more = _each(grads[name], lambda x: x[:, :, tokens:])
            found[f"d_extra {name}"] = home(more, f"extra {name}")
    if case.has_rpb:
        found["d_rpb"] = grads["rpb"]
    if case.ones:  # whatever the weights are, their sum is known
        one = found["out"].error[..., 0]
        one[:] = np.minimum(one, relative(problem.v.value.shape[2]) + problem.parts)
    return found


def _spread(case: Extreme, x: Bounded, shape: tuple[int, ...]) -> Bounded:
    """Gradients of the queries that the stride keeps, among zeros for the others."""

    def spread(kept: np.ndarray) -> np.ndarray:
        full = np.zeros(shape)
        case.keep(full)[:] = kept
        return full

    return _each(x, spread)


def _each(x: Bounded, change) -> Bounded:
    return Bounded(change(x.value), change(x.error))


def _expect_qk(case: Extreme) -> dict[str, Bounded]:
    q, k, d, rpb = (_float64(case, name) for name in ("query", "key", "attn", "rpb"))
    return _linear(case, ("logits", "d_query", "d_key", "d_rpb"), _qk, (q, k, d, rpb))


def _qk(reference: Reference, q, k, d, rpb) -> list[np.ndarray | None]:
    return [reference.qk(q, k, rpb), *reference.qk_backward(q, k, rpb, d)]


def _expect_av(case: Extreme) -> dict[str, Bounded]:
    given = tuple(_float64(case, name) for name in ("attn", "value", "d_out"))
    return _linear(case, ("out", "d_attn", "d_value"), _av, given)


def _av(reference: Reference, attn, value, d) -> list[np.ndarray]:
    return [reference.av(attn, value), *reference.av_backward(attn, value, d)]


def _linear(case, names, function, given) -> dict[str, Bounded]:
    """Sums of products: an error is relative to the sum of their absolute values."""
    reference = case.reference
    terms = max(case.head_dim, case.value_dim, case.hood.volume * case.group, 64)
    results = function(reference, *given)
    absolute = [None if x is None else np.abs(x) for x in given]
    sizes = function(replace(reference, scale=abs(reference.scale)), *absolute)
    found = {}
    for name, x, size in zip(names, results, sizes, strict=True):
        if x is not None:
            found[name] = Bounded(x, relative(terms) * size)
    if "d_query" in found:
        shape = (case.batch, *case.spatial, case.heads, case.head_dim)
        found["d_query"] = _spread(case, found["d_query"], shape)
    return found


def _float64(case: Extreme, name: str) -> np.ndarray | None:
    if name not in case.numbers:
        return None
    x = float64(case.numbers[name])
    return case.keep(x) if name == "query" else x


RUNS = {"attention": _run_attention, "extra": _run_attention, "varlen": _run_attention,
        "qk": _run_qk, "av": _run_av}  # fmt: skip
EXPECTED = {"attention": _expect_attention, "extra": _expect_attention,
            "varlen": _expect_attention, "qk": _expect_qk, "av": _expect_av}  # fmt: skip
