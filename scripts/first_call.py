"""How many kernels a model has built before its first result: `python scripts/first_call.py`.

On a GPU they are built, and it says how long that took; elsewhere a Metal device is played that
builds nothing, and the number is the same.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import mlx.core as mx

from natten_zoo import create_model, ops
from natten_zoo.ops.gpu.device import platform
from tests.metal_emulator.dry import dry


def main() -> None:
    """Prints a line for each batch and dtype."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="nat_mini")
    parser.add_argument("--size", type=int, default=224, help="of the image")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    args = parser.parse_args()
    model = create_model(args.model)
    for dtype in (mx.float32, mx.float16):
        model.set_dtype(dtype)
        for batch in args.batch:
            x = mx.zeros((batch, args.size, args.size, 3), dtype)
            with nullcontext() if platform() else dry():
                forward = ops.prepare(model, x)
                gradients = ops.prepare(model, x, gradients=True)
            head = f"{args.model}, batch {batch}, {str(dtype).removeprefix('mlx.core.')}"
            print(f"{head}: forward {forward}, then with gradients {gradients}")


if __name__ == "__main__":
    main()
