"""PMRF: restores a face by a guess of its mean and a flow from there to the faces that there are.

Ohayon et al., Posterior-Mean Rectified Flow, https://arxiv.org/abs/2410.00418; code and weights of
https://github.com/ohayonguy/PMRF (MIT). A SwinIR makes the mean, which is blurred where the photo
leaves several possibilities; an HDiT moves it, with a little noise, in equal steps of time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from .base import Config, Model
from .hdit import HDiT
from .hdit_config import HDiTConfig
from .swinir import UNSHUFFLE, SwinIR

# Where the two networks are in a file; others in a training checkpoint measured how good it was.
PARTS = ("model.", "mmse_model.")


@dataclass(frozen=True)
class PMRFConfig(Config):
    """Configuration of a PMRF.

    Args:
        flow: Configuration of the HDiT that tells the flow's velocity, or its arguments. Its
            `time` is `"flow"`.
        embed_dim: Channels of the SwinIR.
        depths: Blocks of each of its groups.
        num_heads: Its attention heads.
        window_size: Side of its windows in tokens of 8 pixels.
        mlp_ratio: Width of its feed-forward parts relative to the channels.
        noise_std: Standard deviation of the noise on the mean where the flow begins.
    """

    flow: Any = None
    embed_dim: int = 180
    depths: tuple[int, ...] = (6,) * 8
    num_heads: int = 6
    window_size: int = 8
    mlp_ratio: float = 2.0
    noise_std: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        flow = {} if self.flow is None else self.flow
        if isinstance(flow, Mapping):
            flow = HDiTConfig.from_dict({"mapping_dim": 768, "time": "flow", **flow})
        if not isinstance(flow, HDiTConfig):
            raise TypeError(
                "[PMRFConfig] 'flow' must be an HDiTConfig or a mapping but got "
                f"{type(flow).__name__}."
            )
        object.__setattr__(self, "flow", dataclasses.replace(flow, time="flow"))
        if self.flow.in_chans != 3 or self.flow.num_labels or self.flow.cond_dim:
            raise ValueError("[PMRFConfig] 'flow' must have 3 channels, no labels and no other "
                             "conditioning.")  # fmt: skip
        for name in ("num_heads", "window_size"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ValueError(
                    f"[PMRFConfig] '{name}' must be a positive integer but got "
                    f"{getattr(self, name)!r}."
                )
        if self.embed_dim % self.num_heads:
            raise ValueError(
                "[PMRFConfig] 'num_heads' must divide 'embed_dim' but got "
                f"{self.num_heads} and {self.embed_dim}."
            )

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain data, ready for JSON."""
        return {**super().to_dict(), "flow": self.flow.to_dict()}

    @property
    def in_chans(self) -> int:
        """Channels of the image."""
        return 3


class PMRF(Model):
    """Posterior-Mean Rectified Flow. `natten_zoo.tasks.restore` runs all of it.

    Args:
        config: The model's configuration.

    Shape:
        - Input: `[batch, height, width, 3]` of 0..1; sides are multiples of
          [`multiple`][natten_zoo.models.PMRF.multiple]. The published weights know 512 x 512.
        - Output: the mean of all images that the input may have been, of the same shape. It may
          leave 0..1.

    Examples:
        >>> import mlx.core as mx
        >>> from natten_zoo.models import PMRF, PMRFConfig
        >>> flow = {"widths": (16, 32), "depths": (1, 1), "head_dims": 16, "mapping_dim": 16}
        >>> model = PMRF(PMRFConfig(flow, embed_dim=12, depths=(1,), num_heads=2)).eval()
        >>> model(mx.zeros((1, 64, 128, 3))).shape
        (1, 64, 128, 3)
        >>> model.velocity(mx.zeros((1, 64, 128, 3)), mx.zeros(1)).shape
        (1, 64, 128, 3)
    """

    Config = PMRFConfig
    TASK = "image-restoration"

    def __init__(self, config: PMRFConfig) -> None:
        super().__init__(config)
        self.model = HDiT(config.flow)
        self.mmse_model = SwinIR(
            config.embed_dim,
            config.depths,
            config.num_heads,
            config.window_size,
            config.mlp_ratio,
        )

    @property
    def multiple(self) -> int:
        """What the sides of an image must be a multiple of."""
        return UNSHUFFLE * int(self.config.window_size)

    def __call__(self, image: mx.array) -> mx.array:
        self.check_input(image)
        return self.mmse_model(image.astype(self.mmse_model.norm.weight.dtype))

    def velocity(self, x: mx.array, time: mx.array) -> mx.array:
        """Where the flow goes from `x` at a time of 0..1, `[batch]`; float32."""
        dtype = self.model.out_norm.scale.dtype
        return self.model(x.astype(dtype), time).astype(mx.float32)

    def check_input(self, x: Any) -> None:
        """Refuse images whose channels or sides do not fit; nothing is computed."""
        super().check_input(x)
        step = self.multiple
        if any(n % step or not n for n in x.shape[1:3]):
            raise ValueError(
                f"[PMRF] 'x' must have sides that are multiples of {step} but got "
                f"{x.shape[1]}x{x.shape[2]}."
            )

    def set_dtype(self, dtype: mx.Dtype, *args: Any, **kwargs: Any) -> None:
        """Convert the weights, but for the random projections of time, which stay as drawn."""
        for part in (self.model, self.mmse_model):
            part.set_dtype(dtype, *args, **kwargs)

    @staticmethod
    def sanitize(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """Turn upstream's state dict into our names and layouts.

        Left out are tables that follow from the sizes, and the networks that measured a training.
        """
        result: dict[str, mx.array] = {}
        for part, sanitize in zip(PARTS, (HDiT.sanitize, SwinIR.sanitize), strict=True):
            own = {k.removeprefix(part): v for k, v in weights.items() if k.startswith(part)}
            result |= {f"{part}{name}": value for name, value in sanitize(own).items()}
        return result
