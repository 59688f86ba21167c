"""Times whole models on a GPU: inference, a training step, and what of them is attention.

    python scripts/gpu_models.py nat_mini dinat_base --batch 64 --out models.json
    python scripts/gpu_models.py upernet_nat_mini na_unetr_small --batch 2 --contestants ours

`ours` is the model compiled by mx.compile, `dense` and `flex` the same in torch
(scripts/torch_nat.py, classifiers only): attention with a dense mask, and compiled flex_attention
with the bias as its score_mod; with `--whole` torch.compile is given all of the model. Each is
timed in a process of its own, one after the other: medians of rounds after a warm-up. A training
step is forward, backward and AdamW in the dtype given. A contestant whose time is over, or who
fails, keeps the figures it has by then, with the error beside them.

`attention` is what the attention of all layers takes by itself, from projected queries, keys and
values on and back to their gradient: what is left of a step is MLX's products, norms and
activations.
"""

from __future__ import annotations

import argparse
import json
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
CONTESTANTS = ("ours", "dense", "flex")
Figures = Iterator[tuple[str, float]]


def main() -> None:
    """Prints a row of JSON per model and contestant as soon as it is timed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=["nat_mini", "dinat_base"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, help="side of the input; default: the model's own")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--contestants", nargs="*", default=CONTESTANTS, choices=CONTESTANTS)
    parser.add_argument("--whole", action="store_true", help="torch.compile the whole model")
    parser.add_argument("--seconds", type=int, default=60, help="that a contestant is given")
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        for figure, value in ours(args) if args.one == "ours" else torchs(args):
            print(json.dumps({figure: round(value, 3)}), flush=True)
        return
    rows = []
    for name in args.models:
        for contestant in args.contestants:
            row = {"model": name, "contestant": contestant, "batch": args.batch}
            rows.append(row | apart(name, contestant, args))
            print(json.dumps(rows[-1]), flush=True)
            if args.out:
                args.out.write_text(json.dumps(rows, indent=1))


def apart(name: str, contestant: str, args: argparse.Namespace) -> dict[str, Any]:
    """What a process of its own finds, and why no more."""
    command = [sys.executable, __file__, name, "--one", contestant, "--batch", str(args.batch)]
    command += ["--dtype", args.dtype, *(["--whole"] if args.whole else [])]
    command += ["--size", str(args.size)] if args.size else []
    return figures(command, args.seconds)


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

    model = create_model(args.models[0])
    model.set_dtype(getattr(mx, args.dtype))
    optimizer = optim.AdamW(1e-4)
    state = [model.state, optimizer.state, mx.random.state]
    images, one = (mx.random.normal(shape).astype(getattr(mx, args.dtype)) for shape in sizes(args))
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

    model.eval()
    infer = mx.compile(model, inputs=state)
    inference = median(lambda: evaluated(infer(images)), mx.eval)
    yield "images_per_s", args.batch / inference
    model.train()
    training = median(lambda: evaluated(train()), wait)
    yield "trained_per_s", args.batch / training
    model.eval()
    yield "latency_ms", 1e3 * median(lambda: evaluated(infer(one)), mx.eval)
    forward, both = attention(model, images)
    yield "attention_of_inference", forward / inference
    yield "attention_of_training", both / training


def evaluated(x: Any) -> Any:
    """Has the GPU begin with it."""
    import mlx.core as mx

    mx.async_eval(x)
    return x


def sizes(args: argparse.Namespace) -> Iterator[tuple[int, ...]]:
    """Of many inputs and of one, channels last."""
    from natten_zoo import create_model

    config = create_model(args.models[0]).config
    side = args.size or (96 if "unetr" in args.models[0] else 224)
    rank = 3 if "unetr" in args.models[0] else 2
    for images in (args.batch, 1):
        yield (images, *(side,) * rank, getattr(config, "in_chans", 3))


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
    """The same classifier in torch; on the CPU where torch finds no GPU."""
    import torch
    from torch_nat import TorchNAT

    from natten_zoo import create_model

    torch.set_float32_matmul_precision("high")
    kind, config = getattr(torch, args.dtype), create_model(args.models[0]).config
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = TorchNAT(config, args.one).to(device, kind)
    images, one = (torch.randn(b, c, h, w) for b, h, w, c in sizes(args))
    images, one = images.to(device, kind), one.to(device, kind)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    run = torch.compile(model, dynamic=False) if args.whole else model

    @torch.no_grad()  # not inference_mode: the masks that flex keeps are trained with, too
    def infer(x: Any) -> Any:
        return run(x)

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        run(images).float().square().mean().backward()
        optimizer.step()

    def wait(_: Any) -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    model.eval()
    yield "images_per_s", args.batch / median(lambda: infer(images), wait)
    model.train()
    yield "trained_per_s", args.batch / median(train, wait)
    model.eval()
    yield "latency_ms", 1e3 * median(lambda: infer(one), wait)


if __name__ == "__main__":
    main()
