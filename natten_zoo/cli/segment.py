"""Say what every pixel of an image shows: an overlay with a legend, the mask, and JSON.

  natten-zoo segment street.jpg -o street.png --model upernet_dinat_tiny
  natten-zoo segment street.jpg -o street.png --model oneformer_coco_dinat_large --task instance
  natten-zoo segment photos/ -o segmented --model oneformer_ade20k_dinat_large

The first writes street.png, the image tinted by class with a legend; street_mask.png, whose pixels
are class indices and which viewers show in the classes' colors; and street.json with each class's
index, color, pixels and share of the image. Images may be of any size and shape. Of several images
each gets its three files in the folder --out.

A UPerNet knows the 150 classes of ADE20K: things and surfaces in homes, streets and nature. Its
published accuracies are for whole images at one scale; --scales and --flip look at several sizes
and at mirror images as well, which takes that much longer and is a little better.

A OneFormer or Mask2Former finds segments. --task panoptic gives every pixel to one segment, a thing
or all of one kind of stuff; the mask is COCO's panoptic image (number = red + 256 green + 65536
blue) and the JSON has its annotation. --task instance finds things, which may overlap; the mask has
the numbers of those on top and the JSON each one's own mask, as COCO's runs. --task semantic is as
above. category_id in the JSON is the model's index of a class, which "category" names.

--page adds street.html, one file for any browser: what the pointer is on is lit up and named.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_whole
from ._arguments import add_variant_argument, keep_input, positive, share, weights_options
from ._text import progress

if TYPE_CHECKING:
    from ..data.reading import ImageError, ImageSource
    from ..models import UPerNet
    from ..models.universal import Universal
    from ..tasks.segmentation import Segmentation
    from ..tasks.segments import Segments

    Result = Segmentation | Segments | ImageError

ONE_SCALE = (1.0,)


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a file, a folder or a pattern")
    parser.add_argument(
        "-o",
        "--out",
        type=png_or_folder,
        default=Path("segment.png"),
        metavar="PNG|FOLDER",
        help="the overlay of one image (default: %(default)s); the other files' names are made "
        "from it. Of several images, a folder (default: segments)",
    )
    parser.add_argument(
        "-m",
        "--model",
        default="upernet_nat_mini",
        metavar="NAME|PATH",
        help="a model of `natten-zoo list`, 'upernet*', 'oneformer*' or 'mask2former*', or a local "
        "checkpoint file or folder (default: %(default)s, which is downloaded)",
    )
    add_variant_argument(parser)
    parser.add_argument(
        "-t",
        "--task",
        choices=("panoptic", "instance", "semantic"),
        help="what to find (default: semantic with a UPerNet, else the first of these that the "
        "model was trained for)",
    )
    parser.add_argument(
        "--keep",
        type=share,
        metavar="0..1",
        help="least score of a segment (default: the authors', 0.5 or of a panoptic Mask2Former "
        "0.8)",
    )
    parser.add_argument(
        "--rules",
        choices=("original", "huggingface"),
        default="original",
        help="how masks become segments: as the authors' code does it or as Hugging Face's "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--batch-size",
        type=positive,
        default=1,
        metavar="N",
        help="images at a time, of those that are resized to the same size (default: 1)",
    )
    parser.add_argument(
        "--page",
        action="store_true",
        help="also write an HTML page that shows what is under the pointer",
    )
    parser.add_argument(
        "--sliding-window",
        action="store_true",
        help="UPerNet: look at overlapping squares of the size that the model was trained on",
    )
    parser.add_argument(
        "--scales",
        type=numbers,
        default=ONE_SCALE,
        metavar="S,S,...",
        help="UPerNet: image sizes to average over, relative to the model's; "
        "0.5,0.75,1,1.25,1.5,1.75 are those of the published multi-scale figures (default: 1)",
    )
    parser.add_argument(
        "--flip", action="store_true", help="UPerNet: average over mirror images as well"
    )
    parser.add_argument(
        "--opacity", type=share, default=0.55, metavar="0..1", help="of the tint (default: 0.55)"
    )
    parser.add_argument("--json", action="store_true", help="print the JSON instead of a table")


def numbers(text: str) -> tuple[float, ...]:
    """Reads positive numbers with commas between them."""
    values = tuple(map(float, text.split(",")))
    if not all(0 < value < 100 for value in values):
        raise argparse.ArgumentTypeError(f"must be positive numbers but got {text}")
    return values


def png_or_folder(text: str) -> Path:
    """An argument that must name a PNG file, which is what is written, or a folder."""
    path = Path(text)
    if path.suffix.lower() not in (".png", ""):
        raise argparse.ArgumentTypeError(f"must end in .png but got {text}, or name a folder")
    return path


def run(args: argparse.Namespace) -> int:
    """Segments the images and writes three files of each."""
    from ..data import read_image
    from ..data.image_files import find_images
    from ..data.reading import ImageError
    from ..models import load_pretrained

    files = find_images(args.images)
    overlays = overlay_paths(files, args.out)
    for file, overlay in zip(files, overlays, strict=True):
        keep_input(file, *outputs(overlay))
    sources: list[ImageSource] = [*files]
    if len(files) == 1:
        sources = [read_image(files[0])]  # before a model is downloaded for it
    model: Any = load_pretrained(None, args.model, model=args.variant, **weights_options(args))
    failed = 0
    with progress(len(files), 1) as bar:
        for index, result in results(model, sources, args):
            if isinstance(result, ImageError):
                failed += 1
                bar.write(str(result), file=sys.stderr)
            else:
                facts = {"image": str(files[index]), "model": args.model}
                facts, lines = save(result, overlays[index], facts, args.opacity)
                if args.page:
                    lines.append(f"written: {save_page(result, overlays[index], files[index])}")
                if args.json:  # of several images a line each
                    lines = [as_json(facts, None if len(files) > 1 else 2)]
                bar.write("\n".join(lines))
            bar.update()
    if failed:
        print(f"{failed} of {len(files)} images could not be read", file=sys.stderr)
    return 0 if not failed else 1 if failed < len(files) else 2


def overlay_paths(files: Sequence[Path], out: Path) -> list[Path]:
    """Where the overlay of each image goes.

    Raises:
        ValueError: Several images would have one overlay.
    """
    is_file = out.suffix.lower() == ".png"
    if len(files) == 1 and is_file:
        return [out]
    if is_file and out != Path("segment.png"):
        raise ValueError(f"--out must be a folder for {len(files)} images but got {out}.")
    folder = Path("segments") if is_file else out
    paths = [folder / f"{file.stem}.png" for file in files]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ValueError(f"{twice.stem} is the name of several images; segment them one by one.")
    return paths


def outputs(overlay: Path) -> tuple[Path, Path, Path]:
    """The overlay, the mask and the JSON of an image."""
    return overlay, overlay.with_name(f"{overlay.stem}_mask.png"), overlay.with_suffix(".json")


def results(
    model: Any, sources: Sequence[ImageSource], args: argparse.Namespace
) -> Iterator[tuple[int, Result]]:
    """What is in each image, or why it could not be read."""
    from ..models import UPerNet
    from ..models.universal import Universal

    if isinstance(model, UPerNet | Universal) and not model.config.num_classes:
        raise ValueError(f"model '{args.model}' has no classifier, only features.")
    if isinstance(model, UPerNet):
        return classes_of_pixels(model, sources, args)
    if isinstance(model, Universal):
        return segments(model, sources, args)
    raise ValueError(
        f"model '{args.model}' must be a UPerNet, a OneFormer or a Mask2Former but is a "
        f"{type(model).__name__}."
    )


def classes_of_pixels(
    model: UPerNet, sources: Sequence[ImageSource], args: argparse.Namespace
) -> Iterator[tuple[int, Result]]:
    """With a UPerNet."""
    from ..data.reading import ImageError
    from ..tasks.segmentation import segment

    if args.task not in (None, "semantic"):
        raise ValueError(f"--task must be semantic with a UPerNet but got {args.task}.")
    views = {"scales": args.scales, "flip": args.flip, "sliding_window": args.sliding_window}
    for index, source in enumerate(sources):
        try:
            yield index, segment(model, source, **views)
        except ImageError as error:
            yield index, error


def segments(
    model: Universal, sources: Sequence[ImageSource], args: argparse.Namespace
) -> Iterator[tuple[int, Result]]:
    """With a OneFormer or a Mask2Former."""
    from ..tasks.universal import Wanted, each_image

    if args.flip or args.sliding_window or args.scales != ONE_SCALE:
        raise ValueError("--scales, --flip and --sliding-window are for a UPerNet.")
    trained = () if model.record is None else model.record.tasks
    task = args.task or (trained[0] if trained else "panoptic")
    return each_image(model, sources, Wanted(task, args.keep, rules=args.rules), args.batch_size)


def save(
    result: Segmentation | Segments, overlay: Path, facts: dict[str, Any], opacity: float
) -> tuple[dict[str, Any], list[str]]:
    """Writes the three files and returns the facts of the last, and what they say in lines."""
    from ..tasks.segments import Segments

    overlay, mask, facts_file = outputs(overlay)
    height, width = result.image.shape[:2]
    facts = {**facts, "height": height, "width": width, "overlay": str(overlay), "mask": str(mask)}
    if isinstance(result, Segments):
        facts |= {"task": result.task, "segments": result.describe()}
        if result.task == "panoptic":
            facts["panoptic"] = result.to_panoptic(mask.name)
        else:
            facts["annotations"] = result.to_coco()
        lines = [f"{e['score']:8.1%}  {e['share']:6.1%}  {e['class']}" for e in facts["segments"]]
    else:
        facts["classes"] = result.classes()
        lines = [f"{entry['share']:8.1%}  {entry['class']}" for entry in facts["classes"]]
    text = as_json(facts, 2)
    write_whole(overlay, lambda file: result.overlay(opacity).save(file, "PNG"))
    write_whole(mask, lambda file: result.mask_image().save(file, "PNG"))
    write_whole(facts_file, lambda file: file.write(f"{text}\n".encode()))
    return facts, [*lines, f"written: {overlay}, {mask}, {facts_file}"]


def save_page(result: Segmentation | Segments, overlay: Path, file: Path) -> Path:
    """Writes the page and returns where."""
    from ..tasks.segment_page import segment_page

    page = segment_page(result, file.name).encode()
    return write_whole(overlay.with_suffix(".html"), lambda out: out.write(page))


def as_json(facts: dict[str, Any], indent: int | None) -> str:
    """Plain data as text, names in any script as they are."""
    return json.dumps(facts, indent=indent, ensure_ascii=False)
