"""The memory and arithmetic of a computation, from running it on tensors without data.

`Live` tracks every storage that an operation creates until it is freed, so its peak is that of an ideal
allocator; autograd on the meta device keeps and frees the same tensors as elsewhere. Not included are kernel
workspaces and the allocator's rounding.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from hypernoise.generators.memory import replaced


@dataclass
class Part:
    """What a part of a training step costs. Memory in bytes.

    held: alive at its end in the forward pass; kept: of that, its own, for the gradient.
    forward, backward: its peak in addition to `held`, in each pass.
    flops, flops_back: floating-point operations in each pass.
    """

    held: int
    kept: int
    forward: int
    flops: int
    backward: int = 0
    flops_back: int = 0


class Live(TorchDispatchMode):
    """Bytes of storages created inside the block that are still alive (`bytes` now, `peak` at most), and `flops`, a
    multiply-add being two, as torch's own counter counts them; `end` and `end_back` divide both into `parts`.

    On the meta device torch infers output shapes in Python, which takes far longer than creating a tensor of that
    shape. Networks repeat themselves, so each operation runs once per kind of input and is cached.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = self.flops = 0
        self.parts: dict[str, Part] = {}
        self._before = 0

    def end(self, name: str) -> None:  # a part's forward pass
        self.parts[name] = Part(self.bytes, self.bytes - self._before, self.peak - self.bytes, self.flops)
        self._before, self.peak, self.flops = self.bytes, self.bytes, 0

    def end_back(self, name: str) -> None:  # its backward pass
        part = self.parts[name]
        part.backward, part.flops_back = self.peak - part.held, self.flops
        self.peak, self.flops = self.bytes, 0

    def dispatch(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        keywords = keywords or {}
        if _is_view(function):
            return function(*arguments, **keywords)
        kind = function, _kind(arguments), _kind(tuple(keywords.items()))
        if kind in _SEEN:
            again, flops = _SEEN[kind]
            result = again() if again else arguments[0]
            made = tree_leaves(result) if again else []
        else:
            count, result = flop_registry.get(function._overloadpacket), function(*arguments, **keywords)
            flops = count(*arguments, **keywords, out_val=result) if count is not None else 0
            given = {id(t.untyped_storage()) for t in tree_leaves((arguments, keywords)) if isinstance(t, Tensor)}
            made = [t for t in tree_leaves(result) if isinstance(t, Tensor) and id(t.untyped_storage()) not in given]
            in_place = not made and isinstance(result, Tensor) and result is arguments[0]
            if (made or in_place) and all(t.is_meta for t in made or [result]):
                _SEEN[kind] = _another(result) if made else None, flops
        self.flops += flops
        for tensor in made:
            if isinstance(tensor, Tensor):
                size = tensor.untyped_storage().nbytes()
                weakref.finalize(tensor.untyped_storage(), self._hold, -size)
                self._hold(size)
        return result

    def _hold(self, size: int) -> None:
        self.bytes += size
        self.peak = max(self.peak, self.bytes)


Live.__torch_dispatch__ = Live.dispatch  # type: ignore[method-assign]  # in the class body, torch wraps it for dynamo

_SEEN: dict[Any, tuple[Callable[[], Any] | None, int]] = {}
"""By operation and inputs: a maker of its output (None: the output is the first input), and its flops."""


def _another(value: Any) -> Callable[[], Any]:
    """A maker of outputs like this one."""
    if isinstance(value, list | tuple):
        kind, makers = type(value), [_another(part) for part in value]  # a reference to `value` would keep its tensors
        return lambda: kind([make() for make in makers])
    if isinstance(value, Tensor):
        return partial(torch.empty_strided, value.shape, value.stride(), dtype=value.dtype, device="meta")
    return lambda: value


@cache
def _is_view(function: Any) -> bool:
    """Whether its output shares the first input's storage, unchanged."""
    return not function._schema.is_mutable and any(value.alias_info for value in function._schema.returns)


def _kind(value: Any) -> Any:
    """What of an operation's inputs determines the shape of its output."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    return tuple(map(_kind, value)) if isinstance(value, list | tuple) else (type(value), value)


@contextmanager
def tracing() -> Iterator[Live]:
    """A block where `scaled_dot_product_attention` of meta tensors is a fused kernel, which stores no whole matrix.

    torch's function mode would suffice if it were active when a checkpointed block is recomputed.
    """
    own = nn.functional.scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, value: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        if not query.is_meta:
            return own(query, key, value, *arguments, **keywords)
        if query.ndim == 3:  # the kernel takes four
            return attention(query[None], key[None], value[None])[0]
        output = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]
        return output.contiguous()  # kernels differ in their output's layout: the one that is copied needs more

    with torch.enable_grad(), replaced(nn.functional, {"scaled_dot_product_attention": attention}), Live() as live:
        yield live


class _Move(torch.autograd.Function):
    """Shape and dtype without values, as zeros on the CPU or nothing on the meta device; gradients move back."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, device: str) -> Tensor:
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device=device)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> tuple[Any, ...]:  # type: ignore[override]
        return _Move.forward(ctx, gradient, "cpu" if gradient.is_meta else "meta"), None


def moved(nest: Any, device: str) -> Any:
    """Every tensor of a nested structure on the meta device, or as zeros on the CPU (for a scheduler's arithmetic)."""
    return tree_map_only(Tensor, lambda own: own if own.device.type == device else _Move.apply(own, device), nest)
