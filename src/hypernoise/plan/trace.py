"""The memory and arithmetic of a computation, from running it on tensors without data.

`Live` tracks every storage that an operation creates until it is freed, so its peak is that of an ideal
allocator; autograd on the meta device keeps and frees the same tensors as elsewhere. Not included are kernel
workspaces and the allocator's rounding.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from hypernoise.generators.memory import replaced


class Live(TorchDispatchMode):
    """Bytes of storages created inside the block that are still alive: `bytes` now, `peak` at most.

    `flops` are floating-point operations, a multiply-add being two: of matrix products and convolutions, as in
    torch's own counter. (As a mode of its own, that counter would keep tensors alive.)

    On the meta device torch infers output shapes in Python, which takes far longer than creating a tensor of that
    shape. Networks repeat themselves, so each operation runs once per kind of input and is cached.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = self.flops = 0
        self._held: dict[int, Any] = {}

    def dispatch(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        keywords = keywords or {}
        if _is_view(function):
            return function(*arguments, **keywords)
        kind = _kind(function, arguments, keywords)
        if kind in _SEEN:
            again, flops = _SEEN[kind]
            result = arguments[0] if again is None else again()
            made = () if again is None else result if isinstance(result, tuple) else (result,)
        else:
            count = flop_registry.get(function._overloadpacket)
            result = function(*arguments, **keywords)
            flops = count(*arguments, **keywords, out_val=result) if count is not None else 0
            given = {id(t.untyped_storage()) for t in tree_leaves((arguments, keywords)) if isinstance(t, Tensor)}
            made = [t for t in tree_leaves(result) if isinstance(t, Tensor) and id(t.untyped_storage()) not in given]
            if kind is not None and isinstance(result, Tensor | tuple) and (made or result is arguments[0]):
                _SEEN[kind] = _another(result) if made else None, flops
        self.flops += flops
        for tensor in made:
            if isinstance(tensor, Tensor):
                self._hold(tensor.untyped_storage())
        return result

    def _hold(self, storage: Any) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._held or size == 0:
            return

        def release(reference: Any) -> None:
            self._held.pop(key, None)
            self.bytes -= size

        self._held[key] = weakref.ref(storage, release)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)


Live.__torch_dispatch__ = Live.dispatch  # type: ignore[method-assign]  # in the class body, torch wraps it for dynamo

_SEEN: dict[Any, tuple[Callable[[], Any] | None, int]] = {}
"""By operation and inputs: a maker of its output (None: the output is the first input), and its flops."""


def _another(value: Any) -> Callable[[], Any]:
    """A maker of outputs like this one."""
    if isinstance(value, tuple):
        makers = [_another(part) for part in value]
        return lambda: tuple([make() for make in makers])
    if isinstance(value, Tensor):
        return partial(torch.empty_strided, value.shape, value.stride(), dtype=value.dtype, device="meta")
    return lambda: value


@cache
def _is_view(function: Any) -> bool:
    """Whether its output shares the first input's storage, unchanged."""
    return not function._schema.is_mutable and any(value.alias_info for value in function._schema.returns)


def _kind(function: Any, arguments: Any, keywords: Any) -> Any:
    """A key for the shape of an operation's output; None unless all tensors are on meta."""
    kinds: list[Any] = [function]
    shapes = _describe(arguments, kinds) + _describe(keywords.values(), kinds)
    return tuple(kinds) if 0 < shapes < float("inf") and "device" not in keywords else None


def _describe(values: Iterable[Any], kinds: list[Any]) -> float:
    """Appends to `kinds`; returns the number of meta tensors, or infinity if there are others."""
    shapes = 0.0
    for value in values:
        if isinstance(value, Tensor):
            shapes += 1 if value.is_meta else float("inf")
            kinds.append((value.shape, value.stride(), value.dtype))
        elif isinstance(value, list | tuple):
            kinds.append(len(value))
            shapes += _describe(value, kinds)
        else:
            kinds.append((type(value), value))
    return shapes


class _Attention(torch.autograd.Function):
    """What fused attention allocates: its output and a log-sum per query; backwards, their gradients' sizes."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, live: Live) -> Tensor:
        output = q.new_empty(*q.shape[:-1], v.shape[-1])
        logsums = torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device)
        ctx.save_for_backward(q, k, v, output, logsums)
        ctx.live = live
        live.flops += _attention_flops(q, k, v)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        q, k, v, *_ = ctx.saved_tensors
        ctx.live.flops += 5 * _attention_flops(q, k, v) // 2  # five products instead of two, one of them recomputed
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), None


def _attention_flops(q: Tensor, k: Tensor, v: Tensor) -> int:
    return 2 * q[..., 0].numel() * k.shape[-2] * (q.shape[-1] + v.shape[-1])


def fused_attention(live: Live) -> AbstractContextManager[None]:
    """A block where `scaled_dot_product_attention` of meta tensors is a fused kernel, which stores no whole matrix.

    torch's function mode would suffice if it were active when a checkpointed block is recomputed.
    """
    own = nn.functional.scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, value: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        if query.device.type != "meta":
            return own(query, key, value, *arguments, **keywords)
        return _Attention.apply(query, key, value, live)  # type: ignore[return-value]

    return replaced(nn.functional, {"scaled_dot_product_attention": attention})


class _Move(torch.autograd.Function):
    """Shape and dtype without values, as zeros on the CPU or nothing on the meta device; gradients move back."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, device: str) -> Tensor:
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device=device)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        (gradient,) = gradients
        back = "cpu" if gradient.device.type == "meta" else "meta"
        return torch.zeros(gradient.shape, dtype=gradient.dtype, device=back), None


def moved(nest: Any, device: str) -> Any:
    """Every tensor of a nested structure on the meta device, or as zeros on the CPU (for a scheduler's arithmetic)."""

    return tree_map_only(Tensor, lambda own: own if own.device.type == device else _Move.apply(own, device), nest)
