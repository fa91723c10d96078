"""A pickle machine that runs nothing: it builds plain data, and for everything else a `Bag` that remembers what it was given.

A pickle is a program for a stack machine (PEP 307, 574, 3154); the harm is in the names it imports and calls. Here a name is only a `Name`,
a call only a look into the table of the few functions we wrote for it, and no Python object of the file's choosing is ever called or
changed. Each instruction takes at least a byte and does little, so time and memory are bounded by the file's length and the limits below.
"""
from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from mmap import mmap
from typing import Any, NoReturn

LONGEST_INT = 1024  # bytes
LONGEST_LINE = 2**16
MOST_KEPT = 2**24  # the highest place of the memo


class Refused(ValueError):
    """The file does not keep its format, or goes over a limit."""


@dataclass(frozen=True, slots=True)
class Name:
    """Something the file wants to import, as `module.name`."""

    text: str


@dataclass(slots=True, eq=False)
class Bag:
    """What stands for a foreign object: its class or function, what it was called with, and all that was put into it."""

    name: str = ""
    args: Any = ()
    items: dict[Any, Any] = field(default_factory=dict)
    elements: list[Any] = field(default_factory=list)
    state: Any = None


Call = Callable[[tuple[Any, ...]], Any]


class Machine:
    """Reads pickles from the bytes `at` to `end` of a buffer, one after another.

    `calls` are the functions by name that may run, all of them ours; `persistent` answers persistent ids. `foreign` collects the names
    that were called and are in no table. Everything wrong with a pickle raises Refused, with the byte where.
    """

    def __init__(self, data: bytes | mmap, calls: Mapping[str, Call], persistent: Call, *, at: int, end: int) -> None:
        self.data, self.at, self.end, self.calls, self.persistent = data, at, end, calls, persistent
        self.foreign: dict[str, int] = {}

    def load(self) -> Any:
        """The next pickle's object; `at` is then the byte behind it."""
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        while True:
            code = self._take(1)
            if code == b".":
                return self._pop()
            step = STEPS.get(code)
            if step is None:
                self.refuse(f"the instruction {code!r} is not one that weights need")
            step(self)

    def refuse(self, why: str) -> NoReturn:
        """Raise, with where."""
        raise Refused(f"{why} (pickle, byte {self.at})")

    # What instructions are made of.

    def _take(self, count: int) -> bytes:
        if self.at + count > self.end:
            self.refuse(f"{count} bytes are announced and {self.end - self.at} are left; the file is cut off or lies")
        self.at += count
        return self.data[self.at - count : self.at]

    def _number(self, count: int) -> int:
        return int.from_bytes(self._take(count), "little")

    def _line(self, encoding: str = "utf-8") -> str:
        stop = self.data.find(b"\n", self.at, min(self.end, self.at + LONGEST_LINE))
        if stop < 0:
            self.refuse("a line without an end")
        line = self._take(stop + 1 - self.at)[:-1]
        return line.decode(encoding, "backslashreplace").rstrip("\r")

    def _push(self, thing: Any) -> None:
        self.stack.append(thing)

    def _pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            self.refuse("the stack is empty")
        return self.stack.pop()

    def _top(self) -> Any:
        thing = self._pop()
        self._push(thing)
        return thing

    def _since_mark(self) -> list[Any]:
        if not self.marks:
            self.refuse("there is no mark")
        start = self.marks.pop()
        found = self.stack[start:]
        del self.stack[start:]
        return found

    def _call(self, function: Any, args: Any) -> None:
        name = function.text if isinstance(function, Name) else ""
        known = self.calls.get(name)
        if known is not None and isinstance(args, tuple):
            self._push(known(args))
            return
        shown = name or type(function).__name__
        self.foreign[shown] = self.foreign.get(shown, 0) + 1
        self._push(Bag(shown, args))

    def _set(self, target: Any, pairs: list[Any]) -> None:
        items = target.items if isinstance(target, Bag) else target
        if not isinstance(items, dict) or len(pairs) % 2:
            self.refuse(f"entries are put into {type(target).__name__}; expected a table")
        items.update((_key(k), v) for k, v in zip(pairs[::2], pairs[1::2], strict=True))

    def _extend(self, target: Any, things: list[Any]) -> None:
        elements = target.elements if isinstance(target, Bag) else target
        if not isinstance(elements, list):
            self.refuse(f"elements are put into {type(target).__name__}; expected a list")
        elements.extend(things)

    # Instructions that are more than a line.

    def _proto(self) -> None:
        if (version := self._number(1)) > 5:
            self.refuse(f"pickle protocol {version}; the newest known is 5")

    def _integer(self) -> None:
        line = self._line()
        self._push({"00": False, "01": True}[line] if line in ("00", "01") else self._decimal(line.rstrip("L")))

    def _decimal(self, line: str) -> int:
        try:
            return int(line)
        except ValueError:
            self.refuse(f"{line[:40]!a} is no number")

    def _float(self) -> None:
        line = self._line()
        try:
            self._push(float(line))
        except ValueError:
            self.refuse(f"{line[:40]!a} is no number")

    def _long(self, size: int) -> None:
        if (count := self._number(size)) > LONGEST_INT:
            self.refuse(f"a number of {count} bytes; at most {LONGEST_INT} are read")
        self._push(int.from_bytes(self._take(count), "little", signed=True))

    def _text(self, size: int) -> None:
        self._push(self._take(self._number(size)).decode("utf-8", "surrogatepass"))

    def _old_text(self, raw: bytes) -> None:
        """Text of Python 2: bytes of no stated encoding."""
        try:
            self._push(raw.decode())
        except UnicodeDecodeError:
            self._push(raw.decode("latin-1"))

    def _tuple(self, count: int) -> None:
        self._push(tuple([self._pop() for _ in range(count)][::-1]))

    def _put(self, place: int) -> None:
        if not 0 <= place < MOST_KEPT:
            self.refuse(f"place {place} of the memo; there are {MOST_KEPT}")
        self.memo[place] = self._top()

    def _get(self, place: int) -> None:
        if place not in self.memo:
            self.refuse(f"nothing was kept at place {place}")
        self._push(self.memo[place])

    def _stack_name(self) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            self.refuse("a name that is no text")
        self._push(_name(module, name))

    def _reduce(self, keywords: bool = False) -> None:
        if keywords:
            self._pop()
        args = self._pop()
        self._call(self._pop(), args)

    def _build(self) -> None:
        state, target = self._pop(), self._top()
        if isinstance(target, Bag):
            target.state = state

    def _obj(self) -> None:
        found = self._since_mark()
        if not found:
            self.refuse("a call of nothing")
        self._call(found[0], tuple(found[1:]))

    def _pop_any(self) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self._pop()

    def _pairs(self, count: int) -> None:
        pairs = self._since_mark() if count < 0 else [self._pop() for _ in range(count)][::-1]
        self._set(self._top(), pairs)

    def _append(self, count: int) -> None:
        things = self._since_mark() if count < 0 else [self._pop()]
        self._extend(self._top(), things)


def _name(module: str, name: str) -> Name:
    return Name(f"{module[:200]}.{name[:200]}".replace("__builtin__.", "builtins.", 1))


def _key(thing: Any) -> Any:
    """A key that hashes fast and without depth: plain data as it is, anything else by identity."""
    if thing is None or isinstance(thing, str | int | float | bytes | Name | Bag):
        return thing
    if isinstance(thing, tuple) and all(isinstance(part, str | int | float | bytes) for part in thing):
        return thing
    return Bag("key", thing)


def _unpack(form: str, count: int) -> Callable[[Machine], None]:
    return lambda m: m._push(struct.unpack(form, m._take(count))[0])


def _dict(pairs: list[Any], m: Machine) -> None:
    made: dict[Any, Any] = {}
    m._set(made, pairs)
    m._push(made)


STEPS: dict[bytes, Callable[[Machine], object]] = {
    b"\x80": Machine._proto, b"\x95": lambda m: m._take(8) and None,  # a frame is only advice about reading ahead
    b"(": lambda m: m.marks.append(len(m.stack)), b"0": Machine._pop_any, b"1": lambda m: m._since_mark().clear(),
    b"2": lambda m: m._push(m._top()),
    b"N": lambda m: m._push(None), b"\x88": lambda m: m._push(True), b"\x89": lambda m: m._push(False),
    b"I": Machine._integer, b"L": Machine._integer, b"F": Machine._float, b"G": _unpack(">d", 8),
    b"J": _unpack("<i", 4), b"K": lambda m: m._push(m._number(1)), b"M": lambda m: m._push(m._number(2)),
    b"\x8a": lambda m: m._long(1), b"\x8b": lambda m: m._long(4),
    b"S": lambda m: m._push(m._line().strip("'\"")), b"T": lambda m: m._old_text(m._take(m._number(4))),
    b"U": lambda m: m._old_text(m._take(m._number(1))), b"V": lambda m: m._push(m._line("raw_unicode_escape")),
    b"X": lambda m: m._text(4), b"\x8c": lambda m: m._text(1), b"\x8d": lambda m: m._text(8),
    b"B": lambda m: m._push(m._take(m._number(4))), b"C": lambda m: m._push(m._take(m._number(1))),
    b"\x8e": lambda m: m._push(m._take(m._number(8))), b"\x96": lambda m: m._push(m._take(m._number(8))),
    b")": lambda m: m._push(()), b"t": lambda m: m._push(tuple(m._since_mark())),
    b"\x85": lambda m: m._tuple(1), b"\x86": lambda m: m._tuple(2), b"\x87": lambda m: m._tuple(3),
    b"]": lambda m: m._push([]), b"l": lambda m: m._push(m._since_mark()), b"a": lambda m: m._append(1), b"e": lambda m: m._append(-1),
    b"}": lambda m: m._push({}), b"d": lambda m: _dict(m._since_mark(), m), b"s": lambda m: m._pairs(2), b"u": lambda m: m._pairs(-1),
    b"\x8f": lambda m: m._push(Bag("builtins.set")), b"\x90": lambda m: m._append(-1),
    b"\x91": lambda m: m._push(Bag("builtins.frozenset", elements=m._since_mark())),
    b"p": lambda m: m._put(m._decimal(m._line())), b"q": lambda m: m._put(m._number(1)), b"r": lambda m: m._put(m._number(4)),
    b"\x94": lambda m: m._put(len(m.memo)),
    b"g": lambda m: m._get(m._decimal(m._line())), b"h": lambda m: m._get(m._number(1)), b"j": lambda m: m._get(m._number(4)),
    b"c": lambda m: m._push(_name(m._line(), m._line())), b"\x93": Machine._stack_name,
    b"i": lambda m: m._call(_name(m._line(), m._line()), tuple(m._since_mark())), b"o": Machine._obj,
    b"R": Machine._reduce, b"\x81": Machine._reduce, b"\x92": lambda m: m._reduce(keywords=True), b"b": Machine._build,
    b"Q": lambda m: m._push(m.persistent((m._pop(),))),
}
"""Instructions by their byte. Left out: extension codes, persistent ids as text, buffers from outside."""
