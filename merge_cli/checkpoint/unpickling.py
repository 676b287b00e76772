"""Interpreter for the pickles that torch writes, which runs none of their code.

A pickle is a program. The few instructions that torch writes for state dicts are carried out here on plain data: the
only things that it may name are those in ``NAMED``, and what they make is a description of where a tensor's bytes lie.
Nothing is imported, called or allocated that the pickle chooses, and every number in it is checked before use.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from typing import Any

from merge_cli.checkpoint.rebuilding import NAMED, DamagedPickleError, Named, Storage, itemsize_of

# A tensor takes some 35; an instruction of one byte can make an object of a hundred.
_MOST_INSTRUCTIONS = 3_000_000


class ForeignNameError(Exception):
    """The pickle names something that no state dict needs."""


def unpickle(raw: bytes, storages: Mapping[str, tuple[int, int]]) -> Any:
    """Return what a pickle describes, made of plain data and :class:`~merge_cli.checkpoint.rebuilding.PickledTensor`.

    Args:
        raw: The pickle.
        storages: Key of each storage -> where it starts in the file and how many bytes it has.

    Raises:
        ForeignNameError: If it names anything but what tensors are made of; the message is that name.
        DamagedPickleError: If its instructions make no sense, or a tensor does not lie inside its storage.
    """
    machine = _Machine(storages)
    try:
        for number, (instruction, argument, _) in enumerate(pickletools.genops(raw)):
            if number >= _MOST_INSTRUCTIONS:
                raise DamagedPickleError(f"it has more than {_MOST_INSTRUCTIONS} instructions")
            carry_out = _INSTRUCTIONS.get(instruction.name)
            if carry_out is None:
                raise DamagedPickleError(f"it has the instruction {instruction.name}, which torch does not write")
            carry_out(machine, argument)
    # A bad escape in a text is a warning of Python, and an error where warnings are.
    except (ValueError, TypeError, LookupError, DeprecationWarning) as error:
        raise DamagedPickleError(f"its pickle is damaged ({type(error).__name__}: {str(error)[:100]})") from error
    if len(machine.stack) != 1 or machine.below:
        raise DamagedPickleError("its pickle is damaged: it makes not one thing")
    return machine.stack[0]


class _Machine:
    """The stack and the memory of a pickle that is carried out; a mark begins a stack above the others."""

    def __init__(self, storages: Mapping[str, tuple[int, int]]) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memory: dict[int, Any] = {}
        self._known: dict[str, Storage] = {}
        self._storages = storages

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self, count: int) -> list[Any]:
        """Take the values on top, the lowest first."""
        if len(self.stack) < count:
            raise IndexError("too few values")
        values = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return values

    def mark(self) -> None:
        """Begin a run of values."""
        self.below.append(self.stack)
        self.stack = []

    def pop_run(self) -> list[Any]:
        """Take the values of the last run."""
        values, self.stack = self.stack, self.below.pop()
        return values

    def put(self, at: int) -> None:
        self.memory[at] = self.stack[-1]

    def get(self, at: int) -> None:
        self.push(self.memory[at])

    def extend(self, values: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise TypeError("no list to append to")
        self.stack[-1].extend(values)

    def update(self, values: list[Any]) -> None:
        keys = values[::2]
        if type(self.stack[-1]) is not dict or len(values) % 2 or not all(map(_is_key, keys)):
            raise TypeError("no mapping of names or numbers")
        self.stack[-1].update(zip(keys, values[1::2], strict=True))

    def name(self, module_and_name: str) -> None:
        found = NAMED.get(module_and_name)
        if found is None:
            raise ForeignNameError(module_and_name.replace(" ", "."))
        self.push(found)

    def call(self) -> None:
        named, arguments = self.pop(2)
        if not isinstance(named, Named) or named.make is None or type(arguments) is not tuple:
            raise TypeError("no function and its arguments")
        self.push(named.make(*arguments))

    def describe(self) -> None:
        """Drop what is set on an object: torch keeps versions of modules there."""
        self.pop(1)
        if type(self.stack[-1]) is not dict:
            raise TypeError("no mapping to describe")

    def storage(self) -> None:
        """Find the storage that a persistent id names: ('storage', kind, key, device, number of elements)."""
        [[what, kind, key, device, numel]] = self.pop(1)
        if what != "storage" or not isinstance(kind, Named) or not kind.dtype or type(device) is not str:
            raise TypeError("no storage")
        if type(key) is not str or type(numel) is not int:
            raise TypeError("the key or the size of a storage")
        if key not in self._storages:
            raise DamagedPickleError(f"its tensors use a storage {key[:100]!r} that it does not hold")
        start, nbytes = self._storages[key]
        found = Storage(kind.dtype, start, nbytes)
        if numel * itemsize_of(kind.dtype) != nbytes or self._known.setdefault(key, found) != found:
            raise DamagedPickleError("its tensors do not lie where its directory says")
        self.push(found)


def _is_key(value: Any) -> bool:
    """Tell whether it is a name or a number as states have them; others may hash alike, or take forever to."""
    return type(value) is str or (type(value) is int and 0 <= value < 2**32)


def _check_version(machine: _Machine, version: int) -> None:
    if version != 2:
        raise ValueError(f"version {version}, torch writes 2")


_Instruction = Callable[[_Machine, Any], None]
_INSTRUCTIONS: dict[str, _Instruction] = {
    "PROTO": _check_version,
    "STOP": lambda machine, _: None,
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"), _Machine.push),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "MARK": lambda machine, _: machine.mark(),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_run())),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.pop(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.pop(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.pop(3))),
    "APPEND": lambda machine, _: machine.extend(machine.pop(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.pop_run()),
    "SETITEM": lambda machine, _: machine.update(machine.pop(2)),
    "SETITEMS": lambda machine, _: machine.update(machine.pop_run()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.get),
    "GLOBAL": _Machine.name,
    "REDUCE": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.describe(),
    "BINPERSID": lambda machine, _: machine.storage(),
}
