"""The small decoder of `fixtures/ltx`, and what diffusers makes of its latent."""

import json
from functools import cache
from pathlib import Path

import mlx.core as mx
import numpy as np

from natten_zoo.models import LTXDecoder, LTXDecoderConfig
from natten_zoo.pretrained import load_weights

DATA = Path(__file__).parents[1] / "fixtures/ltx"
FILE = DATA / "tiny.safetensors"


@cache
def given():
    with np.load(DATA / "given.npz") as file:
        return dict(file), json.loads(str(file["meta"]))


def config(**changes):
    of = given()[1]["config"]
    arguments = {
        "in_chans": of["in_channels"], "out_chans": of["out_channels"],
        "patch_size": of["patch_size"], "head_dim": of["head_dim"],
        "widths": of["stage_channels"], "depths": of["stage_depths"],
        "kernel_sizes": [*of["stage_kernels"], of["stage5_kernel"]],
        "strides": of["upsample_strides"], "reductions": of["upsample_channel_reductions"],
        "time_dim": of["t_emb_dim"],
    }  # fmt: skip
    return LTXDecoderConfig.from_dict({**arguments, **changes})


def small(**changes):
    """The small decoder with its weights, from a file in the published format."""
    model = LTXDecoder(config(**changes)).eval()
    load_weights(model, FILE)
    return model


def latent():
    return mx.array(given()[0]["latent"].transpose(0, 2, 3, 4, 1))


def noise(seed, *shapes):
    """Arrays NTHWC of one stream, drawn as NCTHW."""
    stream = np.random.RandomState(seed)
    drawn = [stream.standard_normal(shape).astype(np.float32) for shape in shapes]
    return [mx.array(x.transpose(0, 2, 3, 4, 1)) for x in drawn]


def error(ours, name):
    """Largest difference from what is given, relative to its scale."""
    arrays, meta = given()
    theirs, ours = arrays[name], np.array(ours)
    ours = ours.transpose(0, 4, 1, 2, 3) if name.startswith(("pixels", "tiled")) else ours
    ours = ours[tuple(slice(None, None, step) for step in meta["strides"][name])]
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs).max() / np.abs(theirs).max()
