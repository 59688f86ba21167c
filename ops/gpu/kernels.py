"""Building and launching the kernels of metal/."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import mlx.core as mx

from ... import metal
from .plan import Plan, platform, smallest

log = logging.getLogger(__name__)

FLOAT32 = ("rpb", "lse", "d_lse", "delta", "d_rpb")
INT32 = ("params", "lengths")


@dataclass(frozen=True)
class Kernel:
    """The arrays of a kernel, as the first lines of its file name them.

    ``outputs`` maps a name to its size for a problem of one token: a template argument or None.
    """

    inputs: tuple[str, ...]
    outputs: dict[str, str | None]


_COMMON = ("params", "lengths", "rpb")
KERNELS = {
    "attention_forward": Kernel(("query", "key", "value", *_COMMON), {"out": "DV", "lse": None}),
    "attention_backward_query": Kernel(
        ("query", "key", "value", "out", "d_out", "lse", "d_lse", *_COMMON),
        {"d_query": "D", "delta": None, "d_rpb": None},
    ),
    "attention_backward_key": Kernel(
        ("query", "key", "value", "d_out", "lse", "delta", *_COMMON),
        {"d_key": "D", "d_value": "DV"},
    ),
    "qk": Kernel(("query", "key", *_COMMON), {"logits": None}),
    "av": Kernel(("attn", "value", *_COMMON), {"out": "DV", "d_rpb": None}),
    "av_backward_value": Kernel(("attn", "d_out", *_COMMON), {"d_value": "DV"}),
}

_broken: dict[tuple[Any, ...], str] = {}
_proven: set[tuple[Any, ...]] = set()


class KernelError(RuntimeError):
    """A kernel that this device cannot build or run."""


def anything_broken() -> bool:
    """Whether any kernel could not be built."""
    return bool(_broken)


def broken(name: str, plan: Plan) -> str | None:
    """Why a kernel could not be built earlier, if so."""
    return _broken.get(_key(name, plan))


def _key(name: str, plan: Plan) -> tuple[Any, ...]:
    return name, plan.core, plan.template


def launch(
    name: str, plan: Plan, inputs: Sequence[mx.array], output_shapes: Sequence[Sequence[int]]
) -> list[mx.array]:
    """Runs a kernel over all threadgroups of a plan, whose ``params`` join the inputs."""
    if not plan.groups:
        return [mx.zeros(s, d) for s, d in zip(output_shapes, dtypes(name, plan), strict=True)]
    return _run(name, plan, plan.params, inputs, output_shapes)


def prove(name: str, plan: Plan) -> None:
    """Builds a kernel by running it on one token: MLX builds late, where no one can fall back.

    Raises:
        KernelError: If this device cannot build it.
    """
    if name in plan.built or not plan.groups:
        return
    key = _key(name, plan)
    if key not in _proven and key not in _broken:
        try:
            _try(name, plan)
            _proven.add(key)
        except RuntimeError as error:
            why = " ".join(str(error).split())[:300]
            _broken[key] = f"kernel {name} cannot be built on this device: {why}"
            log.warning("natten_zoo: %s. Falling back.", _broken[key])
    if key in _broken:
        raise KernelError(_broken[key])
    plan.built.add(name)


def _try(name: str, plan: Plan) -> None:
    kernel, one = KERNELS[name], smallest(plan)
    longest = max(plan["D"], plan["DV"])
    inputs = [mx.zeros(longest, dtype(array, plan)) for array in kernel.inputs if array != "params"]
    shapes = [(plan[size] if size else 1,) for size in kernel.outputs.values()]
    if "d_rpb" in kernel.outputs and plan["SUMS"]:
        shapes[-1] = (plan.teams,)
    mx.eval(_run(name, one, one.params, inputs, shapes))


def _run(
    name: str,
    plan: Plan,
    params: mx.array,
    inputs: Sequence[mx.array],
    output_shapes: Sequence[Sequence[int]],
) -> list[mx.array]:
    at = KERNELS[name].inputs.index("params")
    arrays = [_long_enough(x) for x in inputs]
    return _function(name, platform(), plan.core, plan.resident)(
        inputs=[*arrays[:at], params, *arrays[at:]],
        template=list(plan.template),
        grid=(plan.groups * plan.threads, 1, 1),
        threadgroup=(plan.threads, 1, 1),
        output_shapes=[tuple(s) for s in output_shapes],
        output_dtypes=dtypes(name, plan),
    )


@cache
def _function(
    name: str, tier: str | None, core: metal.Core, resident: int
) -> Callable[..., list[mx.array]]:
    build: Callable[..., Any] = mx.fast.cuda_kernel if tier == "cuda" else mx.fast.metal_kernel
    return build(**text(name, tier, core, resident))


@cache
def text(name: str, tier: str | None, core: metal.Core, resident: int) -> dict[str, Any]:
    """What MLX builds a kernel from."""
    kernel, body = KERNELS[name], metal.body(name)
    header = metal.header("cuda" if tier == "cuda" else "metal", core, resident)
    # MLX keeps what it has built by name, on CUDA even on disk: another text needs another name.
    digest = hashlib.sha256((header + body).encode()).hexdigest()[:12]
    return {
        "name": f"natten_zoo_{name}_{digest}",
        "input_names": list(kernel.inputs),
        "output_names": list(kernel.outputs),
        "source": body,
        "header": header,
    }


def dtype(array: str, plan: Plan) -> mx.Dtype:
    """Of an array, by its name."""
    if array in INT32:
        return mx.int32
    return mx.float32 if array in FLOAT32 else plan.template[0][1]


def dtypes(name: str, plan: Plan) -> list[mx.Dtype]:
    """Of the outputs of a kernel."""
    return [dtype(array, plan) for array in KERNELS[name].outputs]


def _long_enough(x: mx.array) -> mx.array:
    """MLX puts inputs of fewer than 8 elements into another address space; the kernels want one."""
    return x if x.size >= 8 else mx.concatenate([x.reshape(-1), mx.zeros(8, x.dtype)])
