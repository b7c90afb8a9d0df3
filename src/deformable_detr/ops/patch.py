"""`patch`: our operator inside other people's models. Paper: section 4.1, equation 3.

Models that use multi-scale deformable attention hold the operator in one of three places: in a submodule
without weights (transformers' Deformable DETR, RT-DETR, Grounding DINO), in an attribute (D-FINE, RT-DETR's
authors), or in a function of the file, which `forward` calls by name (Mask2Former, RT-DETRv2, RF-DETR, mmcv).
All of them name its arguments alike, and by those names it is recognised and called: no package is imported
here, and look-alikes need no entry of their own. Only attributes of module instances are set: other models in
the process, `state_dict` keys and the foreign source stay as they are.

Letters: B batch, S value tokens, M heads, D head dimension, Q queries, L levels, K points per level.
"""

from __future__ import annotations

import dis
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FunctionType, SimpleNamespace, TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from .ms_deform_attn import ms_deform_attn

# What the world calls the arguments of this operator.
_SHAPES = ("value_spatial_shapes_list", "value_spatial_shapes_hw", "value_spatial_shapes", "spatial_shapes")
_REQUIRED = {"value", "sampling_locations", "attention_weights"}
_OPTIONAL = {"num_points_list", "method"}
_NEEDLESS = {"level_start_index", "value_level_start_index", "im2col_step", "value_shape"}
_KNOWN = {*_SHAPES, *_REQUIRED, *_OPTIONAL, *_NEEDLESS}

_METHOD_ATTRIBUTES = ("method", "decoder_method")  # where RT-DETRv2 and D-FINE keep the kind of sampling


def patch(model: nn.Module) -> PatchHandle:
    """Replace multi-scale deformable attention everywhere inside `model` by `ops.ms_deform_attn`.

    Recognised are modules, functions and autograd functions with "deform" in their name that take `value`,
    spatial shapes, `sampling_locations` and `attention_weights` and nothing unknown: all of transformers'
    models with this operator, RF-DETR, D-FINE, RT-DETR, mmcv, the authors' code, and copies of them. Results
    and gradients of finite inputs stay the same up to rounding; the output has the type of `value`.

    A deep copy of a patched model is patched too, for good. So is one that was pickled whole, and loading it
    needs this package. A model under `torch.compile` is patched before its first call.

    Returns:
        A handle with `count`, `undo()`, and use as a context manager.

    Raises:
        ValueError: where there is nothing to replace, where something is patched already (undo that first),
            or where the operator cannot be replaced: RT-DETRv2's "discrete" method takes the nearest pixel.
    """
    swaps = [swap for name, module in model.named_modules() for swap in _swaps_in(name, module)]
    if not swaps:
        raise ValueError(
            f"{type(model).__name__} has no multi-scale deformable attention to replace: ops.patch looks for "
            "modules and functions named like MultiScaleDeformableAttention that take value, spatial shapes, "
            "sampling_locations and attention_weights"
        )
    for swap in swaps:
        setattr(swap.module, swap.attribute, swap.replacement)
    return PatchHandle(swaps)


class PatchHandle:
    """What `patch` did to a model, and the way back.

    As a context manager it undoes the patch at the end of the block.
    """

    def __init__(self, swaps: Sequence[_Swap]) -> None:
        self._swaps = tuple(swaps)
        self._undone = False

    @property
    def count(self) -> int:
        """How many operators were replaced."""
        return len(self._swaps)

    def undo(self) -> None:
        """Put the model's own operators back. A second call does nothing.

        Raises:
            RuntimeError: where something else was put over the patch since; nothing is changed then.
        """
        if self._undone:
            return
        for swap in self._swaps:
            if vars(swap.module).get(swap.attribute) is not swap.replacement:
                raise RuntimeError(
                    f"{swap.name}.{swap.attribute} was replaced after ops.patch: undo that first"
                )
        for swap in self._swaps:
            if swap.before is _NOTHING:
                delattr(swap.module, swap.attribute)
            else:
                setattr(swap.module, swap.attribute, swap.before)
        self._undone = True

    def __enter__(self) -> PatchHandle:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.undo()


# ---- Calling ours as theirs was called -----------------------------------------------------------


class _Operator:
    """Our operator, called with the arguments of one of theirs.

    `parameters`: the names of those, in order; `defaults`: by name. A class and not a closure, so that a
    patched model can be pickled.
    """

    def __init__(self, parameters: tuple[str, ...], defaults: dict[str, Any]) -> None:
        self.parameters, self.defaults = parameters, defaults

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        given = self.defaults | dict(zip(self.parameters, args, strict=False)) | kwargs
        method = given.get("method", "default")
        if method != "default":
            raise ValueError(_other_method("this model", method))
        shapes = next(given[name] for name in _SHAPES if given.get(name) is not None)
        if isinstance(shapes, Tensor):
            shapes = shapes.tolist()
        locations, weights = given["sampling_locations"], given["attention_weights"]
        points = given.get("num_points_list")
        if locations.ndim == 6:  # (B, Q, M, L, K, 2); weights 5-d, or 4-d (B, Q, M, L·K) in RF-DETR
            weights = weights.reshape(locations.shape[:-1])
        elif points is None:  # (B, Q, M, L·K, 2)
            points = _equal_points(locations.shape[3], len(shapes))
        tokens = sum(height * width for height, width in shapes)
        value = _tokens_first(given["value"], tokens, heads=weights.shape[2])
        return ms_deform_attn(value, shapes, locations, weights, points_per_level=points)


def _equal_points(num_points: int, num_levels: int) -> tuple[int, ...]:
    if num_points % num_levels:
        raise ValueError(f"{num_points} points cannot be shared out equally among {num_levels} levels")
    return (num_points // num_levels,) * num_levels


def _tokens_first(value: Tensor | Sequence[Tensor], tokens: int, heads: int) -> Tensor:
    """(B, S, M, D) from that, from RF-DETR's (B, M, D, S), or from D-FINE's own (B, M, D, S_l) per level."""
    if not isinstance(value, Tensor):
        return torch.cat(list(value), dim=-1).permute(0, 3, 1, 2)
    first = tuple(value.shape[1:3]) == (tokens, heads)
    last = (value.shape[1], value.shape[3]) == (heads, tokens)
    if first == last:
        raise ValueError(
            f"value of shape {tuple(value.shape)} should be (B, S, M, D) or (B, M, D, S) with S = {tokens} "
            f"tokens and M = {heads} heads, and {'both readings fit' if first else 'neither fits'}"
        )
    return value if first else value.permute(0, 3, 1, 2)


class _ReboundForward:
    """The forward of a module's own class, in which names of its file mean our operator.

    A class and not a bound method, so that copies and pickles of the module get one of their own.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.function = _rebound(inspect.getattr_static(type(module), "forward"))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self.module, *args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return _ReboundForward, (self.module,)


@functools.cache
def _rebound(forward: FunctionType) -> FunctionType:
    """The same code with other globals: neither its file nor other instances notice.

    Python looks a function's global names up in one dictionary, its `__globals__`. The code is copied because
    torch.compile keeps its results on the code object, and they are of no use with the other dictionary.
    """
    function = FunctionType(
        forward.__code__.replace(),
        forward.__globals__ | _operators_called_by(forward),
        forward.__name__,
        forward.__defaults__,
        forward.__closure__,
    )
    function.__kwdefaults__ = forward.__kwdefaults__
    return function


# ---- Recognising theirs --------------------------------------------------------------------------

_NOTHING = object()


@dataclass(frozen=True, eq=False)
class _Swap:
    """One attribute of one module; `name` is the module's in the model, `before` what the instance had."""

    name: str
    module: nn.Module
    attribute: str
    replacement: object
    before: object


def _swaps_in(name: str, module: nn.Module) -> Iterator[_Swap]:
    name = name or type(module).__name__
    own = vars(module)
    if any(_is_ours(value) for value in own.values()):
        raise ValueError(f"{name} is patched already: undo that first")

    def swap(attribute: str, replacement: object) -> _Swap:
        return _Swap(name, module, attribute, replacement, own.get(attribute, _NOTHING))

    forward = inspect.getattr_static(type(module), "forward", None)
    if not isinstance(forward, FunctionType):  # that of a ScriptModule, say
        return
    operator = _operator_for(type(module).__name__, forward, skip=1)
    if operator is not None:
        yield swap("forward", operator)
        return
    for attribute, value in own.items():
        replacement = _replacement_for(value)
        if replacement is not None:
            _require_bilinear(name, module, value)
            yield swap(attribute, replacement)
    if _operators_called_by(forward):
        _require_bilinear(name, module, None)
        if "forward" in own:
            raise ValueError(f"{name} has had its forward replaced (by hooks, say): patch it before that")
        yield swap("forward", _ReboundForward(module))


@functools.cache
def _operators_called_by(forward: FunctionType) -> dict[str, Any]:
    """The names of its file by which a function calls the operator, and what they should mean."""
    names = {each.argval for each in dis.get_instructions(forward) if each.opname == "LOAD_GLOBAL"}
    found = {name: _replacement_for(forward.__globals__.get(name)) for name in sorted(names)}
    return {name: replacement for name, replacement in found.items() if replacement is not None}


def _replacement_for(value: object) -> Callable[..., Tensor] | SimpleNamespace | None:
    """Ours for a function, a partial function or an autograd function that is this operator; else None."""
    if isinstance(value, functools.partial):
        function = _replacement_for(value.func)
        return functools.partial(function, *value.args, **value.keywords) if callable(function) else None
    if isinstance(value, FunctionType):
        return _operator_for(value.__name__, value, skip=0)
    if isinstance(value, type) and issubclass(value, torch.autograd.Function):
        operator = _operator_for(value.__name__, value.forward, skip=1)
        return SimpleNamespace(apply=operator) if operator is not None else None
    return None


def _operator_for(name: str, function: Callable[..., Any], skip: int) -> _Operator | None:
    """`skip` leading parameters (self, ctx) are not the caller's."""
    if "deform" not in name.lower():
        return None
    parameters = list(inspect.signature(function).parameters.values())[skip:]
    names = tuple(each.name for each in parameters)
    if not _REQUIRED <= set(names) <= _KNOWN or set(_SHAPES).isdisjoint(names):
        return None
    return _Operator(
        names, {each.name: each.default for each in parameters if each.default is not each.empty}
    )


def _is_ours(value: object) -> bool:
    if isinstance(value, functools.partial):
        return _is_ours(value.func)
    return isinstance(value, (_Operator, _ReboundForward))


def _require_bilinear(name: str, module: nn.Module, value: object) -> None:
    """Refuse now what `_Operator` would refuse at its first call."""
    keywords = value.keywords if isinstance(value, functools.partial) else {}
    for method in (keywords.get("method"), *(getattr(module, each, None) for each in _METHOD_ATTRIBUTES)):
        if method == "discrete":
            raise ValueError(_other_method(name, method))


def _other_method(name: str, method: str) -> str:
    return f"{name} samples by the method {method!r}, not bilinearly: ops.patch cannot replace that"
