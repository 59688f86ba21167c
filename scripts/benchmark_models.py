"""Times whole models: one image, images per second, training, memory, and where the time goes.

    python scripts/benchmark_models.py nat_mini dinat_mini nat_tiny --json models.json

Beside each model, where torch is installed, the same model in torch (`scripts/torch_nat.py`) with
the same weights; contestants take turns and the median round counts. A training step is forward,
backward and AdamW for the whole batch, in float32. Shares are of one image's
forward pass with every part evaluated by itself. On Linux MLX's wheel brings the reference BLAS;
OpenBLAS is several times faster: install it and set `LD_PRELOAD` as the README says.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs from a bare clone, too

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from keep_memory import keep_memory

from natten_zoo import create_model, layers, ops
from natten_zoo.cli._results import append
from natten_zoo.layers.convolution import Conv2d
from natten_zoo.layers.norm import LayerNorm

LINUX = sys.platform == "linux"
PARTS = (
    ("attention", layers.NeighborhoodAttention, "attend"),
    ("linear", nn.Linear, "__call__"),
    ("convolution", nn.Conv2d, "__call__"),
    ("convolution", Conv2d, "__call__"),
    ("norm", LayerNorm, "__call__"),
    ("mlp", layers.MLP, "__call__"),
)


def main() -> None:
    """Prints a table; with `--json` writes it, too."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=["nat_mini", "dinat_mini", "nat_tiny"])
    parser.add_argument("--size", type=int, default=224, help="side of the image in pixels")
    parser.add_argument("--batch", type=int, default=8, help="images at a time for throughput")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--json", type=Path, help="write the table here")
    parser.add_argument("--csv", type=Path, help="append a line per contestant to this table")
    parser.add_argument("--peak", metavar="CONTESTANT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        print(peak_here(args.models[0], args.peak, args.size))
        return
    rows = [row for name in args.models for row in benchmark(name, args)]
    print(f"BLAS: {os.environ.get('LD_PRELOAD') or 'as in the MLX wheel'}")
    for row in rows:
        shares = " ".join(f"{part} {share:.0%}" for part, share in row["shares"].items())
        print(
            f"{row['model']:<12} {row['contestant']:<10} {row['latency_ms']:8.1f} ms "
            f"{row['images_per_s']:7.2f} images/s {row['trained_per_s']:7.2f} trained/s "
            f"{row['memory_mb']:6.0f} MB  {shares}"
        )
        if args.csv:
            append(
                args.csv,
                model=f"{row['model']} ({row['contestant']})",
                images_per_second=f"{row['images_per_s']:.2f}",
            )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


def benchmark(name: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row per contestant: ours on the preferred tier, ours on the pure one, torch's."""
    model = create_model(name)
    model.eval()
    mx.eval(model.parameters())
    images = np.random.default_rng(0).standard_normal((args.batch, args.size, args.size, 3))
    images = images.astype(np.float32)
    contestants = {tier: ours(model, tier) for tier in tiers(model, images[:1])}
    steps = {tier: our_step(create_model(name), tier) for tier in contestants}
    if not args.no_torch:
        with suppress(ImportError):
            contestants["torch"], steps["torch"] = torchs(model), torch_step(model)
    latency, throughput = (rounds(contestants, images[:n], args.rounds) for n in (1, args.batch))
    training = rounds(steps, images, args.rounds)
    expected = contestants["pure"](images[:1])
    for contestant, run in contestants.items():
        if not np.allclose(run(images[:1]), expected, atol=1e-3 * np.abs(expected).max()):
            raise SystemExit(f"{contestant} computes something else than the pure tier")
    return [
        {
            "model": name,
            "contestant": contestant,
            "latency_ms": 1e3 * latency[contestant],
            "images_per_s": args.batch / throughput[contestant],
            "trained_per_s": args.batch / training[contestant],
            "memory_mb": peak(name, contestant, args.size),
            "shares": {} if contestant == "torch" else shares(model, contestant, images[:1]),
        }
        for contestant in contestants
    ]


def peak(name: str, contestant: str, size: int) -> float:
    """Megabytes that a process of its own takes at most for one image, libraries included."""
    command = [sys.executable, __file__, name, "--peak", contestant, "--size", str(size)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_here(name: str, contestant: str, size: int) -> float:
    model = create_model(name)
    model.eval()
    run = torchs(model) if contestant == "torch" else ours(model, contestant)
    run(np.zeros((1, size, size, 3), np.float32))
    if LINUX:  # where ru_maxrss starts at what the parent process had
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


def tiers(model: Any, images: np.ndarray) -> list[str]:
    """The preferred tier here and the pure one."""
    preferred = ops.explain(model, mx.array(images))[0].tier
    return list(dict.fromkeys([preferred, "pure"]))


def ours(model: Any, tier: str) -> Callable[[np.ndarray], np.ndarray]:
    def run(images: np.ndarray) -> np.ndarray:
        with ops.use_backend(tier):
            return np.array(model(mx.array(images)))

    return run


def our_step(model: Any, tier: str) -> Callable[[np.ndarray], None]:
    """A training step with images."""
    optimizer = optim.AdamW(1e-4)
    grads = nn.value_and_grad(model, lambda images: mx.square(model(images)).mean())
    model.train()

    def run(images: np.ndarray) -> None:
        with ops.use_backend(tier):
            optimizer.update(model, grads(mx.array(images))[1])
            mx.eval(model, optimizer.state)

    return run


def torchs(model: Any) -> Callable[[np.ndarray], np.ndarray]:
    """The same weights in torch."""
    import torch

    peer = torch_peer(model).eval()

    @torch.inference_mode()
    def run(images: np.ndarray) -> np.ndarray:
        return peer(channels_first(images)).numpy()

    return run


def torch_step(model: Any) -> Callable[[np.ndarray], None]:
    import torch

    peer = torch_peer(model).train()
    optimizer = torch.optim.AdamW(peer.parameters(), 1e-4)

    def run(images: np.ndarray) -> None:
        optimizer.zero_grad()
        peer(channels_first(images)).square().mean().backward()
        optimizer.step()

    return run


def torch_peer(model: Any) -> Any:
    import torch_models

    peer = torch_models.torch_peer(model.config)
    peer.load_state_dict(torch_models.torch_weights(model))
    return peer


def channels_first(images: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def rounds(
    contestants: dict[str, Callable[..., Any]], images: np.ndarray, count: int
) -> dict[str, float]:
    """Median seconds of each, taking turns after a warm-up."""
    times = defaultdict(list)
    for i in range(count + 1):
        for name, run in contestants.items():
            start = time.perf_counter()
            run(images)
            if i:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def shares(model: Any, tier: str, images: np.ndarray) -> dict[str, float]:
    """Each part's share of a forward pass; what is inside another part counts once."""
    with ops.use_backend(tier), timed_parts() as seconds:
        start = time.perf_counter()
        mx.eval(model(mx.array(images)))
        total = time.perf_counter() - start
    seconds["gelu"] = seconds.pop("mlp")  # what its linear layers leave of it
    seconds["rest"] = total - sum(seconds.values())
    return {part: s / total for part, s in sorted(seconds.items(), key=lambda item: -item[1])}


@contextmanager
def timed_parts() -> Iterator[dict[str, float]]:
    """Evaluates and times every call of a part, exclusive of the parts inside it."""
    seconds: dict[str, float] = defaultdict(float)
    inside: list[float] = []  # per open part: time spent in parts inside it

    def timed(part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            mx.eval(args[1:])
            inside.append(0.0)
            start = time.perf_counter()
            out = call(*args, **kwargs)
            mx.eval(out)
            spent = time.perf_counter() - start
            seconds[part] += spent - inside.pop()
            if inside:
                inside[-1] += spent
            return out

        return run

    original = [getattr(kind, name) for _, kind, name in PARTS]
    for (part, kind, name), call in zip(PARTS, original, strict=True):
        setattr(kind, name, timed(part, call))
    try:
        yield seconds
    finally:
        for (_, kind, name), call in zip(PARTS, original, strict=True):
            setattr(kind, name, call)


if __name__ == "__main__":
    keep_memory()
    main()
