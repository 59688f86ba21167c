"""The benchmarks' peers in torch compute what our models do, and are compiled once."""

import sys
from functools import partial
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from natten_zoo.models import NAT, NAUNETR, NATConfig, NAUNETRConfig, UPerNet, UPerNetConfig
from natten_zoo.ops import Neighborhood

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

BODY = NATConfig(
    32, (2, 1), (2, 4), 2, 3, dilations=((1, 2), (1,)), num_classes=5, drop_path_rate=0
)
VOLUMES = NAUNETRConfig(16, (1, 1), (2, 2), kernel_size=3, dilations=((2,), (1,)), num_classes=3)
CASES = {
    "nat": (NAT, BODY, (36, 44, 3)),
    "upernet": (UPerNet, UPerNetConfig(BODY, 8, 4, num_classes=5), (36, 44, 3)),
    "twice": (NAT, NATConfig(32, (2,), (2,), 2, 3, num_classes=5, drop_path_rate=0), (12, 16, 3)),
    # Head dimensions of 8 and 16, and a last map that is smaller than a window.
    "na_unetr": (NAUNETR, VOLUMES, (16, 24, 8, 1)),
}


@pytest.fixture(scope="module")
def peers():
    """The script, imported by tests that run: others make sure that nothing imports torch."""
    pytest.importorskip("torch")
    import torch_models

    return torch_models


@pytest.fixture
def uncompiled(peers, monkeypatch):
    """Torch's flex_attention as plain operations, which have gradients on a CPU, too."""
    import torch_attention
    from torch.nn.attention import flex_attention as flex

    monkeypatch.setattr(torch_attention, "flex_attention", flex.flex_attention)
    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)


def both(peers, name, how):
    """Ours and torch's of the same weights, and an input for each."""
    import torch

    mx.random.seed(0)
    kind, config, size = CASES[name]
    ours = kind(config).eval()
    noise = partial(mx.random.normal, scale=0.3)  # so that biases and batch norms do something
    ours.apply(lambda x: mx.abs(x + noise(x.shape)) if x.ndim == 1 else x + noise(x.shape) * 0.2)
    theirs = peers.torch_peer(config, how).eval()
    theirs.load_state_dict(peers.torch_weights(ours))
    x = mx.random.normal((2, *size))
    return ours, theirs, x, torch.from_numpy(np.array(mx.moveaxis(x, -1, 1)))


def check(ours, theirs, tolerance=1e-4):
    ours, theirs = np.array(ours), theirs.detach().numpy()
    theirs = np.moveaxis(theirs, 1, -1) if theirs.ndim == ours.ndim > 2 else theirs
    assert np.abs(ours - theirs).max() < tolerance * np.abs(ours).max()


@pytest.mark.parametrize("how", ["dense", "flex"])
@pytest.mark.parametrize("name", ["nat", "upernet", "na_unetr"])
def test_outputs(peers, uncompiled, name, how):
    ours, theirs, x, input_ = both(peers, name, how)
    check(ours(x), theirs(input_))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["dense", "flex"])
def test_gradients(peers, uncompiled, how):
    import torch
    import torch_attention

    torch_attention.places.cache_clear()
    torch_attention.block_mask.cache_clear()
    ours, theirs, x, input_ = both(peers, "na_unetr", how)
    wanted = nn.value_and_grad(ours.train(), lambda x: ours(x).square().mean())(x)[1]
    with torch.inference_mode():
        theirs(input_)  # builds the masks
    theirs.train()(input_).square().mean().backward()
    ours.update(wanted)
    for name, gradient in peers.torch_weights(ours).items():
        found = theirs.get_parameter(name).grad
        assert (found - gradient).abs().max() < 1e-3 * gradient.abs().max() + 1e-7, name


@pytest.mark.parametrize(
    "rank, kernel, dilation, size",
    [
        (2, 7, 1, (20, 23)),
        (2, 3, 4, (17, 23)),
        (3, 5, 1, (6, 9, 3)),
        (2, (21, 23), 1, (22, 23)),  # has blocks that are seen in full
    ],
)
def test_blocks_are_those_of_torch(peers, rank, kernel, dilation, size):
    import torch
    import torch_attention
    from torch.nn.attention.flex_attention import create_block_mask, create_mask

    hood, cpu = Neighborhood.of(rank, kernel, dilation=dilation), torch.device("cpu")
    found = torch_attention.block_mask(hood, size, cpu)
    tokens = found.seq_lengths
    seen = np.ones((1, 1), bool)
    for axis, n in enumerate(size):
        seen = np.kron(seen, hood.mask(axis, n))
    assert np.array_equal(~torch_attention.places(hood, size, cpu)[1], seen)
    assert np.array_equal(create_mask(found.mask_mod, 1, 1, *tokens, device="cpu")[0, 0], seen)
    wanted = create_block_mask(found.mask_mod, None, None, *tokens, device="cpu")
    assert torch.equal(found.to_dense(), wanted.to_dense())
    assert torch.equal(found.full_kv_num_blocks, wanted.full_kv_num_blocks)


def test_masks_without_room_are_refused(peers, monkeypatch):
    import torch
    import torch_attention

    monkeypatch.setattr(torch_attention, "room", lambda _: 139 * 2**30)
    with pytest.raises(MemoryError, match="no room for dense masks of 110592 x 110592 tokens"):
        torch_attention.places(Neighborhood.of(3, 7), (48, 48, 48), torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.parametrize("which", ["blocks", "whole"])
def test_what_is_compiled_is_compiled_once(peers, uncompiled, which):
    """For inference and for training; both blocks are of one kind."""
    import torch
    from torch._dynamo.utils import counters

    _, theirs, _, x = both(peers, "twice", "flex")
    wanted = both(peers, "twice", "dense")[1](x[:1])
    peers.compile_parts(theirs, which, x, backend="aot_eager")
    before = counters["frames"]["ok"]
    for passes in range(1, 3):
        with torch.no_grad():
            found = theirs.eval()(x[:1]), theirs(x[:1])
        theirs.train()(x).sum().backward()
        assert counters["frames"]["ok"] == before + 2, passes
    assert all(torch.allclose(y, wanted, atol=1e-5) for y in found)
