"""The APIs of historical NATTEN releases, on this library's operators.

Each module has a release's public names in its argument order, layout, scaling, defaults and
errors; its layers load that release's state dicts.

- `v014`: NATTEN 0.14.6: `natten2dqkrpb` and `natten2dav`, heads first, unscaled
- `v015`: NATTEN 0.15.1: 3-D, additional keys, `na2d_qk_with_bias`
- `v017`: NATTEN 0.17.5: fused `na2d` heads last, unfused `na2d_qk` heads first, causal
- `v020`: NATTEN 0.20.1: `stride` (our `window_stride`), `attention`; no bias
- `v021`: NATTEN 0.21.x: `return_lse`, causal and variable-length `attention`

Examples:
    >>> from natten_zoo import compat
    >>> natten = compat.for_version("0.14.6")
    >>> natten.__name__
    'natten_zoo.compat.v014'
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

_RELEASES = {(0, 14): "v014", (0, 15): "v015", (0, 17): "v017", (0, 20): "v020", (0, 21): "v021"}


def for_version(version: str) -> ModuleType:
    """The module with the API of NATTEN `version`, such as `"0.17.5"`.

    Raises:
        ValueError: If there is none for that release.
    """
    numbers = version.lstrip("v").split(".")
    try:
        name = _RELEASES[int(numbers[0]), int(numbers[1])]
    except (KeyError, IndexError, ValueError):
        known = ", ".join(f"{major}.{minor}" for major, minor in _RELEASES)
        raise ValueError(
            f"[for_version] 'version' must be a release of NATTEN {known} but got {version!r}."
        ) from None
    return import_module(f".{name}", __name__)
