"""Convert a checkpoint to a folder of config.json, model.safetensors and preprocessor_config.json.

IN is an upstream .pth, a training checkpoint of timm or mmcv, a Hugging Face folder, a file or
folder of this library, or a name that is downloaded first (nat_mini, shi-labs/nat-mini-in1k-224).
Torch is not needed, and nothing that is pickled in the file is run.

  natten-zoo convert nat_mini_in1k_224.pth nat_mini-mlx
  natten-zoo convert model_best.pth.tar mine --model dinat_tiny --dtype bfloat16

OUT appears when it is complete and was read back; a conversion that is stopped leaves none.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._arguments import add_weights_arguments, weights_options

if TYPE_CHECKING:
    from ..pretrained.protocol import Loadable
    from ..pretrained.readers.reader import Checkpoint

DTYPES = ("float32", "float16", "bfloat16")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("source", metavar="IN", help="a file, a folder or a name")
    parser.add_argument("target", metavar="OUT", type=Path, help="the folder to write")
    parser.add_argument(
        "--model", metavar="NAME", help="the model that IN is of, if neither IN nor its name tells"
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="convert the weights (default: the one that the model is computed in: that of the "
        "file, unless its config.json names another)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a model at OUT")
    add_weights_arguments(parser)
    parser.add_argument("--upload-repo", metavar="USER/NAME", help="upload to Hugging Face as well")
    parser.add_argument("--private", action="store_true", help="as a private repository")


def run(args: argparse.Namespace) -> int:
    """Converts, printing how names map, and uploads if asked to."""
    from tqdm import tqdm

    from ..models import Model
    from ..pretrained.describe import build, describe
    from ..pretrained.folder import check_target
    from ..pretrained.load import fill
    from ..pretrained.readers.reader import read_checkpoint
    from ..pretrained.save import push_to_hub, save_pretrained
    from ..pretrained.source import locate

    if args.private and not args.upload_repo:
        raise ValueError("--private goes with --upload-repo.")
    check_target(args.target, args.overwrite)
    style = "{desc:<10}{bar:20} {n_fmt}/{total_fmt}"
    with tqdm(total=3, bar_format=style, leave=False, disable=None) as bar:  # on a terminal
        bar.set_description("reading")
        source = locate(args.source)
        checkpoint = read_checkpoint(source.path, **weights_options(args))
        model = build(checkpoint, describe(checkpoint, Model, args.model, source.record))
        bar.update()
        bar.set_description("converting")
        fill(model, checkpoint, dtype=args.dtype)
        bar.update()
        bar.set_description("writing")
        save_pretrained(
            model,
            args.target,
            overwrite=args.overwrite,
            provenance=_provenance(args.source, source),
        )
        bar.update()
    print("\n".join(_report(model, checkpoint)))
    size = sum(file.stat().st_size for file in args.target.iterdir())
    print(f"{args.target}: {size / 1e6:.1f} MB written and read back")
    if args.upload_repo:
        print(push_to_hub(model, args.upload_repo, private=args.private or None))
    return 0


def _provenance(name: str, source: Any) -> dict[str, str]:
    """What the weights were made from; of a local path only its last part, which is no secret."""
    from ..files import sha256_of
    from ..pretrained.readers.reader import weight_file

    origin = Path(name).name if Path(name).exists() else name
    return {"source": origin, "sha256": sha256_of(weight_file(source.path))}


def _report(model: Loadable, checkpoint: Checkpoint) -> list[str]:
    from mlx.utils import tree_flatten

    from ..pretrained.key_map import key_map, summary

    parameters = dict(tree_flatten(model.parameters()))
    mapping: dict[str, tuple[str, ...]] = {name: (name,) for name in parameters}
    mapping |= key_map(model, checkpoint)
    count = sum(value.size for value in parameters.values())
    name = "" if model.record is None else f" {model.record.name}"
    part = f", its {checkpoint.part!r}" if checkpoint.part else ""
    lines = [f"{type(model).__name__}{name}, {count:,} parameters, from {checkpoint.path}{part}"]
    lines += [f"  {line}" for line in summary(mapping, checkpoint.weights)]
    if checkpoint.ignored:
        lines.append(f"  not built from the file's metadata: {', '.join(checkpoint.ignored)}")
    return lines
