"""Any torch callable that maps noise to images (a GAN, a decoder, a test function) as a generator."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from itertools import chain
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hypernoise.errors import InputError, check_is, failed, no_traceback
from hypernoise.generators.base import Condition, Generator, Seed, check_noise, check_texts, checked_shape, fault_of
from hypernoise.generators.identity import identify_module

DEEP, MANY = 4, 100  # when searching a callable for its networks: depth, and items per container


class ModuleGenerator(Generator):
    """A module, a function or a bound method as a frozen generator.

    The torch modules that it is, is bound to, closes over or uses as globals get requires_grad=False, and are put into
    eval mode for every call. It receives noise and embeddings in its weights' dtype.

    Args:
        module: maps noise [B, *noise_shape], and a condition if there is `embed`, to an output.
        noise_shape: one sample's shape, with any number of dimensions.
        to_pixels: maps the output to pixels [B, 3, H, W] in [0, 1]. None: it is them, or the only picture in a tuple,
            list or mapping of outputs.
        embed: maps a list of prompts to class labels [B] or embeddings [B, ...]. The noise network receives them, and
            so does a module with a second argument. None: prompts are only counted.
        pictures: False for functions whose outputs are not pictures and are not checked.

    Raises:
        InputError: something that cannot be called with these arguments, or BatchNorm without running statistics.
            `encode` and `sample` also raise it, for errors in the module or `embed`, and for pictures of another
            shape or range, or without a gradient to the noise.
    """

    def __init__(
        self,
        module: Callable[..., Any],
        *,
        noise_shape: tuple[int, ...],
        to_pixels: Callable[..., Tensor] | None = None,
        embed: Callable[[list[str]], Tensor] | None = None,
        name: str = "module",
        pictures: bool = True,
    ):
        for what, part in (("module", module), ("to_pixels", to_pixels), ("embed", embed)):
            if part is not None or what == "module":
                check_is(part, Callable, what, "something to call, such as a torch module")
        self.noise_shape = checked_shape(noise_shape)
        self.embed, self.name = embed, name
        self._conditional = _takes_condition(module, embed is not None)
        self._networks = networks_of(module, to_pixels, embed)
        for weight in chain.from_iterable(network.parameters() for network in self._networks):
            if is_lazy(weight) or weight.is_meta:
                raise InputError(f"{name!r} has weights without values: load them, or call a lazy module once, before")
            weight.requires_grad_(False)
        hooked = isinstance(module, nn.Module) and not isinstance(module, torch.jit.ScriptModule)  # it takes no hooks
        self.module: nn.Module = module if hooked else Function(module)  # type: ignore[assignment]
        self.to_pixels = to_pixels
        for layer, part in (named for network in self._networks for named in network.named_modules()):
            if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is None:
                raise InputError(
                    f"{layer or name!r} of {name!r} is a {type(part).__name__} without running statistics, so a "
                    "picture depends on the others of its batch; it needs track_running_stats=True"
                )
        self._pictures, self._unseen = pictures, True  # no picture has been checked yet

    @property
    def device(self) -> torch.device:
        return next((tensor.device for tensor in self._weights()), torch.device("cpu"))

    def _weights(self) -> chain[Tensor]:
        return chain(self.module.parameters(), self.module.buffers())

    def encode(self, prompts: list[str]) -> Condition:
        check_texts(prompts)
        if self.embed is None:
            return Condition({"index": torch.arange(len(prompts), device=self.device)})
        self._rest()
        embed = self.embed
        with torch.no_grad():
            try:
                embedded: Any = embed(list(prompts))
            except Exception as error:
                failed("embed", error, prompts, lambda number: embed([prompts[number]]))
        rows = len(embedded) if isinstance(embedded, Tensor) and embedded.ndim else -1
        if rows != len(prompts) or embedded.layout != torch.strided or embedded.is_meta or embedded.is_complex():
            made = f"a tensor with a row for each of {len(prompts)} prompts"
            raise InputError(f"embed must return {made}, not {_outline(embedded)}")
        bad = ~embedded.isfinite() if embedded.is_floating_point() else embedded < 0
        if bad.any():
            row = int(bad.nonzero()[0, 0])
            what = "NaN or inf" if embedded.is_floating_point() else "a negative number (labels begin at 0)"
            raise InputError(f"embed returns {what} for {prompts[row]!r}")
        return Condition({"embedding": embedded.to(self.device, copy=True)})  # autograd refuses inference mode's

    def sample(self, noise: Tensor, condition: Condition, *, num_inference_steps: int = 1, seed: Seed = None) -> Tensor:
        check_noise(noise, self.noise_shape, repr(self.name))
        self._rest()
        given = [noise, *([condition.tensors["embedding"]] if self._conditional else [])]
        own = next((weight.dtype for weight in self._weights() if weight.is_floating_point()), None)
        # copies, since some modules change their input in place
        cast = [part.to(own if own and part.is_floating_point() else part.dtype, copy=True) for part in given]
        narrow = own not in (None, torch.float32)  # the dtype of such weights is the precision
        whole = torch.autocast(noise.device.type, enabled=False) if narrow else nullcontext()
        with whole, no_traceback(f"{self.name!r} fails when given {' and '.join(map(_described, given))}"):
            pixels = self.module(*cast)
            if self.to_pixels is not None:
                pixels = self.to_pixels(pixels)
            elif self._pictures:
                pixels = _picture(pixels)
        if self._pictures:
            self._check(noise, pixels)
        elif not isinstance(pixels, Tensor):
            pick = "pick what the reward takes with to_pixels, such as lambda y: y[0]"
            raise InputError(f"{self.name!r} returns {_outline(pixels)}, not a tensor; {pick}")
        return pixels.to(noise.dtype)

    def _rest(self) -> None:
        """Dropout and BatchNorm would make a picture depend on chance and its batch."""
        for network in self._networks:
            if any(part.training for part in network.modules()):
                network.eval()

    def _check(self, noise: Tensor, pixels: Any) -> None:
        """Checks every batch's shape and gradient, and the first one's values, since reading them synchronises."""
        who = "to_pixels" if self.to_pixels is not None else repr(self.name)
        fault = fault_of(pixels, len(noise), values=self._unseen)
        if fault:
            what, fix = fault if isinstance(pixels, Tensor) else (_outline(pixels), "")
            made = f"to_pixels=lambda y: {fix}" if fix else "to_pixels, which converts them"
            raise InputError(
                f"{who} returns {what}; it must return pixels [{len(noise)}, 3, H, W], floats in [0, 1]: pass {made}, "
                "or pictures=False if these are not pictures"
            )
        self._unseen = False
        if torch.is_grad_enabled() and noise.requires_grad and not pixels.requires_grad:
            raise InputError(
                f"no gradient reaches the noise of {self.name!r}: it uses torch.no_grad or inference_mode, or "
                "detaches its input"
            )

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), **identify_module(self.module)}


class Function(nn.Module):
    """A function and the modules it uses, as one module."""

    def __init__(self, function: Callable[..., Any]):
        super().__init__()
        self.function, self.networks = function, nn.ModuleList(networks_of(function))

    def forward(self, *given: Tensor) -> Any:
        return self.function(*given)


def networks_of(*callables: Any) -> list[nn.Module]:
    """The modules that these are, are bound to, hold, close over or use as globals; without nested ones."""
    found: dict[int, nn.Module] = {}

    def look(thing: Any, deep: int) -> None:
        if isinstance(thing, nn.Module):
            found[id(thing)] = thing
        elif deep:
            for part in _within(thing):
                look(part, deep - 1)

    look(callables, DEEP + 1)
    inner = {id(part) for network in found.values() for part in network.modules() if part is not network}
    return [network for key, network in found.items() if key not in inner]


def _within(thing: Any) -> list[Any]:
    if isinstance(thing, partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if isinstance(thing, MethodType):
        return [thing.__self__, thing.__func__]
    if isinstance(thing, FunctionType):
        found = [*(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()]
        for cell in thing.__closure__ or ():
            with suppress(ValueError):  # a name that is not yet bound
                found.append(cell.cell_contents)
        return found + [thing.__globals__[name] for name in _names(thing.__code__) if name in thing.__globals__]
    if isinstance(thing, list | tuple | dict):
        return list(thing.values() if isinstance(thing, dict) else thing) if len(thing) <= MANY else []
    if isinstance(thing, ModuleType | type | Tensor):
        return []
    return list(getattr(thing, "__dict__", {}).values())


def _names(code: CodeType) -> Iterator[str]:
    """The global names in a function's code and that of its inner functions."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _takes_condition(module: Callable[..., Any], embeds: bool) -> bool:
    """Whether the module receives `embed`'s result. InputError if it accepts neither noise and that, nor only noise."""
    try:
        signature = inspect.signature(module.forward if isinstance(module, nn.Module) else module)
    except (TypeError, ValueError):  # some scripted or built-in functions have no signature
        return embeds

    def takes(count: int) -> bool:
        with suppress(TypeError):
            return signature.bind(*[None] * count) is not None
        return False

    if embeds and takes(2):
        return True
    if not takes(1):
        needed = "give embed, which computes the second" if takes(2) else "wrap it in a function of these"
        raise InputError(f"the module must take noise, or noise and a condition, but takes {signature}; {needed}")
    return False


def parts_of(output: Any) -> list[Any]:
    """The values of a tuple, list, mapping, or object with attributes."""
    if isinstance(output, Mapping):
        return list(output.values())
    return list(output) if isinstance(output, Sequence) else list(getattr(output, "__dict__", {}).values())


def _picture(output: Any) -> Any:
    """The only picture among several outputs; the output itself if it is a tensor."""
    if isinstance(output, Tensor):
        return output
    found = [part for part in parts_of(output) if isinstance(part, Tensor) and part.ndim == 4 and part.shape[1] == 3]
    if len(found) != 1:
        pick = "the picture [B, 3, H, W] with to_pixels, such as lambda y: y[0]"
        raise InputError(f"it returns {_outline(output)}; pick {pick}")
    return found[0]


def _outline(output: Any) -> str:
    """An output's type and the shapes in it."""
    if isinstance(output, Tensor):
        return f"{output.layout}, {output.dtype}, {output.device}, shape {list(output.shape)}"
    shapes = [str(list(part.shape)) if isinstance(part, Tensor) else type(part).__name__ for part in parts_of(output)]
    return f"a {type(output).__name__}" + (f" of {', '.join(shapes[:8])}" if shapes else "")


def _described(given: Tensor) -> str:
    if not given.is_floating_point() and given.numel() and given[0].numel() == 1:
        return f"labels from {int(given.min())} to {int(given.max())}"
    return f"{list(given.shape)}"
