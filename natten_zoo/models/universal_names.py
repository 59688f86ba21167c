"""What the weights of Mask2Former and OneFormer are called elsewhere.

Upstream's files are detectron2's: `backbone.*`, `sem_seg_head.*`. Hugging Face renamed everything
and split some projections into queries, keys and values, as here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import mlx.core as mx

from .base import rename, to_mlx_layout
from .nat import NAT

# What only training uses. Anything else that is not known is for the caller to refuse.
_TRAINING = re.compile(
    r"^(criterion|text_encoder|text_projector|prompt_ctx"
    r"|model\.(text_mapper|text_encoder|prompt_ctx))\b"
)
# Of the body, as Hugging Face and as upstream call it.
_BODIES = ("model.pixel_level_module.encoder.", "backbone.")
_HEADS = (
    (r"^model\.pixel_level_module\.decoder\.", "pixel_decoder."),
    (r"^sem_seg_head\.pixel_decoder\.", "pixel_decoder."),
    (r"^(model\.transformer_module|sem_seg_head\.predictor)\.", "decoder."),
)
_STAGE_NORM = re.compile(r"hidden_states_norms\.stage(\d)\.(.*)")
_PIXELS = (
    (r"\.input_proj(ections)?\.(\d)\.0\.", r".projections.\2.conv."),
    (r"\.input_proj(ections)?\.(\d)\.1\.", r".projections.\2.norm."),
    (r"\.(transformer\.)?encoder\.layers\.", ".layers."),
    (r"\.transformer\.level_embed$", ".level_embed"),
    (r"\.self_attn\.", ".attn."),
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"\.final_layer_norm\.", ".norm2."),
    (r"\.(fc|linear)1\.", ".mlp.layers.0."),
    (r"\.(fc|linear)2\.", ".mlp.layers.1."),
    (r"\.adapter_1\.(0\.)?(?=weight|bias)", ".lateral.conv."),
    (r"\.adapter_1\.(1|norm)\.", ".lateral.norm."),
    (r"\.layer_1\.(0\.)?(?=weight|bias)", ".output.conv."),
    (r"\.layer_1\.(1|norm)\.", ".output.norm."),
    (r"\.mask_projection\.", ".mask_features."),
)
_QUERIES = (
    (r"^decoder\.queries_embedder\.weight$", "decoder.query_embed"),
    (r"^decoder\.query_embed\.weight$", "decoder.query_embed"),
    (r"^decoder\.(queries_features|query_feat|static_query)\.weight$", "query_features"),
    (r"^decoder\.level_embed\.weight$", "decoder.level_embed"),
    # OneFormer's query transformer, then the layers of the decoder.
    (r"^decoder\.(decoder\.query_input_projection|class_input_proj)\.", "start.input_proj."),
    (r"^decoder\.(decoder\.query|class)_transformer\.decoder\.", "start."),
    (r"^decoder\.decoder\.", "decoder."),
    (r"^decoder\.transformer_cross_attention_layers\.(\d+)\.", r"decoder.layers.\1.cross_attn."),
    (r"^decoder\.transformer_self_attention_layers\.(\d+)\.", r"decoder.layers.\1.self_attn."),
    (r"^decoder\.transformer_ffn_layers\.(\d+)\.", r"decoder.layers.\1.ffn."),
    (r"\.(cross_attn\.norm|cross_attn_layer_norm)\.", ".norm1."),
    (r"\.(self_attn\.norm|self_attn_layer_norm)\.", ".norm2."),
    (r"\.(ffn\.norm|final_layer_norm)\.", ".norm3."),
    (r"^(decoder\..*)\.multihead_attn\.", r"\1."),
    (r"\.self_attn\.self_attn\.", ".self_attn."),
    (r"^(start\..*)\.multihead_attn\.", r"\1.cross_attn."),
    (r"\.(ffn\.linear|linear|fc)1\.", ".mlp.layers.0."),
    (r"\.(ffn\.linear|linear|fc)2\.", ".mlp.layers.1."),
    (r"\.q_proj\.", ".query_proj."),
    (r"\.k_proj\.", ".key_proj."),
    (r"\.v_proj\.", ".value_proj."),
    # The heads.
    (r"^decoder\.(decoder_norm|layernorm)\.", "decoder.head.norm."),
    (r"^(decoder\.class_embed|class_predictor)\.", "decoder.head.class_embed."),
    (r"^decoder\.mask_embed\.layers\.(\d)\.(0\.)?", r"decoder.head.mask_embed.layers.\1."),
    (r"^decoder\.mask_predictor\.mask_embedder\.(\d)\.0\.", r"decoder.head.mask_embed.layers.\1."),
    (r"^start\.", "query_transformer."),
    (r"^(model\.task_encoder\.)?task_mlp\.layers\.(\d)\.(0\.)?", r"task_mlp.layers.\2."),
)


def own_weights(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Rename and lay out a state dict.

    What only training uses is left out by name; what is not known is kept, for the caller to
    refuse.
    """
    body: dict[str, mx.array] = {}
    result: dict[str, mx.array] = {}
    for name, value in weights.items():
        prefix = next(filter(name.startswith, _BODIES), None)
        if prefix is not None:
            body[name.removeprefix(prefix)] = value
        elif not _TRAINING.match(name):
            result |= _split(_renamed(name), to_mlx_layout(value))
    for name, value in NAT.sanitize(body).items():
        stage = _STAGE_NORM.match(name)
        own = f"norm{int(stage[1]) - 1}.{stage[2]}" if stage else name
        result[f"backbone.{own}"] = value
    return result


def _renamed(name: str) -> str:
    name = rename(name, _HEADS)
    return rename(name, _PIXELS if name.startswith("pixel_decoder.") else _QUERIES)


def _split(name: str, value: mx.array) -> dict[str, mx.array]:
    """One projection of an attention to queries, keys and values becomes three."""
    stem, fused, kind = name.partition(".in_proj_")
    if not fused:
        return {name: value}
    parts = mx.split(value, 3)
    return {
        f"{stem}.{part}_proj.{kind}": rows
        for part, rows in zip(("query", "key", "value"), parts, strict=True)
    }
