"""Latents to frames: diffusers' tiles, and the same frames whatever the memory."""

from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest

from natten_zoo.models.clip import WHOLE
from natten_zoo.tasks import Tiling, decode_video, read_latents
from natten_zoo.tasks.video_tiles import decode_tiles, faded, intervals
from tests.models import ltx


def given_tiling():
    tiles = ltx.given()[1]["tiles"]
    axes = ("num_frames", "height", "width")
    return Tiling(*(tuple(tiles[f"tile_sample_{kind}_{axis}"] for axis in axes)
                    for kind in ("min", "stride")))  # fmt: skip


@pytest.mark.parametrize(("name", "seed", "steps"), [("tiled_1step", 9, 1), ("tiled_3step", 10, 3)])
def test_parity_of_tiles(name, seed, steps):
    model, shapes = ltx.small(), []
    stream = np.random.RandomState(seed)

    def draw(shape):
        batch, frames, height, width, channels = shape
        shapes.append([batch, channels, frames, height, width])
        return mx.array(np.moveaxis(stream.standard_normal(shapes[-1]).astype(np.float32), 1, -1))

    grid = model.grid(ltx.latent(), [WHOLE] * 5).whole()
    pieces = list(decode_tiles(model, grid, given_tiling(), [WHOLE] * 5, draw, steps))
    assert ltx.error(mx.concatenate(pieces, axis=1), name) < 1e-4
    if steps == 1:
        assert shapes == ltx.given()[1]["noise_shapes"]
    else:
        assert shapes == [[1, 3, 17, 64, 80]]


def test_frames_are_the_pixels_of_the_model():
    model, latents = ltx.small(), ltx.latent()
    frames = decode_video(model, latents, seed=3)
    _, key = mx.random.split(mx.random.key(3))
    noise = mx.random.normal((1, 17, 64, 80, 3), key=key)
    pixels = np.array(model(latents, noise) / 2 + 0.5).clip(0, 1) * 255
    assert frames.shape == (1, 17, 64, 80, 3) and frames.dtype == np.uint8
    assert np.abs(frames - pixels).max() <= 0.51
    assert not np.array_equal(frames, decode_video(model, latents, seed=4))
    assert not np.array_equal(frames, decode_video(model, latents, seed=3, steps=2))


def test_memory_changes_nothing_but_what_it_takes():
    model, latents = ltx.small(), mx.concatenate([ltx.latent()] * 2)
    told = []
    frames = decode_video(model, latents, each=lambda *numbers: told.append(numbers))
    assert told[-1][0] == told[-1][1] and all(done <= total for done, total in told)
    with pytest.raises(ValueError, match=r"'memory' must be at least [\d.]+ GB for 17 frames of"):
        decode_video(model, latents, memory=1000)
    less = decode_video(model, latents, memory=28_000_000)
    assert np.abs(less.astype(int) - frames).max() <= 1
    tiles = decode_video(model, latents, memory=28_000_000, tiling=given_tiling())
    assert tiles.shape == frames.shape and np.isfinite(tiles).all()


def test_normalized_latents():
    model, latents = ltx.small(), ltx.latent()
    normal = (latents - model.latents_mean) / model.latents_std
    frames = decode_video(model, normal, normalized=True)
    assert np.abs(frames.astype(int) - decode_video(model, latents)).max() <= 1


@pytest.mark.parametrize("steps", [0, 1.5, True])
def test_steps_are_a_positive_integer(steps):
    with pytest.raises(ValueError, match="'steps' must be a positive integer but got"):
        decode_video(ltx.small(), ltx.latent(), steps=steps)


def test_latents_that_are_no_numbers_are_refused():
    latents = np.array(ltx.latent())
    latents[0, 1, 2, 3, 4] = np.nan
    with pytest.raises(ValueError, match=r"'latents' must be finite but has nan at \(0, 1, 2, 3"):
        decode_video(ltx.small(), mx.array(latents))
    with pytest.raises(TypeError, match=r"'x' must be an mlx\.core\.array"):
        decode_video(ltx.small(), latents)


def test_tilings_that_are_too_small_are_refused():
    with pytest.raises(ValueError, match="'step' must be positive and at most 'size'"):
        Tiling((8, 8, 8), (8, 9, 8))
    with pytest.raises(ValueError, match=r"'size' must be at least \(6, 20, 20\) and 'step'"):
        decode_video(ltx.small(), ltx.latent(), tiling=Tiling((4, 40, 40), (4, 40, 40)))


@pytest.mark.parametrize("seed", range(50))
def test_intervals_cover_an_axis(seed):
    random = np.random.default_rng(seed)
    least = int(random.integers(1, 8))
    tile = least + int(random.integers(0, 20))
    step, length = int(random.integers(1, tile + 1)), least + int(random.integers(0, 80))
    found = intervals(length, tile, step, least)
    assert found[0][0] == 0 and found[-1][1] == length
    assert all(stop - start >= least for start, stop in found)
    assert all(b[0] - a[0] == step and b[0] <= a[1] for a, b in pairwise(found))


def test_a_fade_is_of_what_both_have():
    old, new = mx.ones((1, 3)), mx.zeros((1, 2))
    assert faded(old, new, 1, 8).tolist() == [[1.0, 0.5]]
    assert faded(old, new, 1, 0).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("ending", ["safetensors", "npy", "npz"])
def test_latents_of_either_layout(tmp_path, ending, last):
    x = np.array(ltx.latent())
    x = x if last else np.moveaxis(x, -1, 1)
    path = tmp_path / f"x.{ending}"
    if ending == "npy":
        np.save(path, x.astype(np.float64))
    elif ending == "npz":
        np.savez(path, latents=x[0], other=np.zeros(3))
    else:
        mx.save_safetensors(str(path), {"any": mx.array(x)})
    assert mx.array_equal(read_latents(path, 8), ltx.latent())


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((1, 7, 3, 4, 5))}, r"'x' must have 4 or 5 axes, the channels, 8, first"),
        ({"x": np.zeros((8, 3))}, r"'x' must have 4 or 5 axes"),
        ({"x": np.zeros((1, 8, 3, 4, 8))}, r"which axis of 'x' has the channels can't be told"),
        ({"x": np.zeros(1), "y": np.zeros(1)}, r"must hold one array, or one called 'latents'"),
        ({"x": np.zeros((1, 8, 3, 4, 5), int)}, r"but has none of floating point numbers"),
    ],
    ids=["channels", "axes", "both", "two", "integers"],
)
def test_what_are_no_latents(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        read_latents(tmp_path / "x.npz", 8)


def test_files_that_cannot_be_read_are_named(tmp_path):
    for name in ("x.npy", "x.npz", "x.safetensors", "x.txt"):
        (tmp_path / name).write_bytes(b"no numbers")
        with pytest.raises(ValueError, match=name):
            read_latents(tmp_path / name, 8)
    with pytest.raises(FileNotFoundError, match=r"y\.npy: no such file"):
        read_latents(tmp_path / "y.npy", 8)
