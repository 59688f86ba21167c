"""Times whole models on a GPU: inference, a training step, and what of them is attention.

    python scripts/gpu_models.py --build --out models.json
    python scripts/gpu_models.py nat_mini --batch 64 --contestants ours flex --compile whole

`ours` is the model compiled by mx.compile, `dense` and `flex` the same in torch
(scripts/torch_attention.py): attention with a dense mask, and compiled flex_attention with the bias
as its score_mod. `--compile` says what more torch.compile is given: each kind of block, the whole
model, or the whole as CUDA graphs. Each is timed in a process of its own, one after the other:
medians of rounds after a warm-up. A training step is forward, backward and AdamW in the dtype
given. A contestant whose time is over, or who fails, keeps the figures it has by then, with the
error beside them.

All build kernels for minutes, MLX those that mx.compile fuses. With `--build` that is done before
the timing, in processes side by side; those find them on the disk who are timed.

`attention` is what the attention of all layers takes by itself, from projected queries, keys and
values on and back to their gradient: what is left of a step is MLX's products, norms and
activations.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

ROUNDS = 7
MODELS = ["nat_mini", "dinat_base", "upernet_nat_mini", "na_unetr_small"]
BATCHES = {"image-classification": 64, "image-segmentation": 8, "volume-segmentation": 2}
CONTESTANTS = ("ours", "dense", "flex")
FIGURES = ("images_per_s", "trained_per_s", "latency_ms")
Figures = Iterator[tuple[str, float]]
Step = Callable[[], Any]


def main() -> None:
    """Prints a row of JSON per model and contestant as soon as it is timed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--batch", type=int, help="default: " + json.dumps(BATCHES))
    parser.add_argument("--size", type=int, help="side of the input; default: the model's own")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--contestants", nargs="*", default=CONTESTANTS, choices=CONTESTANTS)
    parser.add_argument(
        "--compile", default="blocks", choices=["none", "blocks", "whole", "graphs"]
    )
    parser.add_argument("--seconds", type=int, default=300, help="that a contestant is given")
    parser.add_argument("--build", action="store_true", help="build all kernels first")
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--figure", choices=FIGURES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        for figure, value in ours(args) if args.one == "ours" else torchs(args):
            print(json.dumps({figure: round(value, 3)}), flush=True)
        return
    if args.build:
        print(json.dumps({"built_s": round(build(args), 1)}), flush=True)
    rows = []
    for name in args.models:
        for contestant in args.contestants:
            row = {"model": name, "contestant": contestant, "compiled": args.compile}
            rows.append(row | figures(command(name, contestant, args), args.seconds))
            print(json.dumps(rows[-1]), flush=True)
            if args.out:
                args.out.write_text(json.dumps(rows, indent=1))


def command(name: str, contestant: str, args: argparse.Namespace) -> list[str]:
    """What prints the figures of a contestant."""
    given = [sys.executable, __file__, name, "--one", contestant]
    given += ["--dtype", args.dtype, "--compile", args.compile]
    given += ["--batch", str(args.batch)] if args.batch else []
    return given + (["--size", str(args.size)] if args.size else [])


def build(args: argparse.Namespace) -> float:
    """Has each contestant build each figure's kernels, all at the same time; seconds of it.

    One that fails will do so again where it is timed, and say why.
    """
    compile_too = CONTESTANTS if args.compile != "none" else ("ours", "flex")
    wanted = [c for c in args.contestants if c in compile_too]
    start = time.perf_counter()
    builders = [
        subprocess.Popen(
            [*command(name, contestant, args), "--figure", figure],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "4"},
        )
        for name in args.models
        for contestant in wanted
        for figure in FIGURES
    ]
    for builder in builders:
        try:
            builder.wait(max(0, args.seconds - (time.perf_counter() - start)))
        except subprocess.TimeoutExpired:
            builder.kill()
    return time.perf_counter() - start


def figures(command: list[str], seconds: float) -> dict[str, Any]:
    """Those that a command prints, one JSON object a line, until it ends or its time is over."""
    error = {}
    try:
        run = subprocess.run(command, capture_output=True, timeout=seconds)
        printed = run.stdout
        if run.returncode:
            error["error"] = " ".join(run.stderr.decode(errors="replace").split())[-400:]
    except subprocess.TimeoutExpired as late:
        printed = late.stdout or b""
        error["error"] = f"not done after {seconds} s"
    found: dict[str, Any] = {}
    for line in printed.decode(errors="replace").splitlines():
        if line.startswith("{"):  # libraries print, too
            found |= json.loads(line)
    return found | error


def timed(
    model: Any, images: int, build: str | None, steps: tuple[Step, ...], wait: Callable[[Any], Any]
) -> Figures:
    """The figures of inference, a training step and one image; or that of `build` is only built."""
    for figure, step in zip(FIGURES, steps, strict=True):
        model.train(figure == "trained_per_s")
        if build is None:
            seconds = median(step, wait)
            yield figure, 1e3 * seconds if figure == "latency_ms" else images / seconds
        elif build == figure:
            wait(step())


def median(step: Callable[[], Any], wait: Callable[[Any], Any]) -> float:
    """Seconds of a call, of several in a row."""

    def round_of(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            last = step()
        wait(last)
        return (time.perf_counter() - start) / calls

    round_of(2)
    calls = max(1, min(20, int(0.2 / round_of(1))))
    return statistics.median(round_of(calls) for _ in range(ROUNDS))


# ---- Ours


def ours(args: argparse.Namespace) -> Figures:
    """The model as it is, with its training step, and the attention in both."""
    import mlx.core as mx
    import mlx.nn as nn
    import mlx.optimizers as optim

    from natten_zoo import create_model

    model, kind = create_model(args.models[0]), getattr(mx, args.dtype)
    model.set_dtype(kind)
    optimizer = optim.AdamW(1e-4)
    state = [model.state, optimizer.state, mx.random.state]
    images, one = (mx.random.normal(shape).astype(kind) for shape in sizes(model, args))
    mx.eval(state, images, one)

    def loss(images: Any) -> Any:
        return model(images).astype(mx.float32).square().mean()

    @partial(mx.compile, inputs=state, outputs=state)
    def train() -> Any:
        value, grads = nn.value_and_grad(model, loss)(images)
        optimizer.update(model, grads)
        return value

    def wait(last: Any) -> None:
        mx.eval(last, state)

    infer = mx.compile(model, inputs=state)
    yield "batch", len(images)
    steps = tuple(
        lambda step=step: evaluated(step())
        for step in (lambda: infer(images), train, lambda: infer(one))
    )
    rates: dict[str, float] = {}
    for figure, value in timed(model, len(images), args.figure, steps, wait):
        rates[figure] = value
        yield figure, value
    if args.figure:
        return
    forward, both = attention(model, images)
    yield "attention_of_inference", forward * rates["images_per_s"] / len(images)
    yield "attention_of_training", both * rates["trained_per_s"] / len(images)


def evaluated(x: Any) -> Any:
    """Has the GPU begin with it."""
    import mlx.core as mx

    mx.async_eval(x)
    return x


def sizes(model: Any, args: argparse.Namespace) -> Iterator[tuple[int, ...]]:
    """Of many inputs and of one, channels last."""
    side, rank = args.size or model.record.input_size, len(model.AXES)
    for images in (args.batch or BATCHES[model.TASK], 1):
        yield (images, *(side,) * rank, model.config.in_chans)


def attention(model: Any, images: Any) -> tuple[float, float]:
    """Seconds of all layers' attention by itself: forward, and with backward."""
    import mlx.core as mx

    from natten_zoo import layers

    given: list[tuple[Any, Any]] = []
    original = layers.NeighborhoodAttention.attend_packed

    def noted(layer: Any, qkv: Any, lengths: Any = None) -> Any:
        given.append((layer, mx.stop_gradient(qkv)))
        return original(layer, qkv, lengths)

    layers.NeighborhoodAttention.attend_packed = noted
    mx.eval(model(images))
    layers.NeighborhoodAttention.attend_packed = original
    arrays = [qkv for _, qkv in given]
    mx.eval(arrays)

    def forward(arrays: list[Any]) -> list[Any]:
        pairs = zip(given, arrays, strict=True)
        return [layer.attend_packed(qkv) for (layer, _), qkv in pairs]

    def total(arrays: list[Any]) -> Any:
        return sum(x.astype(mx.float32).sum() for x in forward(arrays))

    if not given:
        return 0.0, 0.0
    once, both = mx.compile(forward), mx.compile(mx.grad(total))
    return tuple(median(lambda f=f: evaluated(f(arrays)), mx.eval) for f in (once, both))


# ---- torch's


def torchs(args: argparse.Namespace) -> Figures:
    """The same model in torch; on the CPU where torch finds no GPU. Or `--figure` is built."""
    import torch
    from torch_models import compile_parts, torch_peer

    from natten_zoo import create_model

    torch.set_float32_matmul_precision("high")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind, ours = getattr(torch, args.dtype), create_model(args.models[0])
    model = torch_peer(ours.config, args.one).to(device, kind).eval()
    images, one = (
        torch.randn(count, channels, *size, device=device, dtype=kind)
        for count, *size, channels in sizes(ours, args)
    )
    if images.ndim == 4:  # else cuDNN turns images around
        model, images, one = (x.to(memory_format=torch.channels_last) for x in (model, images, one))
    compile_parts(model, args.compile, one)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)

    @torch.no_grad()  # not inference_mode: the masks that flex keeps are trained with, too
    def infer(x: Any) -> Any:
        return model(x)

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(images).float().square().mean().backward()
        optimizer.step()

    def wait(_: Any) -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    yield "batch", len(images)
    steps = (lambda: infer(images)), train, (lambda: infer(one))
    yield from timed(model, len(images), args.figure, steps, wait)


if __name__ == "__main__":
    main()
