"""Write a model as a function for C++, Swift or Python without this library.

FILE is what MLX's `import_function` reads; FILE with .json instead has names of classes,
preprocessing, license, versions and the digest. What was written is read back and compared. A
file for Metal has the kernels in it, and can be written where there is no GPU: then its kernels
are held against those that were recorded, and nothing is computed.

  natten-zoo export nat_mini -o nat_mini.mlxfn --for metal --batch any --dtype float16
  natten-zoo export nat_pico_fashion -o fashion.mlxfn --with-preprocessing
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ._arguments import add_variant_argument, positive, weights_options


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("source", metavar="MODEL", help="a name, a file or a folder")
    parser.add_argument("-o", "--out", metavar="FILE", type=Path, required=True, help="*.mlxfn")
    parser.add_argument(
        "--for",
        dest="target",
        choices=("cpu", "metal"),
        default="cpu",
        help="where it is going to run (default: cpu)",
    )
    parser.add_argument(
        "--size",
        type=_size,
        action="append",
        metavar="N|AxBxC",
        help="sides of the input; repeat it for several in one file (default: the published one)",
    )
    parser.add_argument(
        "--batch",
        type=_batch,
        action="append",
        metavar="N|any",
        help="inputs at a time; may be repeated. any: 1, 2, 4, 8, 16 and 32, of which all others "
        "are sums (default: 1)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="what it computes in; it takes and gives float32 (default: as the weights)",
    )
    parser.add_argument(
        "--with-preprocessing",
        action="store_true",
        help="takes pixels of the right size, 0..255, instead of normalized numbers",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")
    add_variant_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Exports, and says what was written and how it was checked."""
    from ..export import export_model
    from ..models import Model, load_pretrained

    model: Model = load_pretrained(
        None, args.source, model=args.variant, dtype=args.dtype, **weights_options(args)
    )
    batches = args.batch or [1]
    exported = export_model(
        model,
        args.out,
        target=args.target,
        sizes=args.size,
        batches="any" if "any" in batches else batches,
        preprocessing=args.with_preprocessing,
        overwrite=args.overwrite,
    )
    facts = exported.facts
    for given in facts["inputs"]:
        shapes = ", ".join(" x ".join(map(str, shape)) for shape in given["shapes"])
        print(f"takes {given['name']}, {given['dtype']}: {shapes}")
    print(f"gives {', '.join(facts['outputs'])}")
    difference = facts["largest_difference"]
    if difference is None:
        print(f"read back: {len(facts['kernels'])} kernels, as recorded; not run, there is no GPU")
    else:
        print(f"read back and run: {difference:.1e} of the largest output from the model's")
    print(f"file: {args.out} ({args.out.stat().st_size / 2**20:.1f} MiB)")
    return 0


def _size(text: str) -> int | tuple[int, ...]:
    sides = tuple(positive(side) for side in text.split("x"))
    return sides[0] if len(sides) == 1 else sides


def _batch(text: str) -> int | str:
    return text if text == "any" else positive(text)
