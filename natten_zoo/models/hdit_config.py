"""What an HDiT is made of, level by level; see [`natten_zoo.models.hdit`][]."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Config
from .hdit_layers import KINDS


@dataclass(frozen=True)
class HDiTConfig(Config):
    """Configuration of an HDiT. Of each level, where a number stands for all levels, it may.

    Args:
        widths: Channels of each level, the finest first.
        depths: Layers of each level; all but the last have as many on the way back.
        attentions: Of each level `"neighborhood"`, `"global"`, `"shifted-window"` or
            `"none"`. Default: neighborhoods, and `"global"` on the last.
        head_dims: Channels of a head, multiples of 8.
        kernel_sizes: Tokens that a neighborhood or window has per axis; not used by other levels.
        hidden_dims: Channels of the feed-forward parts. Default: three times the level's.
        patch: Height and width of a token in pixels.
        in_chans: Channels of the image.
        mapping_depth: Layers of the mapping network.
        mapping_dim: Its channels.
        mapping_hidden_dim: Channels of its feed-forward parts. Default: three times as many.
        num_labels: Rows of the label embedding; 0 for a model without labels. Models that
            k-diffusion trained have one more than the data: no label.
        cond_dim: Channels of other conditioning; 0 for none.
        drop_rate: Dropout rate of each level.
        mapping_drop_rate: Dropout rate of the mapping network.
        time: What the network is told: `"log_sigma"`, a quarter of the noise's logarithm, or
            `"flow"`, the time of a flow as it is.
        sigma_data: Standard deviation of the data, for
            [`HDiT.denoise`][natten_zoo.models.HDiT.denoise].
        sigma_min: Least noise that the model was trained for.
        sigma_max: Most.
    """

    widths: tuple[int, ...] = (128, 256, 512)
    depths: tuple[int, ...] = (2, 2, 4)
    attentions: tuple[str, ...] | None = None
    head_dims: int | tuple[int, ...] = 64
    kernel_sizes: int | tuple[int, ...] = 7
    hidden_dims: tuple[int, ...] | None = None
    patch: tuple[int, int] = (4, 4)
    in_chans: int = 3
    mapping_depth: int = 2
    mapping_dim: int = 256
    mapping_hidden_dim: int | None = None
    num_labels: int = 0
    cond_dim: int = 0
    drop_rate: float | tuple[float, ...] = 0.0
    mapping_drop_rate: float = 0.0
    time: str = "log_sigma"
    sigma_data: float = 0.5
    sigma_min: float = 1e-2
    sigma_max: float = 160.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("widths", "depths", "patch"):
            if not isinstance(getattr(self, name), tuple):
                self._refuse(name, "several numbers")
        levels = len(self.widths)
        defaults = {
            "attentions": ("neighborhood",) * (levels - 1) + ("global",),
            "hidden_dims": tuple(3 * width for width in self.widths),
            "mapping_hidden_dim": 3 * self.mapping_dim,
        }
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for name in ("head_dims", "kernel_sizes", "drop_rate"):
            value = getattr(self, name)
            if not isinstance(value, tuple):
                object.__setattr__(self, name, (value,) * levels)
        self._check()

    def _refuse(self, name: str, wanted: str) -> None:
        raise ValueError(f"[HDiTConfig] '{name}' must be {wanted} but got {getattr(self, name)!r}.")

    def _check(self) -> None:
        levels = len(self.widths)
        positive = ("widths", "depths", "head_dims", "kernel_sizes", "hidden_dims", "patch")
        for name in positive:
            if not all(type(n) is int and n > 0 for n in getattr(self, name)):
                self._refuse(name, "positive integers")
        for name in (*positive[1:5], "attentions", "drop_rate"):
            if len(getattr(self, name)) != levels:
                self._refuse(name, f"one per level, {levels},")
        if len(self.patch) != 2:
            self._refuse("patch", "a height and a width")
        for name in ("mapping_dim", "mapping_hidden_dim", "mapping_depth"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                self._refuse(name, "a positive integer")
        for name in ("num_labels", "cond_dim"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 0:
                self._refuse(name, "an integer from 0")
        if not set(self.attentions or ()) <= set(KINDS):
            self._refuse("attentions", f"among {', '.join(KINDS)}")
        if self.time not in ("log_sigma", "flow"):
            self._refuse("time", "'log_sigma' or 'flow'")
        if self.mapping_dim % 2:
            self._refuse("mapping_dim", "even")
        for width, head, kind in zip(self.widths, self.head_dims, self.attentions, strict=True):  # type: ignore[arg-type]
            if kind != "none" and (head % 8 or width % head):
                self._refuse("head_dims", f"multiples of 8 that divide the widths {self.widths}")
        if not 0 < self.sigma_min < self.sigma_max or not self.sigma_data > 0:
            self._refuse("sigma_min", "positive and below 'sigma_max', as is 'sigma_data',")
