"""Say what every voxel of a volume shows: a mask, a picture of three slices, and JSON.

  natten-zoo segment-volume ct.nii.gz --model my-na-unetr -o organs.nii.gz

writes organs.nii.gz, whose voxels are class indices, with the orientation, the affine and the size
of the input; organs.png, three slices of the input tinted by class, with a legend; and organs.json
with each class's index, color, voxels, cubic millimeters and share. It reads NIfTI, plain or
gzipped, with one volume or with channels along a fourth axis (pip install 'natten-zoo[volumes]').

No weights of NA-UNETR are published: train one (docs/volumes.md), or start from a Swin UNETR's.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ..data.affines import AFFINES
from ..files import write_whole
from ._arguments import add_variant_argument, keep_input, positive, weights_options


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("volume", metavar="VOLUME", help="a .nii or .nii.gz file")
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path("mask.nii.gz"),
        metavar="NIFTI",
        help="the mask (default: %(default)s); the other files' names are made from it",
    )
    parser.add_argument(
        "-m", "--model", required=True, metavar="PATH", help="a checkpoint's file or folder"
    )
    add_variant_argument(parser)
    parser.add_argument(
        "--window", type=positive, metavar="N", help="side of the windows (default: the model's)"
    )
    parser.add_argument(
        "--overlap", type=float, default=0.5, metavar="0..1", help="of windows (default: 0.5)"
    )
    parser.add_argument(
        "--fill",
        type=float,
        metavar="VALUE",
        help="what stands for voxels that are no numbers (default: they are an error)",
    )
    parser.add_argument(
        "--affine",
        choices=AFFINES,
        help="which part of the header is right if it contradicts itself: the sform (matrix), the "
        "qform (quaternion), or only the voxel sizes (default: that is an error)",
    )
    parser.add_argument("--json", action="store_true", help="print the JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Segments the volume and writes the three files."""
    from tqdm import tqdm

    from ..data.volumes import check_name, read_volume
    from ..models import NAUNETR, load_pretrained
    from ..tasks.volumes import segment_volume

    mask: Path = args.out
    check_name(mask)
    stem = mask.name.removesuffix(".gz").removesuffix(".nii")
    picture, facts_file = mask.with_name(f"{stem}.png"), mask.with_name(f"{stem}.json")
    keep_input(args.volume, mask, picture, facts_file)
    volume = read_volume(
        args.volume, fill=args.fill, affine=args.affine
    )  # before a model is loaded for it
    model = load_pretrained(NAUNETR, args.model, model=args.variant, **weights_options(args))
    with tqdm(unit="window", file=sys.stderr, disable=None, leave=False) as bar:

        def each(done: int, total: int) -> None:
            bar.total = total
            bar.update()

        options = {"window": args.window, "overlap": args.overlap, "each": each}
        result = segment_volume(model, volume, **options)
    facts = {
        "volume": args.volume,
        "size": list(volume.image.shape[:3]),
        "spacing_mm": [round(n, 6) for n in volume.file_spacing],
        "model": args.model,
        "mask": str(mask),
        "picture": str(picture),
        "classes": result.classes(),
    }
    text = json.dumps(facts, indent=2, ensure_ascii=False)
    result.save(mask)
    write_whole(picture, lambda file: result.picture().save(file, "PNG"))
    write_whole(facts_file, lambda file: file.write(f"{text}\n".encode()))
    if args.json:
        print(text)
    else:
        lines = [
            f"{c['share']:8.1%}  {c['mm3']:>12,.6g} mm3  {c['class']}" for c in facts["classes"]
        ]
        print("\n".join([*lines, f"written: {mask}, {picture}, {facts_file}"]))
    return 0
