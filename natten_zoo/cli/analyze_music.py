"""Say when a track's beats and downbeats are, and where its intro, verses and choruses begin.

  natten-zoo analyze-music track.npz -o track.json --plot track.png

track.npz holds one array [4, frames, 81], or [4, frames, 81] as `spectrograms` among others: the
spectrograms of the track's bass, drums, other and vocals as all-in-one makes them (stems by
Demucs; 100 frames a second, 81 logarithmic bands). The mean of the eight published models is
taken, 1.4 MB each; --model takes others, or fewer.

Times are peaks of what the models say. All-in-one decodes beats with a Bayesian network that keeps
the tempo steady, which is better where beats are faint.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import write_whole
from ._arguments import keep_input, png, share

if TYPE_CHECKING:
    import mlx.core as mx

FOLDS = tuple(f"harmonix-fold{index}" for index in range(8))


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("spectrograms", metavar="NPZ", help="a track's spectrograms")
    parser.add_argument("-o", "--out", type=Path, metavar="JSON", help="also write the result here")
    parser.add_argument("--plot", type=png, metavar="PNG", help="draw it (needs matplotlib)")
    parser.add_argument(
        "-m",
        "--model",
        nargs="+",
        default=FOLDS,
        metavar="NAME|PATH",
        help="models of `natten-zoo list 'harmonix*'`, or local checkpoint files or folders "
        "(default: all eight folds, which are downloaded)",
    )
    for name, default in (("beat", 0.19), ("downbeat", 0.22)):
        parser.add_argument(
            f"--{name}-threshold",
            type=share,
            default=default,
            metavar="0..1",
            help=f"least probability of a {name} (default: %(default)s)",
        )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def run(args: argparse.Namespace) -> int:
    """Analyzes the track and prints what was found."""
    from ..models import AllInOne
    from ..tasks.music import analyze, plot

    keep_input(args.spectrograms, *filter(None, (args.out, args.plot)))
    spectrograms = read_spectrograms(args.spectrograms)  # before models are downloaded for it
    models = [AllInOne.from_pretrained(name) for name in args.model]
    found = analyze(
        models,
        spectrograms,
        beat_threshold=args.beat_threshold,
        downbeat_threshold=args.downbeat_threshold,
    )
    text = json.dumps({"file": args.spectrograms, **found.to_dict()}, indent=2, ensure_ascii=False)
    if args.out:
        write_whole(args.out, lambda file: file.write(f"{text}\n".encode()))
    if args.plot:
        figure = plot(found)
        write_whole(args.plot, lambda file: figure.savefig(file, format="png", dpi=150))
    if args.json:
        print(text)
    else:
        lines = [f"{s.start:8.2f} {s.end:8.2f}  {s.label}" for s in found.sections]
        counts = f"{len(found.beats)} beats, {len(found.downbeats)} downbeats"
        print("\n".join([f"{found.duration:.2f} s, {counts}", *lines]))
    return 0


def read_spectrograms(path: str) -> mx.array:
    """Reads `[4, frames, 81]` from an `.npz` file.

    Raises:
        ValueError: The file is none, or it is not told which of its arrays is meant.
    """
    from ..pretrained import read_checkpoint

    if Path(path).suffix != ".npz":
        raise ValueError(f"{path}: must be an .npz file")
    arrays = read_checkpoint(path).weights
    found = arrays.get("spectrograms", next(iter(arrays.values())) if len(arrays) == 1 else None)
    if found is None:
        raise ValueError(
            f"{path}: must have one array, or one named 'spectrograms', but has {sorted(arrays)}"
        )
    return found
