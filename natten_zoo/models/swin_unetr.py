"""MONAI's Swin UNETR in NA-UNETR's names and layouts.

Every weight has its place: patch embedding, norms, `qkv`, `proj`, feed-forward parts, merging,
all convolutions, and the bias tables, which Swin indexes by `query - key` and we by `key -
query`. On maps of one window both models then compute the same. What is a start for training and
no more:

* Windows of larger maps: Swin's are fixed and shifted in every other layer, ours follow the token.
* Tables of maps smaller than the window, such as the last level of 96 voxels a side: MONAI reads
  them as if those were as large, so that they mean other positions than they say.
"""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx

from .base import Rules, rename

_NAMES: Rules = (
    (r"^module\.", ""),
    (r"^(?:swinViT|swin_vit|encoder)\.", ""),
    (r"^patch_embed\.proj\.", "patch_embed."),
    (r"^layers(\d)\.0\.(?:0\.)?", lambda match: f"levels.{int(match[1]) - 1}."),
    (r"\.mlp\.linear(\d)\.", r".mlp.fc\1."),
    (r"\.relative_position_bias_table$", ".rpb"),
    (r"^encoder10\.layer\.", "bottom."),
    (r"^encoder(\d)\.layer\.", lambda match: f"skips.{int(match[1]) - 1}."),
    (r"^decoder(\d)\.", lambda match: f"decoders.{5 - int(match[1])}."),
    (r"\.transp_conv\.conv\.", ".up."),
    (r"\.conv_block\.", ".block."),
    (r"\.(conv\d)\.conv\.", r".\1."),
    (r"^out\.conv\.conv\.", "head."),
)


def from_monai(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Translate a state dict of a Swin UNETR, or of its encoder alone.

    Raises:
        ValueError: These are not a Swin UNETR's names.
    """
    renamed = {rename(name, _NAMES): value for name, value in weights.items()}
    if not any(name.endswith(".rpb") for name in renamed):
        raise ValueError("there is no relative position bias of a Swin UNETR")
    return {
        name: _our_layout(name, value)
        for name, value in renamed.items()
        if not name.endswith(".relative_position_index")
    }


def _our_layout(name: str, value: mx.array) -> mx.array:
    if name.endswith(".rpb"):
        return _bias_table(value)
    if value.ndim != 5:
        return value
    if name.endswith(".up.weight"):  # in, out, 2, 2, 2
        return value.transpose(2, 3, 4, 1, 0).flatten(0, 3)
    if name.endswith((".conv3.weight", "head.weight")):  # out, in, 1, 1, 1
        return value.flatten(1)
    return value.transpose(0, 2, 3, 4, 1)


def _bias_table(table: mx.array) -> mx.array:
    """`[(2 K - 1)^3, heads]` by query - key as `[heads, 2 K - 1 per axis]` by key - query."""
    count, heads = table.shape
    side = round(count ** (1 / 3))
    if side**3 != count:
        return table  # of windows that are no cubes: its shape will be complained about
    return table.T.reshape(heads, side, side, side)[:, ::-1, ::-1, ::-1]
