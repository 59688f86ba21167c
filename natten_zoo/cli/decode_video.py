"""Decode the latents of a video to its frames, with LTX-2.5's video decoder.

LATENTS is a .safetensors, .npz or .npy file of one video's latents, as pipelines return them with
output_type="latent": [1, channels, frames, rows, columns] or with the channels last. Those that the
diffusion model itself makes are --normalized. The video has 8 frames for each after the first, and
32 pixels for each row and column. MP4, MOV and MKV need pip install 'natten-zoo[video]'; GIF, PNG
and WebP do not.

  natten-zoo decode-video latents.safetensors --model ltx-2.5-video-vae-bf16.safetensors -o out.mp4
  natten-zoo decode-video latents.safetensors --model my-decoder -o out.mp4 --memory 8GB --tiles

--memory bounds what the work takes, by slabs of frames and groups of heads, with the same result.
If that is not enough, --tiles decodes overlapping tiles that are cross-faded, as the reference
does; near their seams the frames are others. The weights are gated: accept their license at
huggingface.co/Lightricks/LTX-2.5 and download the file first.

On a CPU add --dtype float32: MLX multiplies there in float16 and bfloat16 by scalar code, and in
float32 by a BLAS (macOS has a fast one; elsewhere preload OpenBLAS).
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from ._arguments import add_variant_argument, keep_input, positive, weights_options

DTYPES = ("float32", "float16", "bfloat16")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("latents", metavar="LATENTS", help="a file of latents")
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path("video.mp4"),
        metavar="VIDEO",
        help="the video (default: %(default)s)",
    )
    parser.add_argument(
        "-m", "--model", required=True, metavar="PATH", help="the decoder's file or folder"
    )
    add_variant_argument(parser)
    parser.add_argument(
        "--memory",
        type=size_of_memory,
        metavar="SIZE",
        help="what MLX may take, weights included, such as 8GB (default: what Metal recommends, "
        "half of the memory elsewhere)",
    )
    parser.add_argument(
        "--tiles",
        action="store_true",
        dest="tiling",
        help="decode overlapping tiles, of a size that fits, and cross-fade them",
    )
    parser.add_argument(
        "--normalized",
        action="store_true",
        help="the latents are as the diffusion model makes them",
    )
    parser.add_argument(
        "--steps", type=positive, metavar="N", help="of the decoder's diffusion (default: its own)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    parser.add_argument("--fps", type=float, default=24.0, help="frames per second (default: 24)")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="what to compute in (default: as the weights are stored; on a CPU float32 is faster)",
    )


def run(args: argparse.Namespace) -> int:
    """Decodes the latents and writes the video."""
    import mlx.core as mx

    from ..data.video_writing import check_video_name, write_video
    from ..models import LTXDecoder, load_pretrained
    from ..tasks import decode_video, plan_decoding, read_latents
    from ..tasks.video_memory import usable_memory

    check_video_name(args.out)
    keep_input(args.latents, args.out)
    if not 0 < args.fps <= 1000:
        raise ValueError(f"'fps' must be a number in 0..1000 but got {args.fps}.")
    options = weights_options(args)
    model = load_pretrained(LTXDecoder, args.model, model=args.variant, dtype=args.dtype, **options)
    stored = str(model.conv_in.bias.dtype).rpartition(".")[-1]
    if args.dtype is None and stored != "float32" and mx.default_device() == mx.Device(mx.cpu):
        print(f"--dtype float32 may be faster than {stored} on a CPU: see --help", file=sys.stderr)
    latents = read_latents(args.latents, model.config.in_chans)
    if latents.shape[0] != 1:
        raise ValueError(f"'latents' must be of one video but {args.latents} has {len(latents)}.")
    model.check_input(latents)
    memory = usable_memory() if args.memory is None else args.memory
    size = latents.shape[1:4]
    plan = plan_decoding(model, size, memory, args.tiling, steps=args.steps)
    frames, height, width = model.config.size_of(size)
    print(f"{frames} frames of {width} x {height} pixels, {plan}", file=sys.stderr)
    mx.reset_peak_memory()  # to that of the weights
    started = time.perf_counter()
    with _bar(plan.macs) as bar:

        def each(done: int, _: int) -> None:
            bar.update(done / 1e12 - bar.n)

        pixels = decode_video(
            model,
            latents,
            normalized=args.normalized,
            steps=args.steps,
            memory=memory,
            tiling=plan.tiling,
            seed=args.seed,
            each=each,
        )
    seconds, peak = time.perf_counter() - started, mx.get_peak_memory()
    write_video(args.out, pixels[0], args.fps)
    print(f"written: {args.out}, decoded in {seconds:.0f} s and {peak / 1e9:.2f} GB")
    return 0


def size_of_memory(text: str) -> int:
    """An argument that must be a number of bytes."""
    from ..tasks.video_memory import parse_bytes

    try:
        return parse_bytes(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be like 8GB or 500MB but got {text}") from None


def _bar(macs: int):  # type: ignore[no-untyped-def]
    """Progress in billions of multiply-adds by thousands, on a terminal."""
    from tqdm import tqdm

    form = "{l_bar}{bar}| {n:.1f}/{total:.1f} TMAC [{elapsed}<{remaining}]"
    return tqdm(total=macs / 1e12, bar_format=form, file=sys.stderr, disable=None, leave=False)
