"""Weights and configurations of LTX-2.5's video decoder as others write them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from .base import rename

# Names in the published file and in diffusers' folder, and ours.
_RULES = (
    (r"^decoder\.", ""),
    (r"^per_channel_statistics\.(mean|std)-of-means$", r"latents_\1"),
    (r"\.to_out\.0\.", ".proj."),
    (r"\.norm_([qk])\.", r".\1_norm."),
    (r"\.timestep_embedder\.linear_1\.", ".mlp.0."),
    (r"\.timestep_embedder\.linear_2\.", ".mlp.2."),
)
# What lies beside the decoder and is none of it: the encoder, other statistics, a head for
# previews, a vector that no code uses.
_BESIDE = re.compile(r"^encoder\.|^per_channel_statistics\.|(^|[._])coarse_|(^|\.)type_emb$")
# A block's gates of training, and the layers whose outputs each is a factor of.
_GATES = {"gate_msa": "attn.proj", "gate_mlp": "mlp.w_down", "gate_ctx": "context_proj"}
# Ours, and what diffusers calls it.
_ARGUMENTS = {
    "in_chans": "latent_channels",
    "out_chans": "out_channels",
    "patch_size": "patch_size",
    "head_dim": "decoder_head_dim",
    "widths": "decoder_stage_channels",
    "depths": "decoder_stage_depths",
    "strides": "decoder_upsample_strides",
    "reductions": "decoder_upsample_channel_reductions",
    "time_dim": "decoder_t_emb_dim",
    "time_scale": "decoder_timestep_scale_multiplier",
    "prediction": "decoder_model_output_type",
    "num_steps": "decoder_num_inference_steps",
    "scaling_factor": "scaling_factor",
}
_KERNELS = ("decoder_stage_kernels", "decoder_stage5_kernel")


def own_names(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """The decoder's weights in our names, queries, keys and values joined, gates folded in.

    What else a file holds is left out: an encoder, heads for previews.

    Raises:
        KeyError: A layer is missing that a gate or another third belongs to.
    """
    renamed = {rename(name, _RULES): value for name, value in weights.items()}
    renamed = {name: value for name, value in renamed.items() if not _BESIDE.search(name)}
    for name in [name for name in renamed if ".to_q." in name]:
        parts = [renamed.pop(name.replace(".to_q.", f".to_{part}.")) for part in "qkv"]
        renamed[name.replace(".to_q.", ".qkv.")] = mx.concatenate(parts)
    for name in [name for name in renamed if name.rpartition(".")[2] in _GATES]:
        block, _, gate = name.rpartition(".")
        _fold(renamed, f"{block}.{_GATES[gate]}", renamed.pop(name))
    return renamed


def _fold(weights: dict[str, mx.array], layer: str, gate: mx.array) -> None:
    """Multiply a linear layer's outputs by a vector, in float32, once and for all."""
    gate = gate.astype(mx.float32).reshape(-1)
    weight = weights[f"{layer}.weight"]
    weights[f"{layer}.weight"] = (weight * gate[:, None]).astype(weight.dtype)
    if f"{layer}.bias" in weights:
        bias = weights[f"{layer}.bias"]
        weights[f"{layer}.bias"] = (bias * gate).astype(bias.dtype)


def arguments_of_diffusers(config: Mapping[str, Any]) -> dict[str, Any]:
    """A `config.json` of `LTX2VideoDiffusionDecoderModel` as arguments of ours.

    What it does not say is as in LTX-2.5.

    Raises:
        ValueError: It has the windows of some stages only.
    """
    values = {ours: config[theirs] for ours, theirs in _ARGUMENTS.items() if theirs in config}
    given = [name for name in _KERNELS if name in config]
    if len(given) == 1:
        raise ValueError(f"{' and '.join(_KERNELS)} must both be there or neither but got {given}")
    if given:
        values["kernel_sizes"] = [*config[_KERNELS[0]], config[_KERNELS[1]]]
    return values
