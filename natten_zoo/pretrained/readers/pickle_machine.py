"""A pickle reader that can build plain containers and call nothing.

A pickle is a program for a stack machine; two of its instructions import a name and two call it.
`Machine` runs such a program without importing: a name is looked up in a table that its user
gives, and a name that is not there stands for itself, as a `Global` that builds a `Foreign`. Both
are inert, and so is what a known function refuses to build: whoever needs it gets the reason.
The instructions are decoded by the standard library's disassembler (`pickletools.genops`), which
checks every length before it reads.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

from .budget import Budget
from .errors import CheckpointError
from .inert import PAIR, Foreign, Global, PickleError, RefusedError, cost, hashable

# A checkpoint's pickle names its tensors and holds none: 1,000 tensors take about 0.2 MB.
MAX_BYTES = 16 << 20
# Instructions: so many for any file, and one more for so many bytes of it. A tensor takes about 40
# and a hundred bytes at least.
FREE_STEPS = 1 << 20
BYTES_PER_STEP = 16
# About what Python takes for one value, and for a container with its table.
VALUE, CONTAINER = 32, 64
# Integers that any random state needs have fewer bits; larger ones are only slow to print.
MAX_BITS = 4096


class Machine:
    """Runs one pickle.

    Args:
        known: Functions by `module.name`; they get the pickle's arguments and must check them.
        persistent: Turns a persistent id (torch's reference to a storage) into an object.
        path: The file that the pickle is in, for messages.
        nbytes: Its size, which bounds what the pickle may build. Default: the pickle's own.
        largest: Bytes that the pickle may have.

    Attributes:
        foreign: The names that the pickle called and that built nothing.
    """

    def __init__(
        self,
        known: Mapping[str, Callable[..., Any]],
        persistent: Callable[[Any], Any],
        path: str | PathLike[str] = "pickle",
        nbytes: int | None = None,
        largest: int = MAX_BYTES,
    ) -> None:
        self._known = known
        self._persistent = persistent
        self._path, self._nbytes, self._largest = path, nbytes, largest
        self._budget = Budget(path, 0)
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self.foreign: set[str] = set()

    def run(self, program: bytes) -> Any:
        """Return the object that the pickle describes.

        Raises:
            PickleError: If it is damaged or uses an instruction that is not offered here.
            CheckpointError: If it builds more than the file's size allows.
        """
        if len(program) > self._largest:
            raise PickleError(f"its pickle takes {len(program)} bytes, more than {self._largest}")
        nbytes = len(program) if self._nbytes is None else self._nbytes
        self._budget = Budget(self._path, nbytes, what="pickled objects")
        try:
            return self._run(program, FREE_STEPS + nbytes // BYTES_PER_STEP)
        except (PickleError, CheckpointError):
            raise
        except (ValueError, TypeError, LookupError, OverflowError) as error:
            raise PickleError(f"its pickle is damaged ({error})") from error

    def _run(self, program: bytes, limit: int) -> Any:
        spend = self._budget.spend
        with warnings.catch_warnings():
            # The disassembler decodes odd escapes of text strings with a warning.
            warnings.simplefilter("ignore", DeprecationWarning)
            for step, (opcode, argument, _) in enumerate(pickletools.genops(program)):
                if step == limit:
                    raise PickleError(f"its pickle takes more than {limit} instructions")
                name = opcode.name
                spend(_COSTS.get(name, VALUE))
                if name in _LITERALS:
                    self._stack.append(argument)
                elif name == "STOP":
                    return self._stack.pop()
                elif name in _ACTIONS:
                    _ACTIONS[name](self, argument)
                else:
                    raise PickleError(f"its pickle uses {name}, which no checkpoint needs")
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
            target.update(self._keys(items))
        elif isinstance(target, dict):
            target.update(self._pairs(items))

    def _pairs(self, items: list[Any]) -> dict[Any, Any]:
        if len(items) % 2:
            raise ValueError("a key without a value")
        return dict(zip(self._keys(items[::2]), items[1::2], strict=True))

    def _keys(self, items: list[Any]) -> list[Any]:
        self._budget.spend(PAIR * len(items))
        return list(map(hashable, items))

    def _last(self, count: int) -> list[Any]:
        return [self._stack.pop() for _ in range(count)][::-1]

    # The memo.

    def _get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def _put(self, index: int) -> None:
        if index >> 32:
            raise IndexError(f"a memo of more than {1 << 32} entries")
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
        reason = ""
        if isinstance(function, Global) and function.build is not None and not keywords:
            self._budget.spend(sum(map(cost, arguments)))
            try:
                return function.build(*arguments)
            except RefusedError as error:
                reason = str(error)
            except TypeError:
                reason = f"{function.name} of the wrong arguments"
        self.foreign.add(function.name)
        return Foreign(function.name, reason)

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
            try:
                target.restore(state)
            except RefusedError as error:
                target.reason = str(error)

    def _persistent_id(self, _: None) -> None:
        reference = self._stack.pop()
        try:
            self._stack.append(self._persistent(reference))
        except RefusedError as error:
            self._stack.append(Foreign("a storage", str(error)))

    def _integer(self, value: int) -> None:
        self._stack.append(value if value.bit_length() < MAX_BITS else Foreign("builtins.int"))


def _dotted(name: str) -> str:
    """`module name`, as the disassembler gives it, to `module.name`."""
    module, _, attribute = name.rpartition(" ")
    return f"{module}.{attribute}"


_COSTS = {
    **dict.fromkeys(("EMPTY_LIST", "LIST", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"), CONTAINER),
    **dict.fromkeys(("EMPTY_DICT", "DICT", "EMPTY_SET", "FROZENSET"), 4 * CONTAINER),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), PAIR),
}

_LITERALS = frozenset(
    {"BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT"}
    | {"STRING", "BINSTRING", "SHORT_BINSTRING"}
    | {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
    | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
)

_ACTIONS: dict[str, Callable[[Machine, Any], Any]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "NONE": lambda machine, _: machine._stack.append(None),
    "INT": Machine._integer,
    "LONG": Machine._integer,
    "LONG1": Machine._integer,
    "LONG4": Machine._integer,
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
    "DICT": lambda machine, _: machine._push_from_mark(machine._pairs),
    "FROZENSET": lambda machine, _: machine._push_from_mark(
        lambda items: frozenset(machine._keys(items))
    ),
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
