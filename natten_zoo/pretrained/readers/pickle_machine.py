"""A pickle reader that can build plain containers and call nothing.

A pickle is a program for a stack machine; two of its instructions import a name and two call it.
`Machine` runs such a program without importing: a name is looked up in a table that its user
gives, and a name that is not there stands for itself, as a `Global` that builds a `Foreign`. Both
are inert. The instructions are decoded by the standard library's disassembler
(`pickletools.genops`), which checks every length before it reads.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

# A checkpoint's pickle names its tensors and holds none: 1,000 tensors take about 0.2 MB.
MAX_BYTES = 16 << 20


class PickleError(ValueError):
    """A pickle that is damaged, or that asks for what a checkpoint has no need of."""


@dataclass(frozen=True, eq=False)
class Global:
    """A name that the pickle refers to, with the function that stands for it, if any."""

    name: str
    build: Callable[..., Any] | None = None


@dataclass(frozen=True, eq=False)
class Foreign:
    """What an unknown name would have built: it remembers the name and is good for nothing."""

    name: str


class Machine:
    """Runs one pickle.

    Args:
        known: Functions by `module.name`; they get the pickle's arguments and must check them.
        persistent: Turns a persistent id (torch's reference to a storage) into an object.

    Attributes:
        foreign: The unknown names that the pickle called.
    """

    def __init__(
        self, known: Mapping[str, Callable[..., Any]], persistent: Callable[[Any], Any]
    ) -> None:
        self._known = known
        self._persistent = persistent
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self.foreign: set[str] = set()

    def run(self, program: bytes) -> Any:
        """Return the object that the pickle describes.

        Raises:
            PickleError: If it is damaged or uses an instruction that is not offered here.
        """
        if len(program) > MAX_BYTES:
            raise PickleError(f"its pickle takes {len(program)} bytes, more than {MAX_BYTES}")
        try:
            return self._run(program)
        except PickleError:
            raise
        except (ValueError, TypeError, LookupError, OverflowError) as error:
            raise PickleError(f"its pickle is damaged ({error})") from error

    def _run(self, program: bytes) -> Any:
        with warnings.catch_warnings():
            # The disassembler decodes odd escapes of text strings with a warning.
            warnings.simplefilter("ignore", DeprecationWarning)
            for opcode, argument, _ in pickletools.genops(program):
                if opcode.name in _LITERALS:
                    self._stack.append(argument)
                elif opcode.name == "STOP":
                    return self._stack.pop()
                elif opcode.name in _ACTIONS:
                    _ACTIONS[opcode.name](self, argument)
                else:
                    raise PickleError(f"its pickle uses {opcode.name}, which no checkpoint needs")
        raise PickleError("its pickle is damaged (it has no end)")

    # Marks: an opening bracket sets the stack aside, the closing one takes what came since.

    def _mark(self, _: None) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _since_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _pop_mark(self, _: None) -> None:
        self._since_mark()

    def _push_from_mark(self, make: Callable[[list[Any]], Any]) -> None:
        items = self._since_mark()
        self._stack.append(make(items))

    def _tuple_of(self, count: int) -> None:
        items = tuple(self._stack[-count:])
        if len(items) < count:
            raise IndexError("stack underflow")
        self._stack[-count:] = [items]

    # Filling containers. A Foreign takes everything and keeps nothing.

    def _fill(self, kind: type, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Foreign):
            return
        if not isinstance(target, kind):
            raise TypeError(f"a {type(target).__name__} where a {kind.__name__} belongs")
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, set):
            target.update(_keys(items))
        elif isinstance(target, dict):
            target.update(_pairs(items))

    def _last(self, count: int) -> list[Any]:
        return [self._stack.pop() for _ in range(count)][::-1]

    # The memo.

    def _get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _memoize(self, _: None) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    # Names and calls.

    def _global(self, name: str) -> None:
        self._stack.append(Global(name, self._known.get(name)))

    def _stack_global(self, _: None) -> None:
        module, name = self._last(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a name that is not a string")
        self._global(f"{module}.{name}")

    def _call(self, function: Any, arguments: Any, keywords: Any = None) -> Any:
        if not isinstance(function, (Global, Foreign)) or not isinstance(arguments, tuple):
            raise TypeError(f"a call of a {type(function).__name__}")
        if isinstance(function, Global) and function.build is not None and not keywords:
            return function.build(*arguments)
        self.foreign.add(function.name)
        return Foreign(function.name)

    def _reduce(self, _: None) -> None:
        self._stack.append(self._call(*self._last(2)))

    def _newobj_ex(self, _: None) -> None:
        self._stack.append(self._call(*self._last(3)))

    def _obj(self, _: None) -> None:
        function, *arguments = self._since_mark()
        self._stack.append(self._call(function, tuple(arguments)))

    def _inst(self, name: str) -> None:
        arguments = tuple(self._since_mark())
        function = Global(_dotted(name), self._known.get(_dotted(name)))
        self._stack.append(self._call(function, arguments))

    def _build(self, _: None) -> None:
        state = self._stack.pop()
        target = self._stack[-1]
        # Attributes (an OrderedDict's `_metadata`) are dropped: nothing here reads them.
        if hasattr(type(target), "restore"):
            target.restore(state)

    def _persistent_id(self, _: None) -> None:
        self._stack.append(self._persistent(self._stack.pop()))


def _pairs(items: list[Any]) -> dict[Any, Any]:
    if len(items) % 2:
        raise ValueError("a key without a value")
    return dict(zip(_keys(items[::2]), items[1::2], strict=True))


def _keys(items: list[Any]) -> list[Any]:
    """The items, if all are simple enough: hashing a deeply nested tuple overflows C's stack."""
    for item in items:
        for part in item if isinstance(item, tuple) else (item,):
            if not isinstance(part, (str, bytes, int, float, type(None), Global, Foreign)):
                raise TypeError(f"a key of type {type(part).__name__}")
    return items


def _dotted(name: str) -> str:
    """`module name`, as the disassembler gives it, to `module.name`."""
    return name.replace(" ", ".")


_LITERALS = frozenset(
    {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
    | {"STRING", "BINSTRING", "SHORT_BINSTRING"}
    | {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
    | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
)

_ACTIONS: dict[str, Callable[[Machine, Any], Any]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "NONE": lambda machine, _: machine._stack.append(None),
    "NEWTRUE": lambda machine, _: machine._stack.append(True),
    "NEWFALSE": lambda machine, _: machine._stack.append(False),
    "POP": lambda machine, _: machine._stack.pop() if machine._stack else machine._since_mark(),
    "DUP": lambda machine, _: machine._stack.append(machine._stack[-1]),
    "MARK": Machine._mark,
    "POP_MARK": Machine._pop_mark,
    "EMPTY_LIST": lambda machine, _: machine._stack.append([]),
    "EMPTY_DICT": lambda machine, _: machine._stack.append({}),
    "EMPTY_SET": lambda machine, _: machine._stack.append(set()),
    "EMPTY_TUPLE": lambda machine, _: machine._stack.append(()),
    "TUPLE1": lambda machine, _: machine._tuple_of(1),
    "TUPLE2": lambda machine, _: machine._tuple_of(2),
    "TUPLE3": lambda machine, _: machine._tuple_of(3),
    "TUPLE": lambda machine, _: machine._push_from_mark(tuple),
    "LIST": lambda machine, _: machine._push_from_mark(list),
    "DICT": lambda machine, _: machine._push_from_mark(_pairs),
    "FROZENSET": lambda machine, _: machine._push_from_mark(lambda items: frozenset(_keys(items))),
    "APPEND": lambda machine, _: machine._fill(list, machine._last(1)),
    "APPENDS": lambda machine, _: machine._fill(list, machine._since_mark()),
    "SETITEM": lambda machine, _: machine._fill(dict, machine._last(2)),
    "SETITEMS": lambda machine, _: machine._fill(dict, machine._since_mark()),
    "ADDITEMS": lambda machine, _: machine._fill(set, machine._since_mark()),
    "GET": Machine._get,
    "BINGET": Machine._get,
    "LONG_BINGET": Machine._get,
    "PUT": Machine._put,
    "BINPUT": Machine._put,
    "LONG_BINPUT": Machine._put,
    "MEMOIZE": Machine._memoize,
    "GLOBAL": lambda machine, name: machine._global(_dotted(name)),
    "STACK_GLOBAL": Machine._stack_global,
    "REDUCE": Machine._reduce,
    "NEWOBJ": Machine._reduce,
    "NEWOBJ_EX": Machine._newobj_ex,
    "OBJ": Machine._obj,
    "INST": Machine._inst,
    "BUILD": Machine._build,
    "BINPERSID": Machine._persistent_id,
}
