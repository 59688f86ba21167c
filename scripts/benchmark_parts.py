"""Times what the library computes in MLX's place on a CPU beside attention, and a training step.

    python scripts/benchmark_parts.py

Shapes are nat_mini's, four images of 224 x 224. Milliseconds of processor time (user and system,
all threads), the least of the rounds, in which contestants take turns: on a shared machine that
tells more than time by the clock, of which ours takes half with two threads.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs from a bare clone, too

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from keep_memory import keep_memory

from natten_zoo import create_model
from natten_zoo.layers.activation import gelu
from natten_zoo.layers.convolution import convolve
from natten_zoo.layers.norm import layer_norm

Function = Callable[..., mx.array]
LEVELS = ((56, 64), (28, 128), (14, 256), (7, 512))  # side of the map, channels
BATCH = 4


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    print("| part | forward: MLX | ours | with gradients: MLX | ours |\n|---|---|---|---|---|")
    for name, ours, mlx_s, inputs in cases():
        mx.eval(inputs)
        d_out = mx.random.normal(ours(*inputs).shape)
        mx.eval(d_out)
        runs = [mode(f, inputs, d_out) for mode in (forward, both) for f in (mlx_s, ours)]
        times = " | ".join(f"{1e3 * t:.2f}" for t in least(runs, args.rounds))
        print(f"| {name} | {times} |")
    names, runs = zip(*step().items(), strict=True)
    times = ", ".join(
        f"{name} {t:.2f} s" for name, t in zip(names, least([*runs], args.rounds), strict=True)
    )
    print(f"A training step of nat_mini: {times}")


def cases() -> list[tuple[str, Function, Function, list[mx.array]]]:
    """Name, ours, MLX's, inputs."""

    def mlx_convolution(x: mx.array, weight: mx.array) -> mx.array:
        return mx.conv2d(x, weight, 2, 1)

    def our_convolution(x: mx.array, weight: mx.array) -> mx.array:
        return convolve(x, weight, (2, 2), (1, 1))

    def mlx_norm(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
        return mx.fast.layer_norm(x, weight, bias, 1e-5)

    found: list[tuple[str, Function, Function, list[mx.array]]] = []
    for side, channels in LEVELS:
        x = mx.random.normal((BATCH, side, side, channels))
        name, parameters = f"{side}x{side}x{channels}", [mx.ones(channels), mx.zeros(channels)]
        found.append((f"layer norm, {name}", layer_norm, mlx_norm, [x, *parameters]))
        wide = mx.random.normal((BATCH, side, side, 3 * channels))
        found.append((f"GELU, {side}x{side}x{3 * channels}", gelu, nn.gelu, [wide]))
        fine = mx.random.normal((BATCH, 2 * side, 2 * side, channels // 2))
        weight = mx.random.normal((channels, 3, 3, channels // 2))
        step = (our_convolution, mlx_convolution, [fine, weight])
        found.append((f"3x3, stride 2, to {name}", *step))
    return sorted(found, key=lambda case: case[0][0])


def step() -> dict[str, Callable[[], None]]:
    """The parts of a training step, each evaluated by itself."""
    model = create_model("nat_mini")
    model.train()
    images = mx.random.normal((BATCH, 224, 224, 3))
    gradients = nn.value_and_grad(model, lambda x: mx.square(model(x)).mean())
    optimizer = optim.AdamW(1e-4)
    _, found = gradients(images)

    def update() -> None:
        optimizer.update(model, found)
        mx.eval(model, optimizer.state)

    return {
        "forward": lambda: mx.eval(model(images)),
        "forward and backward": lambda: mx.eval(gradients(images)),
        "AdamW": update,
    }


def forward(function: Function, inputs: list[mx.array], _: mx.array) -> Callable[[], None]:
    return lambda: mx.eval(function(*inputs))


def both(function: Function, inputs: list[mx.array], d_out: mx.array) -> Callable[[], None]:
    return lambda: mx.eval(mx.vjp(function, inputs, [d_out]))


def least(runs: list[Callable[[], None]], rounds: int) -> list[float]:
    """The least processor time of each, after a warm-up."""
    times: list[list[float]] = [[] for _ in runs]
    for i in range(rounds + 1):
        for run, taken in zip(runs, times, strict=True):
            start = time.process_time()
            run()
            if i:
                taken.append(time.process_time() - start)
    return [min(taken) for taken in times]


if __name__ == "__main__":
    keep_memory()
    main()
