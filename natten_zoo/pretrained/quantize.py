"""Linear layers in few bits; with the modes and the configuration keys of mlx-lm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

BITS = (4, 6, 8)
GROUP_SIZES = (32, 64, 128)
# Floats of few bits with a shared exponent (OCP's microscaling formats) or a float8 scale (NVIDIA's
# nvfp4): group size and bits are the format's.
FORMATS = {"mxfp4": (32, 4), "nvfp4": (16, 4), "mxfp8": (32, 8)}
MODES = ("affine", *FORMATS)
KEY = "quantization"  # in config.json; the Hub reads the same under `quantization_config`


@dataclass(frozen=True)
class Quantization:
    """How a layer's weights are stored.

    Args:
        group_size: Weights along the input that share a scale. `affine`: 32, 64 or 128; each
            other mode has its own.
        bits: Of a weight. `affine`: 4, 6 or 8; each other mode has its own.
        mode: `affine`, integers with a scale and an offset per group; `mxfp4` or `mxfp8`,
            floats with a power of 2 per 32; `nvfp4`, floats with a float8 scale per 16.
    """

    group_size: int = 64
    bits: int = 8
    mode: str = "affine"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            self._refuse("mode", MODES)
        sizes: tuple[int, ...] = GROUP_SIZES
        bits: tuple[int, ...] = BITS
        if self.mode in FORMATS:
            sizes, bits = ((n,) for n in FORMATS[self.mode])
        if self.bits not in bits:
            self._refuse("bits", bits)
        if self.group_size not in sizes:
            self._refuse("group_size", sizes)

    def _refuse(self, name: str, known: tuple[Any, ...]) -> NoReturn:
        mode = "" if name == "mode" else f" with mode {self.mode}"
        raise ValueError(
            f"[quantize] {name!r} must be one of {known}{mode} but got {getattr(self, name)!r}."
        )

    @classmethod
    def of(cls, mode: str, bits: int | None = None, group_size: int | None = None) -> Quantization:
        """A mode, with its own bits and group size (`affine`: 8 and 64) where none are said."""
        own_size, own_bits = FORMATS.get(mode, (64, 8))
        return cls(
            own_size if group_size is None else group_size, own_bits if bits is None else bits, mode
        )

    @classmethod
    def of_layer(cls, layer: nn.QuantizedLinear) -> Quantization:
        """How a layer is quantized."""
        return cls(layer.group_size, layer.bits, layer.mode)

    def fits(self, layer: nn.Linear) -> bool:
        """Whether whole groups make up a layer's inputs."""
        return layer.weight.shape[-1] % self.group_size == 0

    def __str__(self) -> str:
        if self.mode in FORMATS:
            return self.mode
        groups = "" if self.group_size == 64 else f" by {self.group_size}"
        return f"{self.bits} bits{groups}"


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers in floating point, by name: those of attention, MLPs and classifiers."""
    return {name: m for name, m in model.named_modules() if type(m) is nn.Linear}


def quantize(
    model: nn.Module,
    bits: int | None = None,
    group_size: int | None = None,
    mode: str = "affine",
    *,
    layers: Mapping[str, Quantization | None] | None = None,
) -> tuple[int, list[str]]:
    """Quantizes the linear layers of a model, in place.

    The projections of attention are among them. Convolutions, norms and biases stay: in these
    models they are a small part of the weights, and MLX has no quantized convolution.

    Args:
        model: The model.
        bits: Of a weight; see `Quantization`, also for its default.
        group_size: Weights that share a scale; must divide the inputs of a layer, or it stays.
        mode: `affine`, `mxfp4`, `nvfp4` or `mxfp8`.
        layers: Those that are treated otherwise, by name; None leaves one as it is.

    Returns:
        How many layers were quantized, and the names of the linear layers that stay.

    Raises:
        ValueError: An argument is out of range, or no layer can be quantized.
    """
    usual = Quantization.of(mode, bits, group_size)
    layers, linear = layers or {}, linear_layers(model)
    if unknown := sorted(layers.keys() - linear.keys()):
        raise ValueError(f"[quantize] 'layers' must be linear but got {', '.join(unknown)}.")
    wanted = {name: layers.get(name, usual) for name in linear}
    chosen = {name: q for name, q in wanted.items() if q is not None and q.fits(linear[name])}
    stay = [name for name in linear if name not in chosen]
    if not chosen:
        raise ValueError(
            f"[quantize] 'group_size' must divide the inputs of a layer but {usual.group_size} "
            "divides none."
        )
    _apply(model, chosen)
    return len(chosen), stay


def _apply(model: nn.Module, chosen: Mapping[str, Quantization]) -> None:
    nn.quantize(
        model,
        class_predicate=lambda name, _: asdict(chosen[name]) if name in chosen else False,
    )


def quantization(model: nn.Module) -> dict[str, Any] | None:
    """How a model is quantized, for its `config.json`; None if it is not.

    Layers that differ from most stand under their names, as in mlx-lm.
    """
    found = {
        name: Quantization.of_layer(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.QuantizedLinear)
    }
    if not found:
        return None
    ((usual, _),) = Counter(found.values()).most_common(1)
    others = {name: asdict(q) for name, q in sorted(found.items()) if q != usual}
    return {**asdict(usual), **others}


def refuse_quantized(model: nn.Module, name: str) -> None:
    """Refuse a model whose weights are to be trained or changed: quantized ones cannot be.

    Args:
        model: The model.
        name: Whose argument it is and its name, as messages begin.

    Raises:
        ValueError: It is quantized.
    """
    if quantization(model):
        raise ValueError(
            f"{name} must have floating point weights but got a quantized model; take the one that "
            "it was made of, and quantize what comes out."
        )


def prepare(model: nn.Module, config: Mapping[str, Any] | None, weights: Collection[str]) -> None:
    """Gives a model the quantized layers that a checkpoint has weights for.

    Raises:
        ValueError: The configuration does not say how they are quantized.
    """
    settings = (config or {}).get(KEY)
    if not settings:
        return
    try:
        usual = _read(settings)
        named = {k: v for k, v in settings.items() if isinstance(v, Mapping)}
        others = {name: _read({**asdict(usual), **v}) for name, v in named.items()}
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"its config.json is wrong: {KEY!r} must be 'bits', 'group_size' and 'mode', but got "
            f"{repr(settings)[:100]}: {error}"
        ) from error
    chosen = [name for name in linear_layers(model) if f"{name}.scales" in weights]
    _apply(model, {name: others.get(name, usual) for name in chosen})


def _read(settings: Any) -> Quantization:
    if not isinstance(settings, Mapping):
        raise TypeError("it is no mapping")
    return Quantization(
        settings.get("group_size", 0), settings.get("bits", 0), settings.get("mode", "affine")
    )


def as_float(layer: nn.QuantizedLinear) -> nn.Linear:
    """The linear layer that a quantized one stands for."""
    linear: nn.Linear = _bare(nn.Linear)
    linear.weight = mx.dequantize(
        layer.weight,
        layer.scales,
        layer.get("biases"),
        layer.group_size,
        layer.bits,
        mode=layer.mode,
    )
    if "bias" in layer:
        linear.bias = layer.bias
    return linear


def as_quantized(layer: nn.Linear, how: Quantization) -> nn.QuantizedLinear:
    """A linear layer quantized; no random number is drawn."""
    made: nn.QuantizedLinear = _bare(nn.QuantizedLinear)
    made.group_size, made.bits, made.mode = how.group_size, how.bits, how.mode
    made.weight, made.scales, *biases = mx.quantize(
        layer.weight, how.group_size, how.bits, mode=how.mode
    )
    made.biases = biases[0] if biases else None
    if "bias" in layer:
        made.bias = layer.bias
    made.freeze()
    return made


def _bare(kind: Any) -> Any:
    """A module whose constructor, which draws weights, has not run."""
    module = kind.__new__(kind)
    nn.Module.__init__(module)
    return module


def size(model: nn.Module) -> int:
    """Bytes of all weights."""
    arrays: Any = tree_flatten(model.parameters())
    return sum(value.nbytes for _, value in arrays)
