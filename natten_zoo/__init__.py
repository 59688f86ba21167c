"""Neighborhood attention and the models built on it, for MLX.

Examples:
    >>> import natten_zoo
    >>> natten_zoo.list_models("nat_*")[:2]
    ['nat_base', 'nat_isotropic_base']
"""

from importlib import import_module as _import_module
from pathlib import Path as _Path
from typing import TYPE_CHECKING
from typing import Any as _Any

from ._moved import MOVED as _MOVED
from ._moved import install as _install
from .version import __version__ as __version__

_install()

if not _Path(__file__).exists():
    # The kernels, the packaged weights and their readers are files.
    _archive = _Path(__file__).parents[1]
    raise ImportError(f"natten_zoo can't be imported from an archive: pip install {_archive}")
_root = _Path(__file__).resolve().parents[1]
if (_root / "pyproject.toml").exists() and (_root / "ops" / "neighborhood.py").exists():
    # In a clone ops/, metal/ and configs/ lie beside this folder instead of in it.
    __path__.append(str(_root))

if TYPE_CHECKING:
    from . import (
        cli,
        compat,
        configs,
        data,
        export,
        layers,
        metal,
        models,
        ops,
        pretrained,
        tasks,
        training,
        viz,
    )
    from .models import (
        NAT,
        DiNAT,
        DiNAT_s,
        IsotropicNAT,
        create_model,
        get_record,
        list_models,
        load_pretrained,
    )
    from .viz import attention_maps

__all__ = [
    "DiNAT",
    "DiNAT_s",
    "IsotropicNAT",
    "NAT",
    "attention_maps",
    "cli",
    "compat",
    "configs",
    "create_model",
    "data",
    "export",
    "get_record",
    "layers",
    "list_models",
    "load_pretrained",
    "metal",
    "models",
    "ops",
    "pretrained",
    "tasks",
    "training",
    "viz",
]

# Where public names that are no modules live. All names are looked up on first use, so that
# `import natten_zoo` is quick.
_EXPORTS = {
    "attention_maps": ".viz.maps",
    "create_model": ".models",
    "list_models": ".models",
    "get_record": ".models",
    "load_pretrained": ".models",
    "NAT": ".models",
    "DiNAT": ".models",
    "DiNAT_s": ".models",
    "IsotropicNAT": ".models",
}


def __getattr__(name: str) -> _Any:
    if name not in __all__ and f"{__name__}.{name}" not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _EXPORTS:
        return getattr(_import_module(_EXPORTS[name], __name__), name)
    return _import_module(f".{name}", __name__)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
