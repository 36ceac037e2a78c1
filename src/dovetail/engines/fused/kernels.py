"""The functions in C, on tensors: what a U-Net does between its matrix products, bf16 in memory, float32 within; and AdamW.

Pictures are (b, c, h, w) in channels-last layout, tokens (..., width); both dense. Gradients of parameters are float32.
"""

import ctypes
import threading
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from dovetail.edges import compiler
from dovetail.engines.fused import SOURCES

SHARES, CHUNK = 16, 16384  # as in the sources
POINTER, LONG, INT, FLOAT, DOUBLE = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_float, ctypes.c_double
TOLD: dict[str, list[Any]] = {  # what each is told
    "group_norm": [POINTER] * 7 + [LONG] * 4 + [FLOAT, INT],
    "group_norm_back": [POINTER] * 13 + [LONG] * 4 + [INT],
    "layer_norm": [POINTER] * 8 + [LONG] * 2 + [FLOAT],
    "layer_norm_back": [POINTER] * 10 + [LONG] * 2,
    "gated": [POINTER] * 2 + [LONG] * 2,
    "gated_back": [POINTER] * 4 + [LONG] * 2,
    "sum_rows": [POINTER] * 3 + [LONG] * 2,
    "to_last": [POINTER] * 2 + [LONG] * 3,
    "from_last": [POINTER] * 2 + [LONG] * 3 + [INT],
    "add_to": [POINTER] * 2 + [LONG],
    "unfold": [POINTER] * 2 + [LONG] * 5,
    "unfold_plain": [POINTER] * 2 + [LONG] * 5,
    "fold_plain": [POINTER] * 2 + [LONG] * 5,
    "turn": [POINTER] * 2 + [LONG] * 2,
    "move_heads": [POINTER] * 2 + [LONG] * 5 + [INT],
    "attend": [POINTER] * 9 + [LONG] * 8 + [FLOAT, INT],
    "sum_numbers": [POINTER] * 2 + [LONG] * 2,
    "silu": [POINTER] * 2 + [LONG],
    "silu_back": [POINTER] * 3 + [LONG],
    "halve": [POINTER] * 2 + [LONG],
    "add_rows": [POINTER] * 3 + [LONG] * 4,
    "copy_rows": [POINTER] * 2 + [LONG] * 4,
    "enlarge": [POINTER] * 2 + [LONG] * 4,
    "enlarge_back": [POINTER] * 2 + [LONG] * 4,
    "run": [POINTER, LONG],
    "norms": [POINTER] * 4 + [LONG, INT],
    "adamw": [POINTER] * 8 + [LONG] + [FLOAT] * 2 + [DOUBLE] * 2 + [FLOAT] * 3 + [INT],
}
TILES: dict[str, list[Any]] = {  # the same, where the processor has tiles
    "tile_linear": [POINTER] * 5 + [LONG] * 3 + [INT],
    "tile_back": [POINTER] * 3 + [LONG] * 3 + [INT],
    "tile_outer": [POINTER] * 3 + [LONG] * 3 + [INT],
    "tile_gated": [POINTER] * 7 + [LONG] * 3 + [INT],
    "tile_gated_back": [POINTER] * 9 + [LONG] * 3 + [INT] * 2,
    "tile_conv": [POINTER] * 5 + [LONG] * 6 + [INT],
    "tile_conv_back": [POINTER] * 3 + [LONG] * 6 + [INT],
    "tile_conv_outer": [POINTER] * 3 + [LONG] * 6 + [INT],
}


class _Listening(threading.local):
    """Who is told, in this thread, of each call, and does it then (`graphs.Capture`)."""

    ear: Any = None


listening = _Listening()


def _functions() -> Any:
    return listening.ear or library()


@cache
def library() -> Any:
    """The functions themselves; None where there are none."""
    found = compiler.compiled(SOURCES)
    if found is not None:
        for name, kinds in (TOLD | (TILES if hasattr(found, "tile_linear") else {})).items():
            function = getattr(found, name)
            function.argtypes, function.restype = kinds, None
        found.attends.argtypes = [LONG]
    return found


def there() -> bool:
    """Whether this machine could compile them."""
    return library() is not None


def tiles() -> Any:
    """The functions in C, where the processor has tiles and its kernel allows them; else None."""
    return _functions() if _tiles_allowed() else None


@cache
def _tiles_allowed() -> bool:
    found = library()
    return found is not None and hasattr(found, "tile_linear") and bool(found.tiles_allowed())


def address(name: str) -> int:
    """Where a function is."""
    return ctypes.cast(getattr(library(), name), ctypes.c_void_p).value or 0


def at(*tensors: Tensor | None) -> list[int | None]:
    """Where they are."""
    if listening.ear is not None:
        return [None if x is None else listening.ear.place(x) for x in tensors]
    return [None if x is None else x.data_ptr() for x in tensors]


def group_norm(
    x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Group norm of x + shift (b, c), then SiLU if asked for; and what the way back wants, (b, groups) each."""
    b, c, h, w = x.shape
    y, mean, rstd = torch.empty_like(x), weight.new_empty(b, groups), weight.new_empty(b, groups)
    _functions().group_norm(*at(x, shift, weight, bias, y, mean, rstd), b, h * w, c, groups, eps, silu)
    return y, mean, rstd


def group_norm_back(
    dy: Tensor, x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, silu: bool,
    extra: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:  # fmt: skip
    """Gradients of x (plus `extra`), shift, weight and bias."""
    b, c, h, w = x.shape
    dx, sums, by_weight, by_bias = torch.empty_like(x), weight.new_empty(2, b, c), weight.new_empty(c), weight.new_empty(c)
    by_shift = None if shift is None else weight.new_empty(b, c)
    told = at(dy, x, shift, weight, bias, mean, rstd, extra, dx, sums, by_shift, by_weight, by_bias)
    _functions().group_norm_back(*told, b, h * w, c, mean.shape[1], silu)
    return dx, by_shift, by_weight, by_bias


def layer_norm(
    x: Tensor, delta: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x + delta, its layer norm, and what the way back wants, a number a row each."""
    c = x.shape[-1]
    rows = x.numel() // c
    whole, y = x if delta is None else torch.empty_like(x), torch.empty_like(x)
    mean, rstd = weight.new_empty(rows), weight.new_empty(rows)
    _functions().layer_norm(*at(x, delta, whole, weight, bias, y, mean, rstd), rows, c, eps)
    return whole, y, mean, rstd


def layer_norm_back(
    dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, extra: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (plus `extra`), weight and bias."""
    c = x.shape[-1]
    dx, sums, by_weight, by_bias = torch.empty_like(x), weight.new_empty(2, SHARES, c), weight.new_empty(c), weight.new_empty(c)
    told = at(dy, x, weight, mean, rstd, extra, dx, sums, by_weight, by_bias)
    _functions().layer_norm_back(*told, x.numel() // c, c)
    return dx, by_weight, by_bias


def gated(x: Tensor) -> Tensor:
    """value gelu(gate) of (..., 2 c)."""
    c = x.shape[-1] // 2
    y = x.new_empty(*x.shape[:-1], c)
    _functions().gated(*at(x, y), y.numel() // c, c)
    return y


def gated_back(dy: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of x (..., 2 c), and `gated(x)` once more."""
    dx, y, c = torch.empty_like(x), torch.empty_like(dy), dy.shape[-1]
    _functions().gated_back(*at(dy, x, dx, y), dy.numel() // c, c)
    return dx, y


def sum_rows(x: Tensor) -> Tensor:
    """(..., c) to (c,), float32."""
    c = x.shape[-1]
    sums, out = torch.empty(SHARES, c), torch.empty(c)
    _functions().sum_rows(*at(x, sums, out), x.numel() // c, c)
    return out


def sum_numbers(x: Tensor) -> Tensor:
    """(rows, c) to (c,), float32 both."""
    out = torch.empty(x.shape[1])
    _functions().sum_numbers(*at(x, out), *x.shape)
    return out


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x), of a few bf16 numbers."""
    y = torch.empty_like(x)
    _functions().silu(*at(x, y), x.numel())
    return y


def silu_back(dy: Tensor, x: Tensor) -> Tensor:
    """Gradient of x."""
    dx = torch.empty_like(x)
    _functions().silu_back(*at(dy, x, dx), x.numel())
    return dx


def halve(x: Tensor, into: Tensor) -> Tensor:
    """float32 numbers as bf16, both dense."""
    _functions().halve(*at(x, into), x.numel())
    return into


def enlarge(x: Tensor) -> Tensor:
    """A picture of twice the height and the width: each place four times."""
    b, c, h, w = x.shape
    y = torch.empty((b, c, 2 * h, 2 * w), dtype=torch.bfloat16, memory_format=torch.channels_last)
    _functions().enlarge(*at(x, y), b, h, w, c)
    return y


def enlarge_back(dy: Tensor) -> Tensor:
    """Gradient of what was enlarged."""
    b, c, h, w = dy.shape
    dx = torch.empty((b, c, h // 2, w // 2), dtype=torch.bfloat16, memory_format=torch.channels_last)
    _functions().enlarge_back(*at(dy, dx), b, h // 2, w // 2, c)
    return dx


def to_last(weight: Tensor) -> Tensor:
    """Weights (out, in, h, w) of a convolution, float32 and plain, as bf16 in channels-last layout."""
    last = torch.empty(weight.shape, dtype=torch.bfloat16, memory_format=torch.channels_last)
    _functions().to_last(*at(weight, last), *weight.shape[:2], weight[0, 0].numel())
    return last


def from_last(last: Tensor, dtype: torch.dtype) -> Tensor:
    """The other way round, as float32 or bf16."""
    weight = torch.empty(last.shape, dtype=dtype)
    _functions().from_last(*at(last, weight), *last.shape[:2], last[0, 0].numel(), dtype == torch.bfloat16)
    return weight


def add_to(total: Tensor, x: Tensor) -> None:
    """bf16 numbers onto float32 ones; others, or what lies otherwise, as PyTorch does it."""
    quick = total.dtype == torch.float32 and x.dtype == torch.bfloat16 and there()
    if quick and total.is_contiguous() and x.is_contiguous():
        _functions().add_to(*at(total, x), x.numel())
    else:
        total += x


def unfold(x: Tensor, stride: int) -> Tensor:
    """What each place of a convolution of 3 x 3 places sees of a picture, zeros around it: (places, 9 c)."""
    b, c, h, w = x.shape
    y = x.new_empty(b * -(-h // stride) * -(-w // stride), 9 * c)
    _functions().unfold(*at(x, y), b, h, w, c, stride)
    return y


def unfold_plain(x: Tensor, stride: int) -> Tensor:
    """The same in the order of weights that are plain: (places, c 9)."""
    b, c, h, w = x.shape
    y = x.new_empty(b * -(-h // stride) * -(-w // stride), c * 9)
    _functions().unfold_plain(*at(x, y), b, h, w, c, stride)
    return y


def fold_plain(seen: Tensor, like: Tensor, stride: int) -> Tensor:
    """Gradient of a picture such as `like`, of that of what its places saw (places, c 9)."""
    b, c, h, w = like.shape
    x = torch.empty_like(like)
    _functions().fold_plain(*at(seen, x), b, h, w, c, stride)
    return x


def turn(kernel: Tensor) -> Tensor:
    """Weights (out, in, 3, 3) in channels-last layout as the matrix (9 out, in) of their way back."""
    out, c = kernel.shape[:2]
    turned = kernel.new_empty(9 * out, c)
    _functions().turn(*at(kernel, turned), out, c)
    return turned


def split_heads(tokens: Tensor, parts: int, heads: int) -> Tensor:
    """(b, n, parts heads d) to (parts, b heads, n, d)."""
    b, n, width = tokens.shape
    apart = tokens.new_empty(parts, b * heads, n, width // parts // heads)
    _functions().move_heads(*at(tokens, apart), b, n, parts, heads, apart.shape[-1], False)
    return apart


def merge_heads(apart: Tensor, heads: int) -> Tensor:
    """(parts, b heads, n, d) to (b, n, parts heads d)."""
    parts, b, n, d = apart.shape
    tokens = apart.new_empty(b // heads, n, parts * heads * d)
    _functions().move_heads(*at(apart, tokens), b // heads, n, parts, heads, d, True)
    return tokens


def attends(width: int) -> bool:
    """Whether `attend` is made for heads of so many numbers, on this processor."""
    return bool(library().attends(width))


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, scale: float) -> tuple[Tensor, Tensor]:
    """softmax(query key^T scale) value of tokens (b, n, heads d) over (b, m, heads d), slices of wider ones; and the logarithms
    (b, heads, n) of the sums that the way back wants."""
    out, logs = query.new_empty(query.shape), torch.empty(len(query), heads, query.shape[1])
    _attend(query, key, value, out, logs, [], heads, scale)
    return out, logs


def attend_back(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, logs: Tensor, found: Sequence[Tensor], heads: int,
    scale: float,
) -> None:  # fmt: skip
    """Gradients of query, key and value into `found`, which lie as those do."""
    _attend(query, key, value, out, logs, [gradient, *found], heads, scale)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, logs: Tensor, back: Sequence[Tensor], heads: int, scale: float
) -> None:
    b, n, width = query.shape
    steps = query.stride(1), key.stride(1), value.stride(1)
    told = b, n, key.shape[1], heads, width // heads, *steps, scale, bool(back)
    _functions().attend(*at(query, key, value, out, logs, *(back or (None, None, None, None))), *told)


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """Of each tensor, all of them float32 or all bf16; infinite where its squares are too large for float32."""
    sizes = [x.numel() for x in tensors]
    room, out = torch.empty(sum(-(-n // CHUNK) for n in sizes), dtype=torch.float64), torch.empty(len(sizes))
    _functions().norms(_all(tensors), (ctypes.c_long * len(sizes))(*sizes), *at(room, out), len(sizes), _half(tensors))
    return out


def adamw(
    weights: Sequence[Tensor], gradients: Sequence[Tensor] | None, state: Sequence[Sequence[Tensor]],
    averages: Sequence[Tensor] | None, numbers: tuple[float, ...], copies: Sequence[Tensor | None] = (),
) -> None:  # fmt: skip
    """A step of float32 weights by their gradients (all float32 or all bf16), of their averages, and of bf16 copies.

    `state` are first and second moments and steps done; `numbers` are learning rate, weight decay, both betas, epsilon, and
    what the gradients are scaled and the averages moved by.
    """
    lists = [_all(x) for x in (weights, gradients, *(state or (None, None, None)), averages, copies or None)]
    sizes = (ctypes.c_long * len(weights))(*[w.numel() for w in weights])
    _functions().adamw(*lists, sizes, len(weights), *numbers, _half(gradients or []))


def _half(tensors: Sequence[Tensor]) -> bool:
    return any(x.dtype == torch.bfloat16 for x in tensors)


def _all(tensors: Sequence[Tensor | None] | None) -> Any:
    return None if tensors is None else (ctypes.c_void_p * len(tensors))(*at(*tensors))
