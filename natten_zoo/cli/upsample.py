"""Bring the features of a photo to the resolution of its pixels, and draw them before and after.

  natten-zoo upsample photo.jpg -o features.png
  natten-zoo upsample photo.jpg --backbone dinov2_base_registers --block 9 --npz features.npz

A DINOv2 backbone makes the features, one vector for each 14 x 14 pixels, and NAF brings them to
every pixel. The picture has the photo and both maps, in the colors of the first three principal
components: what is alike has the same color. --npz keeps the maps themselves.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..files import write_whole
from ._arguments import keep_input, png, positive


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("photo", metavar="PHOTO", help="an image file")
    parser.add_argument(
        "-o", "--out", type=png, default=Path("features.png"), metavar="PNG",
        help="the picture (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "-m", "--model", default="naf", metavar="NAME|PATH", help="the NAF (default: %(default)s)"
    )
    parser.add_argument(
        "--backbone", default="dinov2_small", metavar="NAME|PATH",
        help="what makes the features: a name of `natten-zoo list`, a Hugging Face id, or a local "
        "checkpoint file or folder (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--block", type=int, metavar="N",
        help="the block after which they are taken, from 0, or from the end if negative (default: "
        "the last one, with its norm)",
    )  # fmt: skip
    parser.add_argument(
        "--short-side", type=positive, default=448, metavar="PIXELS",
        help="what the photo's short side is resized to (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--scale", type=float, default=1.0, metavar="FACTOR",
        help="of the result, relative to that photo (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--npz", type=Path, metavar="FILE", help="write the arrays features and upsampled as well"
    )


def run(args: argparse.Namespace) -> int:
    """Upsamples the features and writes the picture."""
    import mlx.core as mx
    import numpy as np

    from ..data.reading import read_image
    from ..models import NAF, DINOv2, load_pretrained
    from ..tasks import upsample_features
    from ..viz.upsampling import before_after

    if args.npz is not None and args.npz.suffix != ".npz":
        raise ValueError(f"'npz' must end in .npz but got {args.npz}.")
    keep_input(args.photo, args.out, *filter(None, (args.npz,)))
    photo = read_image(args.photo)  # before a model is loaded for it
    naf = load_pretrained(NAF, args.model)
    backbone = load_pretrained(DINOv2, args.backbone)
    found = upsample_features(
        naf, backbone, photo, short_side=args.short_side, scale=args.scale, block=args.block
    )
    picture = before_after(found.image, found.features, found.upsampled)
    write_whole(args.out, lambda file: picture.save(file, "PNG"))
    written = [str(args.out)]
    if args.npz is not None:
        arrays: Any = {
            name: np.array(getattr(found, name).astype(mx.float32))
            for name in ("features", "upsampled")
        }
        write_whole(args.npz, lambda file: np.savez(file, **arrays))
        written.append(str(args.npz))
    rows, columns, channels = found.features.shape
    height, width = found.upsampled.shape[:2]
    print(
        f"{channels} channels of {columns} x {rows} cells, brought to {width} x {height}; written: "
        f"{', '.join(written)}"
    )
    return 0
