"""Low-rank adapters: train a few matrices beside the frozen linear layers, fuse them at the end.

Source: Hu et al., LoRA, https://arxiv.org/abs/2106.09685.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from ..pretrained.quantize import Quantization, as_float, as_quantized
from .optim import freeze_body

Base = nn.Linear | nn.QuantizedLinear


class LoRALinear(nn.Module):
    r"""A frozen linear layer plus a trained update of low rank.

    $$y = W x + b + s \, B A x$$

    The layer may be quantized (QLoRA: Dettmers et al., https://arxiv.org/abs/2305.14314).

    Args:
        linear: The layer; it stays as it is.
        rank: Rows of A and columns of B.
        scale: The factor s.

    Shape:
        - Input: `[..., input_dims]`. Output: `[..., output_dims]`.
    """

    def __init__(self, linear: Base, rank: int = 8, scale: float = 2.0) -> None:
        super().__init__()
        output_dims, input_dims = linear.weight.shape
        if isinstance(linear, nn.QuantizedLinear):
            input_dims = input_dims * 32 // linear.bits
        if not 0 < rank <= min(input_dims, output_dims):
            raise ValueError(
                f"[LoRALinear] 'rank' must be in 1..{min(input_dims, output_dims)} but got {rank}."
            )
        bound = 1 / math.sqrt(input_dims)
        self.linear, self.scale = linear, scale
        self.lora_a = mx.random.uniform(-bound, bound, (input_dims, rank))
        self.lora_b = mx.zeros((rank, output_dims))
        self.linear.freeze()

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear(x) + self.scale * ((x @ self.lora_a) @ self.lora_b)

    def fuse(self) -> Base:
        """The plain layer that computes the same; a quantized one is quantized again, as it was."""
        layer = self.linear
        base = as_float(layer) if isinstance(layer, nn.QuantizedLinear) else layer
        # nn.Linear(...) would draw weights: a run that saves and one that resumes would part.
        fused = nn.Linear.__new__(nn.Linear)
        nn.Module.__init__(fused)
        update = self.scale * (self.lora_a @ self.lora_b).T
        fused.weight = base.weight + update.astype(base.weight.dtype)
        if "bias" in base:
            fused.bias = base.bias
        if isinstance(layer, nn.QuantizedLinear):
            return as_quantized(fused, Quantization.of_layer(layer))
        return fused


def add_lora(model: nn.Module, rank: int, scale: float, targets: Sequence[str]) -> int:
    """Freeze the model but its head and give every frozen layer called like a target LoRA.

    What learns and is quantized, such as a head that is kept, becomes floating point.

    Returns:
        How many layers got it.

    Raises:
        ValueError: No layer is called like a target.
    """
    body = freeze_body(model)
    on_top = [
        (name, as_float(module))
        for name, module in model.named_modules()
        if isinstance(module, nn.QuantizedLinear)
        and (not name.startswith(body) if body else name == "head")
    ]
    model.update_modules(tree_unflatten(on_top))
    adapted = [
        (name, LoRALinear(module, rank, scale))
        for name, module in model.named_modules()
        if isinstance(module, Base) and name.startswith(body) and name.rpartition(".")[2] in targets
    ]
    if not adapted:
        raise ValueError(f"[LoRA] no linear layer is called {', '.join(targets)}.")
    model.update_modules(tree_unflatten(adapted))
    return len(adapted)


@contextmanager
def fused(model: nn.Module) -> Iterator[nn.Module]:
    """The model with plain linear layers in place of adapted ones, for saving; then as before."""
    adapted = [(n, m) for n, m in model.named_modules() if isinstance(m, LoRALinear)]
    if not adapted:
        yield model
        return
    model.update_modules(tree_unflatten([(name, module.fuse()) for name, module in adapted]))
    try:
        yield model
    finally:
        model.update_modules(tree_unflatten(adapted))
