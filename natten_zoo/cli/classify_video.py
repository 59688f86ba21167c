"""Say what videos show: the probability of each class, over several clips and crops.

VIDEO is a file that FFmpeg reads (MP4, MOV, AVI, MKV, ...; pip install 'natten-zoo[video]') or an
animated GIF, WebP or PNG, which need nothing more. Of each video 4 clips of 32 frames are taken,
every second frame, and 3 squares of each, as video models are usually tested.

  natten-zoo classify-video run.mp4 --model my-nat3d-folder
  natten-zoo classify-video run.mp4 --model dinat_mini --clips 1 --crops 1

No weights of NAT3D are published. An image classifier, as in the second line, is inflated to a
video classifier: it says what it would say of still images, until it is fine-tuned.

Exit status: 0 all videos were classified, 1 some were not, 2 none could be.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from ._arguments import (
    add_model_argument,
    add_top_argument,
    chosen_model,
    positive,
    weights_options,
)
from ._text import as_plain, print_result

if TYPE_CHECKING:
    from ..models import NAT3D


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="a video file")
    add_model_argument(parser)
    add_top_argument(parser)
    numbers = {
        "frames": ("frames of a clip (default: the model's, else 32)", None),
        "stride": ("from one frame of a clip to the next (default: 2)", 2),
        "clips": ("clips of a video (default: 4)", 4),
        "crops": ("squares of a clip (default: 3)", 3),
    }
    for name, (text, default) in numbers.items():
        parser.add_argument(f"--{name}", type=positive, default=default, metavar="N", help=text)
    parser.add_argument("--json", action="store_true", help="print one JSON object per video")


def run(args: argparse.Namespace) -> int:
    """Classifies the videos and prints the result of each."""
    from ..data.video import VideoError
    from ..tasks.classification import best_classes, output_names
    from ..tasks.video import classify_video

    model_name = chosen_model(args)
    model = open_video_classifier(model_name, args.variant, **weights_options(args))
    names = output_names(model)
    views = {"frames": args.frames, "stride": args.stride, "clips": args.clips, "crops": args.crops}
    failed = 0
    for video in args.videos:
        result: dict[str, Any] = {"file": video}
        try:
            probabilities = classify_video(model, video, **views)
        except VideoError as error:
            failed += 1
            result["error"] = str(error)
        else:
            result["classes"] = as_plain(best_classes(probabilities, names, args.top))
        print_result(result, args.json, partial(print, flush=True))  # the next one takes long
    return 0 if not failed else 1 if failed < len(args.videos) else 2


def open_video_classifier(name: str, variant: str | None, **weights: Any) -> NAT3D:
    """Loads a video classifier, or an image classifier and inflates it.

    Raises:
        ValueError: The model is neither, or has no classifier.
    """
    from ..models import NAT, NAT3D, inflate, load_pretrained

    model: Any = load_pretrained(None, name, model=variant, **weights)
    if isinstance(model, NAT):
        print(f"'{name}' classifies images and was inflated to videos", file=sys.stderr)
        model = inflate(model)
    if not isinstance(model, NAT3D) or not model.config.num_classes:
        raise ValueError(
            f"model '{name}' must be a NAT3D, or a NAT or DiNAT to inflate, with a classifier, but "
            f"is a {type(model).__name__} of {getattr(model.config, 'num_classes', 0)} classes."
        )
    return model
