"""Reads pickles as data: an interpreter of the opcodes that calls nothing.

Python's own unpickler imports and calls what the file names. This one keeps a
stack of plain values, looks every global up in a closed table, and refuses any
other by name.
"""

import pickletools
from collections.abc import Callable, Mapping
from typing import IO, Any

from keras_lightnets._errors import WeightsError

Global = tuple[str, str]
Calls = Mapping[Global, Callable[..., Any] | None]

_MARK = object()

_LITERALS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING "
    "SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8".split()
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_GETS = frozenset(("GET", "BINGET", "LONG_BINGET"))
_PUTS = frozenset(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"))
_IGNORED = frozenset(("PROTO", "FRAME"))


class Symbol:
    """A global that the file names and the table allows; calls nothing itself.

    Attributes:
        path: (module, name).
    """

    def __init__(self, path: Global) -> None:
        self.path = path


def load(
    stream: IO[bytes], calls: Calls, persistent: Callable[[Any], Any] | None = None
) -> Any:
    """Read one pickle from a stream without executing it.

    Args:
        stream: Binary file, positioned at the pickle; left behind its end.
        calls: Allowed globals; the function that stands in for calling each, or
            None where it may only be named.
        persistent: Turns a persistent id into a value.

    Returns:
        The value, made of dicts, lists, tuples, numbers, strings and what
        `calls` and `persistent` return.

    Raises:
        WeightsError: If the pickle is damaged, or names another global.
    """
    machine = _Machine(calls, persistent)
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.step(opcode.name, argument)
    except WeightsError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise WeightsError(f"The pickle is damaged: {error!r}") from error
    except (ValueError, RecursionError, MemoryError, EOFError) as error:
        raise WeightsError(f"The pickle is damaged or cut off: {error}") from error
    raise WeightsError("The pickle is cut off: it has no end")


class _Machine:
    """The stack and memo of one pickle."""

    def __init__(
        self, calls: Calls, persistent: Callable[[Any], Any] | None = None
    ) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.calls = calls
        self.persistent = persistent

    def step(self, name: str, argument: Any) -> None:
        """Run one opcode."""
        stack = self.stack
        if name in _LITERALS:
            stack.append(argument)
        elif name in _GETS:
            stack.append(self.memo[int(argument)])
        elif name in _PUTS:
            key = len(self.memo) if name == "MEMOIZE" else int(argument)
            self.memo[key] = stack[-1]
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            count = _TUPLES[name]
            stack[-count:] = [tuple(stack[-count:])]
        elif name not in _IGNORED:
            handler = _HANDLERS.get(name)
            if handler is None:
                raise WeightsError(f"The pickle uses {name}, which is not allowed")
            handler(self, argument)

    def until_mark(self) -> list[Any]:
        """Pop everything above the last mark, and the mark."""
        index = len(self.stack) - 1
        while self.stack[index] is not _MARK:
            index -= 1
            if index < 0:
                raise ValueError("no mark on the stack")
        items = self.stack[index + 1 :]
        del self.stack[index:]
        return items

    def symbol(self, path: Global) -> None:
        """Push an allowed global; refuse any other by name."""
        if path not in self.calls:
            raise WeightsError(
                f"The pickle asks for {'.'.join(path)}, which a file of weights does "
                "not need; nothing of it was executed. Save the tensors alone: "
                "torch.save(model.state_dict(), path)."
            )
        self.stack.append(Symbol(path))

    def call(self) -> None:
        """Replace (symbol, arguments) by the value of the symbol's stand-in."""
        arguments = self.stack.pop()
        symbol = self.stack.pop()
        stand_in = self.calls[symbol.path]
        if stand_in is None:
            raise WeightsError(
                f"The pickle calls {'.'.join(symbol.path)}, which may only be named"
            )
        self.stack.append(stand_in(*arguments))


def _mark(machine: _Machine, _: Any) -> None:
    machine.stack.append(_MARK)


def _pop(machine: _Machine, _: Any) -> None:
    machine.stack.pop()


def _pop_mark(machine: _Machine, _: Any) -> None:
    machine.until_mark()


def _dup(machine: _Machine, _: Any) -> None:
    machine.stack.append(machine.stack[-1])


def _tuple(machine: _Machine, _: Any) -> None:
    machine.stack.append(tuple(machine.until_mark()))


def _list(machine: _Machine, _: Any) -> None:
    machine.stack.append(machine.until_mark())


def _append(machine: _Machine, _: Any) -> None:
    value = machine.stack.pop()
    machine.stack[-1].append(value)


def _appends(machine: _Machine, _: Any) -> None:
    values = machine.until_mark()
    machine.stack[-1].extend(values)


def _pairs(values: list[Any]) -> dict[Any, Any]:
    return dict(zip(values[::2], values[1::2], strict=True))


def _dict(machine: _Machine, _: Any) -> None:
    machine.stack.append(_pairs(machine.until_mark()))


def _setitem(machine: _Machine, _: Any) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    machine.stack[-1].update({key: value})


def _setitems(machine: _Machine, _: Any) -> None:
    values = machine.until_mark()
    machine.stack[-1].update(_pairs(values))


def _empty_set(machine: _Machine, _: Any) -> None:
    machine.stack.append([])


def _global(machine: _Machine, argument: Any) -> None:
    module, _, name = str(argument).partition(" ")
    machine.symbol((module, name))


def _stack_global(machine: _Machine, _: Any) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    machine.symbol((str(module), str(name)))


def _reduce(machine: _Machine, _: Any) -> None:
    machine.call()


def _build(machine: _Machine, _: Any) -> None:
    # State of an object, such as the version notes of a state dict: not needed.
    machine.stack.pop()


def _binpersid(machine: _Machine, _: Any) -> None:
    if machine.persistent is None:
        raise WeightsError("The pickle refers to storages where none may stand")
    machine.stack.append(machine.persistent(machine.stack.pop()))


_HANDLERS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _mark,
    "POP": _pop,
    "POP_MARK": _pop_mark,
    "DUP": _dup,
    "TUPLE": _tuple,
    "LIST": _list,
    "APPEND": _append,
    "APPENDS": _appends,
    "DICT": _dict,
    "SETITEM": _setitem,
    "SETITEMS": _setitems,
    "EMPTY_SET": _empty_set,
    "ADDITEMS": _appends,
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "NEWOBJ": _reduce,
    "BUILD": _build,
    "BINPERSID": _binpersid,
}
