"""The differentiation rules, written once for all tiers.

A tier computes; it need know nothing of automatic differentiation. Each function here makes of a
problem and its tier a function of arrays that `mx.grad`, `mx.vmap` and `mx.compile`
understand: one that wraps the tier's forward and backward. A tier whose arrays carry the same rule,
as the compiled one's do on a CPU, gives its own. One that turns out to be unable to build its
kernels on this device hands the problem on to the pure tier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn, cast

import mlx.core as mx

from . import pure
from .backend import or_pure
from .exports import export_target
from .problem import Problem, unpack
from .tier import Run, Tier

ArrayFunction = Callable[..., list[mx.array]]
Arrays = Sequence[mx.array]
Axes = Sequence[int | None]  # of each array, the one that is mapped over
Mapped = tuple[list[mx.array], list[int]]  # arrays, and the axis of each that was mapped over


def attention(problem: Problem, tier: Tier) -> Run:
    """`(query, key, value) -> (out, lse, stats)` of `Tier.forward`, or without an LSE if the
    problem has none.

    Differentiable in `out` and `lse`; `stats` is what the tier's backward needs to find the
    weights again (see `Problem`).
    """
    return _run("forward", problem, tier, _attention)


def packed_attention(problem: Problem, tier: Tier) -> Run:
    """`attention` to the parts of one array, `unpack`'s, whose gradient is one array, too."""
    return _run("forward_packed", problem, tier, _packed_attention)


def qk(problem: Problem, tier: Tier) -> Run:
    """`(query, key) -> (logits,)` of `Tier.qk`."""
    return _run("qk", problem, tier, _qk)


def av(problem: Problem, tier: Tier) -> Run:
    """`(attn, value) -> (out,)`, the weighted values of `Tier.av`."""
    return _run("av", problem, tier, _av)


def _run(
    op: str, problem: Problem, tier: Tier, rule: Callable[[Problem, Tier, bool], ArrayFunction]
) -> Run:
    """The tier's own differentiable function, or that of a rule below."""
    by_itself = tier.differentiable(op, problem)
    if by_itself is not None:
        return by_itself
    function = rule(problem, tier, export_target() is not None)

    def run(arrays: Arrays, rpb: mx.array | None, lengths: mx.array | None) -> list[mx.array]:
        return function(*arrays, *(x for x in (rpb, lengths) if x is not None))

    return run


def _attention(problem: Problem, tier: Tier, exported: bool) -> ArrayFunction:
    forward = _attend_by(tier)
    tier_backward = or_pure(tier, tier.backward, pure.backward)

    def backward(problem: Problem, *inputs: mx.array) -> list[mx.array]:
        given, results = _apart(problem, inputs)
        query, key, value, rpb, lengths = _unpack(problem, given, 3)
        grads = tier_backward(problem, query, key, value, rpb, lengths, *results)
        return [g for g in grads if g is not None]

    return _function(problem, forward, backward, exported, rpb_at=3, is_attention=True)


def _packed_attention(problem: Problem, tier: Tier, exported: bool) -> ArrayFunction:
    attend = _attend_by(tier)
    tier_backward = or_pure(tier, tier.backward_packed, pure.backward_packed)

    def forward(problem: Problem, *inputs: mx.array) -> list[mx.array]:
        return attend(problem, *unpack(problem, inputs[0]), *inputs[1:])

    def backward(problem: Problem, *inputs: mx.array) -> list[mx.array]:
        given, results = _apart(problem, inputs)
        qkv, rpb, lengths = _unpack(problem, given, 1)
        grads = tier_backward(problem, *unpack(problem, qkv), rpb, lengths, *results)
        return [g for g in grads if g is not None]

    return _function(problem, forward, backward, exported, rpb_at=1, is_attention=True)


def _apart(problem: Problem, inputs: Arrays) -> tuple[Arrays, Arrays]:
    """What attention was given, and `out`, `stats`, `d_out` and, if there is one, `d_lse`."""
    results = 4 if problem.has_lse else 3
    return inputs[:-results], inputs[-results:]


def _attend_by(tier: Tier) -> ArrayFunction:
    tier_forward = or_pure(tier, tier.forward, pure.forward)

    def forward(problem: Problem, *inputs: mx.array) -> list[mx.array]:
        query, key, value, rpb, lengths = _unpack(problem, inputs, 3)
        if problem.batch == 0:
            shape = query.shape[:-1]
            found = mx.zeros((*shape, problem.value_dim), problem.dtype), mx.zeros(shape)
            return [*found[: 1 + problem.has_lse], mx.zeros((*shape, 2))]
        out, lse, stats = tier_forward(problem, query, key, value, rpb, lengths)
        return [out, stats] if lse is None or not problem.has_lse else [out, lse, stats]

    return forward


def _qk(problem: Problem, tier: Tier, exported: bool) -> ArrayFunction:
    tier_qk = or_pure(tier, tier.qk, pure.qk)
    tier_backward = or_pure(tier, tier.qk_backward, pure.qk_backward)

    def forward(problem: Problem, *inputs: mx.array) -> list[mx.array]:
        query, key, rpb, lengths = _unpack(problem, inputs, 2)
        if problem.batch == 0:
            shape = (*query.shape[:-1], problem.neighborhood.volume)
            return [mx.zeros(shape, problem.dtype)]
        return [tier_qk(problem, query, key, rpb, lengths)]

    def backward(problem: Problem, *inputs: mx.array) -> list[mx.array]:
        *given, d_logits = inputs
        query, key, rpb, lengths = _unpack(problem, given, 2)
        grads = tier_backward(problem, query, key, rpb, lengths, d_logits)
        return [g for g in grads if g is not None]

    return _function(problem, forward, backward, exported, rpb_at=2)


def _av(problem: Problem, tier: Tier, exported: bool) -> ArrayFunction:
    tier_av = or_pure(tier, tier.av, pure.av)
    tier_backward = or_pure(tier, tier.av_backward, pure.av_backward)

    def forward(problem: Problem, *inputs: mx.array) -> list[mx.array]:
        attn, value, _, lengths = _unpack(problem, inputs, 2)
        if problem.batch == 0:
            return [mx.zeros((*attn.shape[:-1], problem.value_dim), problem.dtype)]
        return [tier_av(problem, attn, value, lengths)]

    def backward(problem: Problem, *inputs: mx.array) -> list[mx.array]:
        *given, d_out = inputs
        attn, value, _, lengths = _unpack(problem, given, 2)
        return list(tier_backward(problem, attn, value, lengths, d_out))

    return _function(problem, forward, backward, exported)


def _unpack(problem: Problem, inputs: Arrays, arrays: int) -> tuple[Any, ...]:
    """The given arrays followed by `rpb` and `lengths`, None where the problem has none."""
    rpb = inputs[arrays] if problem.has_rpb else None
    lengths = inputs[-1] if problem.has_lengths else None
    return (*inputs[:arrays], rpb, lengths)


def _function(
    problem: Problem,
    forward: ArrayFunction,
    backward: ArrayFunction,
    exported: bool,
    rpb_at: int | None = None,
    is_attention: bool = False,
) -> ArrayFunction:
    """The function of a problem: with its rules, unless it is being exported (`exporting`)."""
    if exported:
        return partial(forward, problem)
    return _differentiable(problem, forward, backward, rpb_at, is_attention)


def _differentiable(
    problem: Problem,
    forward: ArrayFunction,
    backward: ArrayFunction,
    rpb_at: int | None,
    is_attention: bool,
) -> ArrayFunction:
    """`forward` with the gradient `backward`, which attention gives its first and last output, too.

    The last one, `stats`, no caller gets. What is given MLX computes, zeros too: there are none for
    an output that nobody asks for.
    """
    function = mx.custom_function(lambda *inputs: forward(problem, *_untraced(inputs)))
    gradient = _gradient(problem, backward)

    @function.vjp
    def vjp(given: mx.array | Arrays, cotangents: Arrays, outputs: Arrays) -> list[mx.array]:
        primals = _several(given)
        if problem.batch == 0:
            return [mx.zeros_like(x) for x in primals]
        results = (outputs[0], outputs[-1], *cotangents[:-1]) if is_attention else cotangents
        grads = gradient(*primals, *results)
        return [*grads, mx.zeros_like(primals[-1])] if problem.has_lengths else grads

    function.jvp(_refuse_forward_mode)

    @function.vmap
    def vmap(given: mx.array | Arrays, of_given: int | Axes) -> Mapped:
        inputs, axes = _several(given), _several(of_given)

        # With the rules again: what is mapped may be differentiated, or mapped once more.
        def mapped(problem: Problem, *inputs: mx.array) -> list[mx.array]:
            return _differentiable(problem, forward, backward, rpb_at, is_attention)(*inputs)

        if rpb_at is not None and problem.has_rpb and axes[rpb_at] is not None:
            return _loop(problem, mapped, inputs, axes)
        return _fold(problem, mapped, inputs, axes, rpb_at if problem.has_rpb else None)

    return cast(ArrayFunction, function)


def _several(given: Any) -> Sequence[Any]:
    """MLX has a rule's only array, or its axis, come by itself."""
    return [given] if isinstance(given, (mx.array, int)) else given


def _untraced(inputs: tuple[mx.array, ...]) -> Iterator[mx.array]:
    """Inputs that no transformation looks into: else forward mode would, before our rule."""
    return map(mx.stop_gradient, inputs)


def _refuse_forward_mode(primals: Any, tangents: Any) -> Any:
    raise NotImplementedError(
        "[neighborhood attention] forward-mode derivatives (mx.jvp) are not supported; use mx.grad "
        "or mx.vjp."
    )


def _gradient(problem: Problem, backward: ArrayFunction) -> ArrayFunction:
    gradient = mx.custom_function(lambda *inputs: backward(problem, *_untraced(inputs)))

    @gradient.vjp
    def second_order(primals: Arrays, cotangents: Arrays, outputs: Arrays) -> NoReturn:
        raise NotImplementedError(
            "[neighborhood attention] gradients of gradients are not supported."
        )

    gradient.jvp(_refuse_forward_mode)

    @gradient.vmap
    def vmap(inputs: Arrays, axes: Axes) -> Mapped:
        def mapped(problem: Problem, *inputs: mx.array) -> list[mx.array]:
            return _gradient(problem, backward)(*inputs)

        # The gradient of rpb sums over the batch, which must not mix mapped entries.
        map_over = _loop if problem.has_rpb else _fold
        return map_over(problem, mapped, inputs, axes)

    return cast(ArrayFunction, gradient)


def _fold(
    problem: Problem, function: ArrayFunction, inputs: Arrays, axes: Axes, shared: int | None = None
) -> Mapped:
    """Maps over an axis by folding it into the batch of every input but `shared`."""
    n = _mapped_size(inputs, axes)
    folded = []
    for i, (x, axis) in enumerate(zip(inputs, axes, strict=True)):
        if i != shared:
            x = mx.broadcast_to(x, (n, *x.shape)) if axis is None else mx.moveaxis(x, axis, 0)
            x = x.reshape(n * x.shape[1], *x.shape[2:])
        folded.append(x)
    outputs = function(replace(problem, batch=n * problem.batch), *folded)
    return [y.reshape(n, problem.batch, *y.shape[1:]) for y in outputs], [0] * len(outputs)


def _loop(problem: Problem, function: ArrayFunction, inputs: Arrays, axes: Axes) -> Mapped:
    """Maps over an axis by calling the function once per entry."""
    n = _mapped_size(inputs, axes)
    entries = [
        [x] * n if a is None else [y.squeeze(a) for y in mx.split(x, n, a)]
        for x, a in zip(inputs, axes, strict=True)
    ]
    each = [function(problem, *xs) for xs in zip(*entries, strict=True)]
    return [mx.stack(list(ys)) for ys in zip(*each, strict=True)], [0] * len(each[0])


def _mapped_size(inputs: Arrays, axes: Axes) -> int:
    return next(x.shape[a] for x, a in zip(inputs, axes, strict=True) if a is not None)
