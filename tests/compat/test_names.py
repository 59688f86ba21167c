"""Every public name of each NATTEN release is there, with its arguments in its order."""

import inspect

import pytest

from natten_zoo import compat
from natten_zoo.compat import knobs

# As upstream documents or defines them; "*" marks classes.
SIGNATURES = {
    "0.14.6": """
        natten1dqkrpb(query, key, rpb, kernel_size, dilation)
        natten1dqk(query, key, kernel_size, dilation)
        natten1dav(attn, value, kernel_size, dilation)
        natten2dqkrpb(query, key, rpb, kernel_size, dilation)
        natten2dqk(query, key, kernel_size, dilation)
        natten2dav(attn, value, kernel_size, dilation)
        NeighborhoodAttention1D(dim, num_heads, kernel_size, dilation=1, bias=True, qkv_bias=True, qk_scale=None, attn_drop=0.0, proj_drop=0.0)
        NeighborhoodAttention2D(dim, num_heads, kernel_size, dilation=1, bias=True, qkv_bias=True, qk_scale=None, attn_drop=0.0, proj_drop=0.0)
        get_flops(model, input, disable_warnings=False)
        add_natten_handle(flop_ctr)
    """,
    "0.15.1": """
        natten1dqkrpb(query, key, rpb, kernel_size, dilation)
        natten2dqkrpb(query, key, rpb, kernel_size, dilation)
        natten3dqkrpb(query, key, rpb, kernel_size_d, kernel_size, dilation_d, dilation)
        na1d_qk(query, key, kernel_size, dilation, additional_keys=None)
        na2d_qk(query, key, kernel_size, dilation, additional_keys=None)
        na1d_qk_with_bias(query, key, bias, kernel_size, dilation, additional_keys=None)
        na2d_qk_with_bias(query, key, bias, kernel_size, dilation, additional_keys=None)
        na1d_av(attn, value, kernel_size, dilation, additional_values=None)
        na2d_av(attn, value, kernel_size, dilation, additional_values=None)
        na3d_qk(query, key, kernel_size_d, kernel_size, dilation_d, dilation, additional_keys=None)
        na3d_qk_with_bias(query, key, bias, kernel_size_d, kernel_size, dilation_d, dilation, additional_keys=None)
        na3d_av(attn, value, kernel_size_d, kernel_size, dilation_d, dilation, additional_values=None)
        natten1dqk(query, key, kernel_size, dilation, additional_keys=None)
        natten2dqk(query, key, kernel_size, dilation, additional_keys=None)
        natten3dqk(query, key, kernel_size_d, kernel_size, dilation_d, dilation, additional_keys=None)
        natten1dav(attn, value, kernel_size, dilation, additional_values=None)
        natten2dav(attn, value, kernel_size, dilation, additional_values=None)
        natten3dav(attn, value, kernel_size_d, kernel_size, dilation_d, dilation, additional_values=None)
        NeighborhoodAttention1D(dim, num_heads, kernel_size, dilation=1, bias=True, qkv_bias=True, qk_scale=None, attn_drop=0.0, proj_drop=0.0)
        NeighborhoodAttention2D(dim, num_heads, kernel_size, dilation=1, bias=True, qkv_bias=True, qk_scale=None, attn_drop=0.0, proj_drop=0.0)
        NeighborhoodAttention3D(dim, num_heads, kernel_size, kernel_size_d=None, dilation=1, dilation_d=None, bias=True, qkv_bias=True, qk_scale=None, attn_drop=0.0, proj_drop=0.0)
        has_cuda() has_half(device_index=None) has_bfloat(device_index=None) has_gemm(device_index=None)
        has_tf32_gemm(device_index=None) has_fp32_gemm(device_index=None) has_fp64_gemm(device_index=None)
        enable_tf32() disable_tf32() enable_tiled_na() disable_tiled_na() enable_gemm_na() disable_gemm_na()
        get_flops(model, input, disable_warnings=False)
    """,
    "0.17.5": """
        na1d_qk(query, key, kernel_size, dilation=1, additional_keys=None, is_causal=False, rpb=None)
        na2d_qk(query, key, kernel_size, dilation=1, additional_keys=None, is_causal=False, rpb=None)
        na3d_qk(query, key, kernel_size, dilation=1, additional_keys=None, is_causal=False, rpb=None)
        na1d_av(attn, value, kernel_size, dilation=1, additional_values=None, is_causal=False)
        na2d_av(attn, value, kernel_size, dilation=1, additional_values=None, is_causal=False)
        na3d_av(attn, value, kernel_size, dilation, additional_values=None, is_causal=False)
        na1d(query, key, value, kernel_size, dilation=1, is_causal=False, rpb=None, scale=None, additional_keys=None, additional_values=None, xformers_kwargs=None)
        na2d(query, key, value, kernel_size, dilation=1, is_causal=False, rpb=None, scale=None, additional_keys=None, additional_values=None, xformers_kwargs=None)
        na3d(query, key, value, kernel_size, dilation=1, is_causal=False, rpb=None, scale=None, additional_keys=None, additional_values=None, xformers_kwargs=None)
        NeighborhoodAttention1D(dim, num_heads, kernel_size, dilation=1, is_causal=False, rel_pos_bias=False, qkv_bias=True, qk_scale=None, attn_drop=0.0, proj_drop=0.0, use_experimental_ops=False)
        NeighborhoodAttention2D(dim, num_heads, kernel_size, dilation=1, is_causal=False, rel_pos_bias=False, qkv_bias=True, qk_scale=None, attn_drop=0.0, proj_drop=0.0, use_experimental_ops=False)
        NeighborhoodAttention3D(dim, num_heads, kernel_size, dilation=1, is_causal=False, rel_pos_bias=False, qkv_bias=True, qk_scale=None, attn_drop=0.0, proj_drop=0.0, use_experimental_ops=False)
        is_fused_na_enabled() is_fna_enabled() use_flex_attention() disable_autotuner() has_fna(device_index=None)
        is_gemm_na_enabled() is_tiled_na_enabled() is_tf32_in_gemm_na_enabled() is_autotuner_enabled()
        use_fused_na(mode=True, kv_parallel=True, use_flex_attention=False, force_flex_attention=False)
        force_flex_attention() is_autotuner_enabled_for_forward() is_autotuner_enabled_for_backward()
        is_autotuner_thorough_for_forward() is_autotuner_thorough_for_backward()
    """,
    "0.20.1": """
        na1d(query, key, value, kernel_size, stride=1, dilation=1, is_causal=False, scale=None, additional_keys=None, additional_values=None, ...)
        na2d(query, key, value, kernel_size, stride=1, dilation=1, is_causal=False, scale=None, additional_keys=None, additional_values=None, ...)
        na3d(query, key, value, kernel_size, stride=1, dilation=1, is_causal=False, scale=None, additional_keys=None, additional_values=None, ...)
        attention(query, key, value, scale=None, ...)
        merge_attentions(outputs, lse_tensors, torch_compile=True)
        NeighborhoodAttention1D(embed_dim, num_heads, kernel_size, stride=1, dilation=1, is_causal=False, qkv_bias=True, qk_scale=None, proj_drop=0.0)
        NeighborhoodAttention2D(embed_dim, num_heads, kernel_size, stride=1, dilation=1, is_causal=False, qkv_bias=True, qk_scale=None, proj_drop=0.0)
        NeighborhoodAttention3D(embed_dim, num_heads, kernel_size, stride=1, dilation=1, is_causal=False, qkv_bias=True, qk_scale=None, proj_drop=0.0)
    """,
    "0.21.7": """
        na1d(query, key, value, kernel_size, stride=1, dilation=1, is_causal=False, scale=None, additional_keys=None, additional_values=None, attention_kwargs=None, backend=None, q_tile_shape=None, kv_tile_shape=None, backward_q_tile_shape=None, backward_kv_tile_shape=None, backward_kv_splits=None, backward_use_pt_reduction=False, run_persistent_kernel=True, kernel_schedule=None, torch_compile=False, return_lse=False)
        na2d(query, key, value, kernel_size, stride=1, dilation=1, is_causal=False, scale=None, additional_keys=None, additional_values=None, attention_kwargs=None, backend=None, q_tile_shape=None, kv_tile_shape=None, backward_q_tile_shape=None, backward_kv_tile_shape=None, backward_kv_splits=None, backward_use_pt_reduction=False, run_persistent_kernel=True, kernel_schedule=None, torch_compile=False, return_lse=False)
        na3d(query, key, value, kernel_size, stride=1, dilation=1, is_causal=False, scale=None, additional_keys=None, additional_values=None, attention_kwargs=None, backend=None, q_tile_shape=None, kv_tile_shape=None, backward_q_tile_shape=None, backward_kv_tile_shape=None, backward_kv_splits=None, backward_use_pt_reduction=False, run_persistent_kernel=True, kernel_schedule=None, torch_compile=False, return_lse=False)
        attention(query, key, value, is_causal=False, scale=None, seqlens_Q=None, seqlens_KV=None, cumulative_seqlen_Q=None, cumulative_seqlen_KV=None, max_seqlen_Q=None, max_seqlen_KV=None, backend=None, q_tile_size=None, kv_tile_size=None, backward_q_tile_size=None, backward_kv_tile_size=None, backward_kv_splits=None, backward_use_pt_reduction=False, run_persistent_kernel=True, kernel_schedule=None, torch_compile=False, return_lse=False)
        merge_attentions(outputs, lse_tensors, torch_compile=True, use_autograd_fix=True)
        NeighborhoodAttention1D(embed_dim, num_heads, kernel_size, stride=1, dilation=1, is_causal=False, qkv_bias=True, qk_scale=None, proj_drop=0.0)
        NeighborhoodAttention2D(embed_dim, num_heads, kernel_size, stride=1, dilation=1, is_causal=False, qkv_bias=True, qk_scale=None, proj_drop=0.0)
        NeighborhoodAttention3D(embed_dim, num_heads, kernel_size, stride=1, dilation=1, is_causal=False, qkv_bias=True, qk_scale=None, proj_drop=0.0)
        na1d_reference(query, key, value, kernel_size, stride=1, dilation=1, is_causal=False, scale=None, additional_keys=None, additional_values=None, return_lse=False)
        na2d_reference(query, key, value, kernel_size, stride=1, dilation=1, is_causal=False, scale=None, additional_keys=None, additional_values=None, return_lse=False)
        na3d_reference(query, key, value, kernel_size, stride=1, dilation=1, is_causal=False, scale=None, additional_keys=None, additional_values=None, return_lse=False)
        token_permute_operation(tensor, tile_shape, dilation=None, flip_tiled_dims=True, use_torch=False)
        token_unpermute_operation(tensor, token_layout_shape, tile_shape, dilation=None, flip_tiled_dims=True, use_torch=False)
        generate_varlen_parameters(query, key, value, seqlens_Q=None, seqlens_KV=None)
    """,
}
SWITCHES = {
    "0.17.5": """use_fused_na use_fna use_autotuner use_gemm_na use_tiled_na use_tf32_in_gemm_na
        use_kv_parallelism_in_fused_na use_deterministic_algorithms set_memory_usage_preference""",
    "0.20.1": """use_kv_parallelism_in_fused_na is_kv_parallelism_in_fused_na_enabled
        set_memory_usage_preference get_memory_usage_preference use_deterministic_algorithms""",
    "0.21.7": """HAS_LIBNATTEN are_deterministic_algorithms_enabled use_deterministic_algorithms
        use_kv_parallelism_in_fused_na is_kv_parallelism_in_fused_na_enabled
        set_memory_usage_preference get_memory_usage_preference is_memory_usage_default
        is_memory_usage_strict is_memory_usage_unrestricted is_flex_compile_allowed
        is_flex_compile_backprop_allowed allow_flex_compile allow_flex_compile_backprop
        disable_flex_compile disable_flex_compile_backprop get_bwd_configs_for_cutlass_fmha
        get_bwd_configs_for_cutlass_fna get_configs_for_cutlass_fmha get_configs_for_cutlass_fna
        get_configs_for_cutlass_hopper_fmha get_bwd_configs_for_cutlass_hopper_fmha
        get_configs_for_cutlass_hopper_fna get_bwd_configs_for_cutlass_hopper_fna
        get_bwd_configs_for_cutlass_blackwell_fmha get_bwd_configs_for_cutlass_blackwell_fna
        get_configs_for_cutlass_blackwell_fmha get_configs_for_cutlass_blackwell_fna
        get_configs_for_flex_fmha get_configs_for_flex_fna""",
}


def signatures(text):
    for part in text.replace(")", ")\n").splitlines():
        if part.strip():
            name, arguments = part.strip().rstrip(")").split("(")
            yield name, arguments


CASES = [(v, *s) for v, text in SIGNATURES.items() for s in signatures(text)]


@pytest.mark.parametrize(("version", "name", "arguments"), CASES, ids=lambda x: str(x)[:24])
def test_signature(version, name, arguments):
    module = compat.for_version(version)
    assert name in module.__all__
    found = inspect.signature(getattr(module, name)).parameters.values()
    written = [
        p.name if p.default is p.empty else f"{p.name}={p.default!r}"
        for p in found
        if p.name != "self"
    ]
    wanted = [a.strip() for a in arguments.split(",") if a.strip()]
    if wanted[-1:] == ["..."]:
        wanted.pop()
        written = written[: len(wanted)]
    assert written == wanted


@pytest.mark.parametrize("version", SWITCHES)
def test_switches_are_accepted(version):
    module = compat.for_version(version)
    for name in SWITCHES[version].split():
        assert name in module.__all__, name
        if name.startswith(("use_", "allow_", "disable_", "is_", "are_", "get_", "set_")):
            getattr(module, name)()


@pytest.mark.parametrize("name", ["v014", "v015", "v017", "v020", "v021"])
def test_all_lists_what_is_there(name):
    module = compat.for_version(f"0.{int(name[2:])}.0")
    missing = [n for n in module.__all__ if not hasattr(module, n)]
    assert not missing
    defined = [
        n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__
    ]
    public = {n for n in defined if not n.startswith("_") and n != "Layer"}
    assert public <= set(module.__all__)


@pytest.mark.parametrize("version", ["0.13.0", "1.0", "seventeen", "0.16.2"])
def test_unknown_release(version):
    with pytest.raises(ValueError, match=r"\[for_version\] 'version' must be"):
        compat.for_version(version)


@pytest.mark.parametrize("version", SIGNATURES)
def test_releases_say_their_version(version):
    assert compat.for_version(version).__version__ == version
    assert compat.for_version(version.rpartition(".")[0]).__version__ == version


@pytest.fixture
def _switches():
    before = dict(knobs._state)
    yield
    knobs._state.clear()
    knobs._state.update(before)


@pytest.mark.usefixtures("_switches")
def test_switches_remember():
    knobs._state.clear()
    natten = compat.for_version("0.17.5")
    assert not natten.is_kv_parallelism_in_fused_na_enabled()
    natten.use_fused_na(True, kv_parallel=True)
    assert natten.is_fused_na_enabled() and natten.is_kv_parallelism_in_fused_na_enabled()
    natten.use_fna(False)
    assert not natten.is_fna_enabled() and not natten.is_kv_parallelism_in_fused_na_enabled()
    natten.use_fused_na(True, False, True)
    assert natten.should_use_flex_attention()
    assert not natten.is_kv_parallelism_in_fused_na_enabled()
    natten.use_autotuner(True, thorough_mode_backward=True)
    assert natten.is_autotuner_enabled() and natten.is_autotuner_enabled_for_forward()
    assert not natten.is_autotuner_enabled_for_backward()
    assert natten.is_autotuner_thorough_for_backward()
    natten.disable_autotuner()
    assert not natten.is_autotuner_enabled() and not natten.is_autotuner_thorough_for_backward()


@pytest.mark.usefixtures("_switches")
@pytest.mark.parametrize("version", ["0.20", "0.21"])
def test_key_value_parallelism_is_on_by_default_since_020(version):
    knobs._state.clear()
    natten = compat.for_version(version)
    assert natten.is_kv_parallelism_in_fused_na_enabled()
    natten.use_kv_parallelism_in_fused_na(False)
    assert not natten.is_kv_parallelism_in_fused_na_enabled()
