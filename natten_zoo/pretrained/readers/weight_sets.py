"""Which entries of a file are a model's weights, and their names without what was put before them.

Whoever saves a model puts names around its own: compilers and wrappers of modules (`_orig_mod.`,
`module.`), trainers (`state_dict`, `model.`), averages (`model_ema.module.`), the attribute of a
class (`student.`). They come in any order, as dicts in dicts or in the keys themselves, and there
may be several sets of weights. So a set is found from its inner end: by the name of its first
layer, which is one of a few (`FIRST`). What stands before that name is the set's own; the set is
the names of the same dict that begin like it.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

from .budget import Budget
from .errors import CheckpointError

# Names that say nothing: of modules around modules, at the front or on the way.
WRAPPERS = (
    *("module", "_orig_mod", "_fsdp_wrapped_module", "_fpw_module"),
    *("_checkpoint_wrapped_module", "_ddp_module", "_forward_module"),
)
# The first layer of every known model, as it is called here, upstream and by Hugging Face, and
# what may stand before it and belongs to the model all the same.
FIRST: dict[str, tuple[str, ...]] = {
    "patch_embed.proj.0.weight": (),
    "patch_embed.proj.weight": ("swinViT", "swin_vit"),
    "patch_embed.weight": (),
    "embeddings.patch_embeddings.projection.0.weight": ("nat", "dinat"),
    "embeddings.patch_embeddings.projection.weight": (
        *("nat", "dinat", "dinov2", "dinov2_with_registers"),
    ),
    "embeddings.conv0.weight": (),
    "image_encoder.encoder.0.weight": (),
    "conv_in.weight": ("decoder",),
    "patch_in.proj.weight": (),
}
# Models that have another in them: its name there, and of its neighbors.
AROUND = {
    "backbone": ("decode_head", "sem_seg_head", "pixel_decoder"),
    "model": ("mmse_model",),
    "model.pixel_level_module.encoder": ("model.pixel_level_module.decoder",),
}
# Where training checkpoints keep weights of any kind; the first that is there is taken.
EMA_PARTS = ("state_dict_ema", "model_ema")
RAW_PARTS = ("state_dict", "model", "model_state_dict")
# Averaged weights are what their authors evaluate.
AVERAGED = re.compile(r"(^|_)(ema|swa|avg|averaged|shadow)(_|$)")
# What has the names of weights and is none.
OPTIMIZER = re.compile(r"opt(im\w*)?$|.*optimizer|exp_avg|max_exp_avg|momentum|grad(ient)?s?$")
# What `get_extra_state` of a module left, which is no weight.
EXTRA_STATE = re.compile(r"(^|\.)_extra_state$")
MAX_DEPTH = 8
MAX_NAME = 1000
ENTRY = 300  # about what Python takes for an entry, its name apart

_START = r"(?:^|(?<=\.))"  # of a name between dots
_WRAPPER = rf"(?:{'|'.join(WRAPPERS)})\."
_WRAPPED = re.compile(_START + _WRAPPER)
_FIRST = re.compile(
    "|".join(
        rf"{_START}(?:(?:{'|'.join(around) or '-'})\.(?:{_WRAPPER})*)?"
        + rf"\.(?:{_WRAPPER})*".join(name.split("."))
        + "$"
        for name, around in FIRST.items()
    )
)


class NoWeightsError(CheckpointError):
    """There is nothing in a file that could be weights."""


@dataclass(frozen=True)
class Entry:
    """Something in a file that has a name.

    Attributes:
        container: The names of the dicts around it, joined by dots.
        key: Its own name in the last of them.
        value: What it is.
        is_weight: Whether that is a tensor.
    """

    container: str
    key: Any
    value: Any
    is_weight: bool

    @property
    def name(self) -> str:
        """Its whole name."""
        return f"{self.container}.{self.key}" if self.container else str(self.key)


@dataclass
class WeightSet:
    """One set of weights.

    Attributes:
        part: Its name, without wrappers: `"state_dict.student"`; `""` for the whole file.
        entries: Its entries by their names in the model.
        known: Whether a known model's first layer is among them.
        beside: Names in the same dict that are not in it.
    """

    part: str
    entries: dict[str, Entry]
    known: bool = False
    beside: list[str] = field(default_factory=list)


def known_sets(entries: Sequence[Entry]) -> list[WeightSet]:
    """The sets of weights of known models among the entries of a file."""
    names = [entry.name for entry in entries]
    anchors: dict[str, str | None] = {}  # what stands before a set, and the dict that it is in
    for entry, name in zip(entries, names, strict=True):
        match = _FIRST.search(name) if entry.is_weight else None
        if match is None:
            continue
        prefix = _around(name[: match.start()], names)
        inside = not entry.container or len(prefix) > len(entry.container)
        anchors[prefix] = entry.container if inside else None  # None: a dict for each layer
    prefixes = sorted(anchors, key=len, reverse=True)
    members: dict[str, list[tuple[str, Entry]]] = {prefix: [] for prefix in anchors}
    others = []
    for entry, name in zip(entries, names, strict=True):
        for prefix in prefixes:
            if name.startswith(prefix) and anchors[prefix] in (None, entry.container):
                members[prefix].append((name, entry))
                break
        else:
            others.append((name, entry))
    labels = _labels(anchors)
    return [
        WeightSet(
            labels[prefix],
            _peeled(prefix, found),
            True,
            [name for name, entry in others if entry.container == anchors[prefix]],
        )
        for prefix, found in members.items()
    ]


def without_wrappers(name: str) -> str:
    """A name without those of modules around modules.

    Examples:
        >>> without_wrappers("_orig_mod.levels.0._fsdp_wrapped_module.blocks.0.norm1.bias")
        'levels.0.blocks.0.norm1.bias'
    """
    return _WRAPPED.sub("", name)


def entries_of(
    path: str | PathLike[str], root: Any, is_weight: Callable[[Any], bool], nbytes: int
) -> list[Entry]:
    """The weights of a file wherever they lie, and what lies in the same dicts."""
    budget = Budget(path, nbytes, what="names")
    found: list[Entry] = []
    seen = set()
    todo = deque([("", root, 0)])
    while todo:
        where, container, depth = todo.popleft()
        if id(container) in seen or depth > MAX_DEPTH:
            continue
        seen.add(id(container))  # of a dict that has two names, the first counts
        items = list(container.items() if isinstance(container, dict) else enumerate(container))
        holds_weights = any(is_weight(value) for _, value in items)
        for key, value in items:
            if not isinstance(key, (str, int)) or len(str(key)) > MAX_NAME:
                continue  # the key of an optimizer's state, but no weight's name
            if holds_weights:
                entry = Entry(where, key, value, is_weight(value))
                budget.spend(len(where) + len(str(key)) + ENTRY)
                found.append(entry)
            if isinstance(value, (dict, list, tuple)):
                todo.append((f"{where}.{key}" if where else str(key), value, depth + 1))
    return found


def _around(prefix: str, names: Sequence[str]) -> str:
    """What stands before the model around the one that was found, if there is one."""
    for inner, neighbors in AROUND.items():
        match = re.search(rf"{_START}{re.escape(inner)}\.(?:{_WRAPPER})*$", prefix)
        if match is None:
            continue
        before = prefix[: match.start()]
        if any(name.startswith(f"{before}{n}.") for n in neighbors for name in names):
            return before
    return prefix


def _labels(prefixes: Iterable[str]) -> dict[str, str]:
    short = {prefix: without_wrappers(prefix).rstrip(".") for prefix in prefixes}
    if len(set(short.values())) < len(short):
        return {prefix: prefix.rstrip(".") for prefix in short}
    return short


def _peeled(prefix: str, found: Sequence[tuple[str, Entry]]) -> dict[str, Entry]:
    own = {name.removeprefix(prefix): entry for name, entry in found}
    short = {without_wrappers(name): entry for name, entry in own.items()}
    own = short if len(short) == len(own) else own  # else two names would become one
    return {name: entry for name, entry in own.items() if not EXTRA_STATE.search(name)}
