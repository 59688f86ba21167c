"""Old import lines keep working: modules that have moved are found under former names, too."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# Former name: today's. What lies in a package that has moved is found with it.
MOVED = {
    "natten_zoo.evaluation": "natten_zoo.tasks.evaluation",
    "natten_zoo.music": "natten_zoo.tasks.music",
    "natten_zoo.ops.compat": "natten_zoo.compat",
    "natten_zoo.pretrained.errors": "natten_zoo.pretrained.readers.errors",
    "natten_zoo.pretrained.pickle_machine": "natten_zoo.pretrained.readers.pickle_machine",
    "natten_zoo.pretrained.reader": "natten_zoo.pretrained.readers.reader",
    "natten_zoo.pretrained.record": "natten_zoo.configs.record",
    "natten_zoo.pretrained.safetensors_file": "natten_zoo.pretrained.readers.safetensors_file",
    "natten_zoo.pretrained.torch_archive": "natten_zoo.pretrained.readers.torch_archive",
    "natten_zoo.pretrained.torch_globals": "natten_zoo.pretrained.readers.torch_globals",
    "natten_zoo.pretrained.torch_pickle": "natten_zoo.pretrained.readers.torch_pickle",
    "natten_zoo.segmentation": "natten_zoo.tasks.segmentation",
    "natten_zoo.sliding": "natten_zoo.tasks.sliding",
    "natten_zoo.training.memory": "natten_zoo.layers.checkpointing",
    "natten_zoo.video": "natten_zoo.tasks.video",
    "natten_zoo.volumes": "natten_zoo.tasks.volumes",
}


class _Finder(MetaPathFinder, Loader):
    """Hands out the module itself, not a copy: its classes and its state exist once."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if _today(fullname) is None:
            return None
        return ModuleSpec(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        today = _today(spec.name)
        assert today is not None
        warnings.warn(f"{spec.name} is {today} now.", DeprecationWarning, stacklevel=2)
        module = import_module(today)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It was executed where it lives; only what the import machinery wrote into it goes."""
        former = module.__spec__
        module.__spec__ = former.loader_state if former else None


def _today(fullname: str) -> str | None:
    for former, today in MOVED.items():
        if fullname == former or fullname.startswith(f"{former}."):
            return today + fullname.removeprefix(former)
    return None


def install() -> None:
    """Finds moved modules from now on; first, or a package's parts would be imported twice."""
    sys.meta_path.insert(0, _Finder())
