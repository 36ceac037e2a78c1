"""A part of a training step, captured once and done again by two calls: no autograd and no Python between its functions.

As CUDA graphs do it on a GPU. While a part is captured, each function in C is noted as it is called, and PyTorch's own are
looked at (`TorchDispatchMode`): those that move no numbers are passed over, some have a function in C that does the same, and
with any other the capture is void. What was noted is then done again, with other inputs and weights, in memory that is planned
once by when each number is first and last wanted.
"""

import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dovetail.edges import machine
from dovetail.engines.fused import kernels

WHOLE, PARTS = 20, 2  # whole numbers and addresses, float ones, that a call has room for: as in graphs.c
WORDS = 1 + WHOLE + PARTS
LINE = 64  # bytes between which numbers begin
TOGETHER = 1 << 24  # bytes of results that lie together: what the C library keeps when it is freed
aten = torch.ops.aten


class VoidError(Exception):
    """That this cannot be captured."""


@dataclass(eq=False, slots=True)
class _Numbers:
    """What lies together in memory: of the capture's own, or given from without."""

    size: int  # bytes
    calls: list[int] = field(default_factory=list)  # that read or write it
    place: int = -1  # in the room of all, once it is planned


class _Place(int):
    """An address, and the memory that it is in."""

    base: int


class _Where(NamedTuple):
    numbers: _Numbers
    offset: int  # bytes


class Capture(TorchDispatchMode):
    """Notes what is done within; `given` are tensors from without, by which the calls may ask for numbers."""

    def __init__(self, given: Sequence[Tensor]) -> None:
        super().__init__()
        self.given = {x.data_ptr(): _Numbers(x.nbytes) for x in given}
        self.own: dict[int, _Numbers] = {}  # by where each begins now: freed memory is another's later
        self.calls: list[tuple[str, list[Any], list[float]]] = []
        self.fault = ""

    @contextmanager
    def listening(self) -> Iterator[None]:
        """What is called within, in this thread, is noted."""
        kernels.listening.ear = self
        try:
            with self:
                yield
        finally:
            kernels.listening.ear = None
        if self.fault:
            raise VoidError(self.fault)

    def place(self, x: Tensor) -> _Place:
        """The address of a tensor."""
        found = _Place(x.data_ptr())
        found.base = x.untyped_storage().data_ptr()
        return found

    def where(self, x: Tensor) -> _Where:
        """Whose numbers a tensor's are."""
        return self._where(self.place(x))

    def _where(self, place: _Place) -> _Where:
        if place in self.given:
            return _Where(self.given[place], 0)
        if place.base not in self.own:
            raise VoidError("numbers from without")
        return _Where(self.own[place.base], place - place.base)

    def __getattr__(self, name: str) -> Callable[..., None]:
        """A function in C that is noted and then called."""
        if name not in kernels.TOLD and name not in kernels.TILES:
            raise AttributeError(name)
        function = getattr(kernels.library(), name)

        def called(*told: Any) -> None:
            self._note(name, told)
            function(*told)

        return called

    def _note(self, name: str, told: Sequence[Any]) -> None:
        kinds = kernels.TOLD.get(name) or kernels.TILES[name]
        whole: list[Any] = []
        for kind, one in zip(kinds, told, strict=True):
            if kind is kernels.POINTER and one is not None:
                try:
                    whole.append(found := self._where(one))
                except VoidError as error:
                    self._void(f"{name}: {error}")
                    return
                found.numbers.calls.append(len(self.calls))
            elif kind is not kernels.FLOAT:
                whole.append(int(one or 0))
        parts = [float(one) for kind, one in zip(kinds, told, strict=True) if kind is kernels.FLOAT]
        self.calls.append((name, whole, parts))

    def _void(self, why: str) -> None:
        self.fault = self.fault or why

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One of PyTorch's own functions."""
        found = func(*args, **(kwargs or {}))
        before = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        tensors = [x for x in tree_leaves(found) if isinstance(x, Tensor)]
        fresh = [x for x in tensors if x.untyped_storage().data_ptr() not in before]
        for x in fresh:
            self.own[x.untyped_storage().data_ptr()] = _Numbers(x.untyped_storage().nbytes())
        if func in ALIKE:
            if not ALIKE[func](self, found, *args, **(kwargs or {})):
                self._void(f"{func} of other layouts")
        elif func not in EMPTY and (fresh or not tensors or func._schema.is_mutable):  # without any, a number was asked for
            self._void(str(func))
        return found


EMPTY = {
    aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default, aten.empty_strided.default,
    aten.new_empty_strided.default,
}  # fmt: skip


def _rows(x: Tensor) -> tuple[int, int, int] | None:
    """Rows, numbers of each, and from one to the next, of bf16 tokens (.., width), or pictures (b, c, h, w) channels last."""
    if x.dtype != torch.bfloat16:
        return None
    x = x.permute(0, 2, 3, 1) if x.ndim == 4 else x
    step, rows = 0, 1
    for size, stride in reversed(list(zip(x.shape[:-1], x.stride()[:-1], strict=True))):
        step = step or (stride if size > 1 else 0)
        if size > 1 and stride != step * rows:
            return None
        rows *= size
    return (rows, x.shape[-1], step or x.shape[-1]) if x.stride(-1) == 1 else None


def _added(capture: Capture, found: Tensor, one: Tensor, other: Any, alpha: float = 1) -> bool:
    rows = [_rows(x) if isinstance(x, Tensor) else None for x in (one, other, found)]
    if alpha != 1 or any(r is None or r[:2] != rows[0][:2] for r in rows if rows[0]) or rows[2][2] != rows[2][1]:  # type: ignore[index]
        return False
    capture._note("add_rows", (*map(capture.place, (one, other, found)), *rows[0][:2], rows[0][2], rows[1][2]))  # type: ignore[index]
    return True


def _copied(capture: Capture, found: Tensor, x: Tensor, memory_format: Any = None) -> bool:
    here, there = _rows(x), _rows(found)
    if x.is_contiguous() and found.is_contiguous() and x.dtype == found.dtype == torch.float32:
        here = there = 1, 2 * x.numel(), 0  # as twice as many bf16 ones
    if here is None or there is None:
        return False
    capture._note("copy_rows", (capture.place(x), capture.place(found), *here[:2], here[2], there[2]))
    return True


def _joined(capture: Capture, found: Tensor, parts: Sequence[Tensor], dim: int = 0) -> bool:
    if dim != 1 or _rows(found) is None:
        return False
    into = found.split([x.shape[1] for x in parts], 1)
    return all(_copied(capture, to, x) for to, x in zip(into, parts, strict=True))


ALIKE: dict[Any, Callable[..., bool]] = {  # PyTorch's functions that one in C does as well
    aten.add.Tensor: _added, aten.add_.Tensor: _added, aten.clone.default: _copied, aten.cat.default: _joined,
}  # fmt: skip


class Results:
    """Tensors that a part gives, in memory that is theirs each time, many of them together."""

    def __init__(self, capture: Capture, tensors: Sequence[Tensor]) -> None:
        where = [capture.where(x) for x in tensors]
        self.numbers = list(dict.fromkeys(w.numbers for w in where))
        self.sizes: list[int] = []
        places: dict[_Numbers, tuple[int, int]] = {}
        for numbers in self.numbers:
            size = -(-numbers.size // LINE) * LINE
            if not self.sizes or self.sizes[-1] + size > TOGETHER:
                self.sizes.append(0)
            places[numbers] = len(self.sizes) - 1, self.sizes[-1]
            self.sizes[-1] += size
        self.places = list(places.values())
        self.views = [
            (x.dtype, places[w.numbers][0], x.shape, x.stride(), (places[w.numbers][1] + w.offset) // x.itemsize)
            for x, w in zip(tensors, where, strict=True)
        ]

    def make(self) -> tuple[list[Tensor], list[int]]:
        """Tensors that are nowhere else, nothing in them yet; and where their numbers begin."""
        memory = [torch.empty(size, dtype=torch.uint8) for size in self.sizes]
        typed = {dtype: [x.view(dtype) for x in memory] for dtype in {dtype for dtype, *_ in self.views}}
        tensors = [typed[dtype][group].as_strided(size, step, at) for dtype, group, size, step, at in self.views]
        return tensors, [memory[group].data_ptr() + offset for group, offset in self.places]


class Calls:
    """Calls that can be made again. `slots` are whose addresses are others each time; the rest lies in the room of all."""

    def __init__(self, calls: Sequence[tuple[str, list[Any], list[float]]], slots: Sequence[_Numbers]) -> None:
        words = np.zeros((len(calls), WORDS), np.int64)
        numbers = {slot: n for n, slot in enumerate(slots)}
        changing: list[tuple[int, int, int]] = []
        for row, (name, whole, parts) in enumerate(calls):
            words[row, 0] = kernels.address(name)
            for column, one in enumerate(whole, 1):
                if isinstance(one, _Where):
                    slot, more = (numbers[one.numbers], 0) if one.numbers in numbers else (len(slots), one.numbers.place)
                    changing.append((row * WORDS + column, slot, one.offset + more))
                else:
                    words[row, column] = one
            words[row, 1 + WHOLE : 1 + WHOLE + len(parts)] = np.array(parts, np.float32).view(np.uint32)
        self.words = words.reshape(-1)
        self.at, self.slot, self.offset = np.array(changing, np.int64).T

    def make(self, bases: Sequence[int], room: int) -> None:
        """With the slots at these addresses."""
        self.words[self.at] = np.array([*bases, room], np.int64)[self.slot] + self.offset
        kernels.library().run(self.words.ctypes.data, len(self.words) // WORDS)


def planned(all_numbers: Sequence[_Numbers]) -> int:
    """Give each its place, none of two that are wanted at the same time the same; returns the bytes that all take."""
    there: list[tuple[int, int, int]] = []  # where those that are wanted now begin and end, and their last call
    most = 0
    for numbers in sorted(all_numbers, key=lambda n: n.calls[0]):
        there = [one for one in there if one[2] >= numbers.calls[0]]
        size, place = -(-numbers.size // LINE) * LINE, 0
        for begin, end, _ in there:
            if begin - place >= size:
                break
            place = max(place, end)
        numbers.place = place
        there = sorted([*there, (place, place + size, numbers.calls[-1])])
        most = max(most, place + size)
    return most


class Room:
    """Memory that one captured part at a time works in, until its way back is done or given up."""

    def __init__(self) -> None:
        self.memory = torch.empty(0, dtype=torch.uint8)
        self.holder: Callable[[], Any] = lambda: None

    def free(self) -> bool:
        """Whether nobody waits for what is in it."""
        return self.holder() is None

    def at(self, size: int) -> int:
        """Where it is, of so many bytes at least."""
        if self.memory.numel() < size:
            self.memory = torch.empty(0, dtype=torch.uint8)
            self.memory = torch.empty(size, dtype=torch.uint8)
            machine.large_pages(self.memory.data_ptr(), size)
        return self.memory.data_ptr()


class Held:
    """That someone waits for what is in a room."""


class Graph:
    """A part of a step, there and back: from bf16 inputs and weights to what it says, and to the gradients of both."""

    def __init__(
        self,
        there: Callable[[Sequence[Tensor]], Tensor],
        inputs: Sequence[Tensor],
        needed: int,
        weights: Sequence[Any],
        room: Room,
    ) -> None:
        """Captures `there(inputs)` and the way back to the first `needed` inputs and to all weights.

        Raises VoidError where that cannot be done again as it was done.
        """
        self.weights, self.room = list(weights), room
        inputs = [x.detach().requires_grad_(n < needed) for n, x in enumerate(inputs)]
        found = there(inputs)  # weights that are kept as bf16, too, are so from here on
        gradient = torch.ones_like(found)
        self.copies = list(dict.fromkeys(c for w in weights if (c := getattr(w, "copied", None)) is not None))
        del found
        without = [*inputs, gradient, *(w.data for w in weights), *(c.matrix for c in self.copies)]
        capture = Capture(without)
        if len(capture.given) < len(without):
            raise VoidError("two tensors in one place")
        with capture.listening():
            said = there(inputs)
            split = len(capture.calls)
            self.said = Results(capture, [said.detach()])
            self.gradients = Results(capture, _gradients(said, [*inputs[:needed], *weights], gradient))
        given, self.needed = list(capture.given.values()), needed
        ends = {*self.said.numbers, *self.gradients.numbers}
        if len(ends) < len(self.said.numbers) + len(self.gradients.numbers):
            raise VoidError("what is said is a gradient")
        if any(n.calls[-1] >= split for n in self.said.numbers) or any(n.calls[0] < split for n in self.gradients.numbers):
            raise VoidError("what is said is wanted on the way back, or gradients before")
        inner = {w.numbers: 0 for _, whole, _ in capture.calls for w in whole if isinstance(w, _Where)}
        self.size = planned([n for n in inner if n not in ends and n not in given])
        self.there = Calls(capture.calls[:split], [*given, *self.said.numbers])
        self.back = Calls(capture.calls[split:], [*given, *self.gradients.numbers])

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """What is said of inputs that are as the captured ones were."""
        (said,), bases = self.said.make()
        self.there.make([*self._outside(inputs, 0), *bases], self.room.at(self.size))
        return said

    def backward(self, inputs: Sequence[Tensor], gradient: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Gradients of the inputs and of the weights, by that of what was said."""
        ((dtype, _, shape, stride, _),) = self.said.views
        if gradient.dtype != dtype or gradient.stride() != stride:
            gradient = torch.empty_strided(shape, stride, dtype=dtype).copy_(gradient)
        found, bases = self.gradients.make()
        self.back.make([*self._outside(inputs, gradient.data_ptr()), *bases], self.room.at(self.size))
        return found[: self.needed], found[self.needed :]

    def _outside(self, inputs: Sequence[Tensor], gradient: int) -> list[int]:
        return [
            *(x.data_ptr() for x in inputs), gradient, *(w.data_ptr() for w in self.weights),
            *(c.now().data_ptr() for c in self.copies),
        ]  # fmt: skip


def _gradients(said: Tensor, of: Sequence[Any], gradient: Tensor) -> list[Tensor]:
    """Of all these, those that weights have `taken_by` someone among them: while this runs, by nobody else."""
    takers = {x: x.taken_by for x in of if hasattr(x, "taken_by")}
    taken: dict[Any, list[Tensor]] = {x: [] for x in takers}
    for x in takers:
        x.taken_by = taken[x].append
    try:
        rest = torch.autograd.grad(said, of, gradient, allow_unused=True)
    finally:
        for x, taker in takers.items():
            x.taken_by = taker
    found = []
    for x, more in zip(of, rest, strict=True):
        every = taken.get(x, []) + ([] if more is None else [more])
        if len(every) != 1:
            raise VoidError(f"{len(every)} gradients of one weight")
        found.append(every[0])
    return found


class Captured(torch.autograd.Function):
    """A graph as one step for autograd: of its inputs, and of its weights where nobody takes their gradients."""

    @staticmethod
    def forward(ctx: Any, graph: Graph, count: int, *numbers: Tensor) -> Tensor:
        ctx.graph, ctx.held = graph, Held()
        ctx.save_for_backward(*numbers[:count])
        said = graph.forward(numbers[:count])
        graph.room.holder = weakref.ref(ctx.held)
        return said

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        graph, inputs = ctx.graph, ctx.saved_tensors
        if ctx.held is None or graph.room.holder() is not ctx.held:
            raise RuntimeError("a way back is gone once it was taken; say forward again")
        to_inputs, to_weights = graph.backward(inputs, gradient)
        ctx.held, graph.room.holder = None, lambda: None
        rest: list[Tensor | None] = []
        for weight, found in zip(graph.weights, to_weights, strict=True):
            if hasattr(weight, "taken_by"):
                weight.taken_by(found)
            else:
                rest.append(found)
        others = itertools.repeat(None, len(inputs) - len(to_inputs))
        return None, None, *to_inputs, *others, *rest
