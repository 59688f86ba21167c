"""Building and launching the kernels of metal/."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from threading import RLock
from typing import Any, NamedTuple, NotRequired, TypedDict, cast

import mlx.core as mx

from ... import metal
from ...metal import FLOAT32, INT32, Core, kernel_without
from ...metal.excerpt import excerpt
from ..exports import export_target
from ..tier import KernelError
from .device import Device
from .plan import Plan, Template, smallest

log = logging.getLogger(__name__)

Launcher = Callable[..., list[mx.array]]  # what MLX builds
MadeOf = tuple[str, "str | None", Core, int, int, frozenset[str]]


class KernelText(TypedDict):
    """What MLX builds a kernel from."""

    name: str
    input_names: list[str]
    output_names: list[str]
    source: str
    header: str
    ensure_row_contiguous: bool
    shared_memory: NotRequired[int]  # CUDA


class Build(NamedTuple):
    """What is proven at once: a kernel for one GPU, core and template, in so many threads."""

    kernel: str
    core: Core
    template: Template
    threads: int
    platform: str | None
    generation: str

    @classmethod
    def of(cls, kernel: str, plan: Plan) -> Build:
        """What a kernel's plan needs."""
        device = plan.device
        where = device.platform, device.generation
        return cls(kernel, plan.core, plan.template, plan.threads, *where)

    @property
    def pipeline(self) -> Build:
        """What is compiled for it, whatever the number of threads."""
        return self._replace(threads=0)

    def is_on(self, device: Device) -> bool:
        """Whether it is for this GPU."""
        return (self.platform, self.generation) == (device.platform, device.generation)


Proof = tuple[Build, "str | None"]  # what was tried, and why it cannot be built, if so

# What was found out about devices: facts, that no plan is cached by.
_proven: set[Build] = set()
_failed: dict[Build, str] = {}
_unbounded: set[tuple[str | None, str]] = set()  # GPUs whose compiler takes no number of threads
_proving = RLock()
# What was found out in a `with` block of one thread or task.
_watched: ContextVar[list[Proof] | None] = ContextVar("natten_zoo_proofs", default=None)


def failures(device: Device) -> dict[Build, str]:
    """What could not be built on a GPU so far, and why."""
    return {build: why for build, why in list(_failed.items()) if build.is_on(device)}


def failed() -> frozenset[Build]:
    """What could not be built on any GPU so far."""
    return frozenset(_failed)


def pipelines() -> set[Build]:
    """What was compiled so far."""
    return {build.pipeline for build in list(_proven)}


def why_failed(kernel: str, plan: Plan) -> str | None:
    """Why a kernel could not be built earlier, if so."""
    return _failed.get(Build.of(kernel, plan))


def told(plan: Plan) -> int:
    """What a kernel's compiler is told (`resident` of `metal.header`)."""
    if plan.device.platform == "cuda":
        return plan.resident
    return int((plan.device.platform, plan.device.generation) not in _unbounded)


@contextmanager
def watch() -> Iterator[list[Proof]]:
    """Yields a list that fills with what is built within, or fails to be."""
    proofs: list[Proof] = []
    token = _watched.set(proofs)
    try:
        yield proofs
    finally:
        _watched.reset(token)


def launch(
    name: str, plan: Plan, inputs: Sequence[mx.array], output_shapes: Sequence[Sequence[int]]
) -> list[mx.array]:
    """Runs a kernel over all threadgroups of a plan, whose `params` join the inputs."""
    if not plan.threadgroups:
        return [mx.zeros(s, d) for s, d in zip(output_shapes, dtypes(name, plan), strict=True)]
    return _run(name, plan, plan.params, inputs, output_shapes)


def prove(name: str, plan: Plan, trial: Callable[[Plan], None]) -> None:
    """Builds a kernel by running it on one token: MLX builds late, where no one can fall back.

    Args:
        name: Of the kernel.
        plan: Any that it is launched with.
        trial: Raises a `RuntimeError` if the plan's core is not to be trusted.

    Raises:
        KernelError: If this device cannot build it, or should not.
    """
    if name in plan.built or not plan.threadgroups:
        return
    build = Build.of(name, plan)
    with _proving:  # one thread builds, and says so if it fails
        if build not in _proven and build not in _failed:
            what = f"kernel {name} cannot be built on this device"
            try:
                _try_bounded(name, plan)
                what = f"core {plan.core.name} does not multiply as expected on this device"
                trial(plan)
                _proven.add(build)
            except (RuntimeError, ValueError) as error:  # MLX has both for what it can't launch
                _failed[build] = f"{what}: {' '.join(str(error).split())[:300]}"
                log.warning("natten_zoo: %s. Falling back.", _failed[build])
            if (watched := _watched.get()) is not None:
                watched.append((build, _failed.get(build)))
    if build in _failed:
        raise KernelError(_failed[build])
    plan.built.add(name)


def _try_bounded(name: str, plan: Plan) -> None:
    """Tries a kernel, on Metal first with a bound of its threads and then without."""
    try:
        return _try(name, plan)
    except (RuntimeError, ValueError):
        gpu = plan.device.platform, plan.device.generation
        if gpu[0] == "cuda" or gpu in _unbounded:
            raise
    _unbounded.add(gpu)
    try:
        _try(name, plan)
    except (RuntimeError, ValueError):
        _unbounded.remove(gpu)  # that was not it
        raise


def _try(name: str, plan: Plan) -> None:
    kernel, one = kernel_without(name, plan.template.absent), smallest(plan)
    sizes = dict(zip(("D", "DV"), plan.template.dims, strict=True))
    longest = max(plan.template.dims)
    shape = (1,) * (plan.template.rank + 2) + (longest,)
    inputs = [mx.zeros(shape, dtype(array, plan)) for array in kernel.inputs if array != "params"]
    lengths = {n: sizes[s] if isinstance(s, str) else s for n, s in kernel.outputs.items()}
    lengths |= {"d_rpb": plan.teams} if plan.template.sums_rpb else {}
    lengths |= {"d_key": 3 * longest} if plan.template.is_packed else {}
    mx.eval(_run(name, one, one.params, inputs, [(n,) for n in lengths.values()]))


def _run(
    name: str,
    plan: Plan,
    params: mx.array,
    inputs: Sequence[mx.array],
    output_shapes: Sequence[Sequence[int]],
) -> list[mx.array]:
    at = kernel_without(name, plan.template.absent).inputs.index("params")
    arrays = [_long_enough(x) for x in inputs]
    return _function(*made_of(name, plan))(
        inputs=[*arrays[:at], params, *arrays[at:]],
        template=list(plan.template.arguments),
        grid=(plan.threadgroups * plan.threads, 1, 1),
        threadgroup=(plan.threads, 1, 1),
        output_shapes=[tuple(s) for s in output_shapes],
        output_dtypes=dtypes(name, plan),
    )


def made_of(name: str, plan: Plan) -> MadeOf:
    """What a kernel's text depends on, as `text` takes it."""
    of_device = plan.device.platform, plan.core, told(plan), plan.memory
    return name, *of_device, plan.template.absent


def _function(name: str, platform: str | None, *made: Any) -> Launcher:
    build = mx.fast.cuda_kernel if platform == "cuda" else mx.fast.metal_kernel
    return _built(build, name, platform, *made)


@cache
def _built(build: Callable[..., Any], *made: Any) -> Launcher:
    return cast(Launcher, build(**text(*made)))


@cache
def text(
    name: str,
    platform: str | None,
    core: Core,
    resident: int,
    memory: int = 0,
    absent: frozenset[str] = frozenset(),
) -> KernelText:
    """What MLX builds a kernel from.

    Args:
        name: Of the kernel.
        platform: `"cuda"`, or it is for Metal.
        core: Who multiplies.
        resident: See `told`.
        memory: On CUDA the bytes of threadgroup memory for its slabs.
        absent: Arrays that a problem has not.
    """
    kernel, dialect = kernel_without(name, absent), "cuda" if platform == "cuda" else "metal"
    header, body = excerpt(metal.header(dialect, core, resident), metal.body(name, absent))
    # MLX keeps what it has built by name, on CUDA even on disk: another text needs another name.
    digest = hashlib.sha256((header + body).encode()).hexdigest()[:12]
    built: KernelText = {
        "name": f"natten_zoo_{name}_{digest}",
        "input_names": list(kernel.inputs),
        "output_names": list(kernel.outputs),
        "source": body,
        "header": header,
        "ensure_row_contiguous": False,  # the kernels take rows where they lie
    }
    if platform == "cuda":
        built["shared_memory"] = memory
    return built


def dtype(array: str, plan: Plan) -> mx.Dtype:
    """Of an array, by its name."""
    if array in INT32:
        return mx.int32
    return mx.float32 if array in FLOAT32 else plan.template.dtype


def dtypes(name: str, plan: Plan) -> list[mx.Dtype]:
    """Of the outputs of a kernel."""
    return [dtype(x, plan) for x in kernel_without(name, plan.template.absent).outputs]


def _long_enough(x: mx.array) -> mx.array:
    """MLX puts inputs of fewer than 8 elements into another address space; the kernels want one."""
    return x if x.size >= 8 else mx.concatenate([x, mx.zeros((8, *x.shape[1:]), x.dtype)])


def contiguous(x: mx.array) -> mx.array:
    """`x`, copied unless it is row-contiguous."""
    if not export_target():
        return mx.contiguous(x)
    # MLX can't write that to a file. Bytes are what it makes of rows only where they lie together.
    return x.reshape(-1).view(mx.uint8).view(x.dtype).reshape(x.shape)
