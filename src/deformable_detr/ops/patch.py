"""Replace multi-scale deformable attention (paper, section 4.1, equation 3) in models of other projects.

Such models have the operator in one of three places: in a submodule without weights (transformers' Deformable
DETR, RT-DETR, Grounding DINO), in an attribute (D-FINE, RT-DETR's authors), or in a function of the module's
file, which `forward` calls by name (Mask2Former, RT-DETRv2, RF-DETR, mmcv). All of them give the operator's
arguments the same or similar names, by which the operator is recognised and called. Therefore, this module
imports none of these packages and also recognises copies of their code. It sets only attributes of module
instances: other models in the process, `state_dict` keys and the other project's source do not change.

Letters: B batch, S value tokens, S_l those of level l, M heads, D head dimension, Q queries, L levels,
K points per level.
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

# The names that other projects use for this operator's arguments.
_SHAPES = ("value_spatial_shapes_list", "value_spatial_shapes_hw", "value_spatial_shapes", "spatial_shapes")
_REQUIRED = {"value", "sampling_locations", "attention_weights"}
_OPTIONAL = {"num_points_list", "method"}
_IGNORED = {"level_start_index", "value_level_start_index", "im2col_step", "value_shape"}
_KNOWN = {*_SHAPES, *_REQUIRED, *_OPTIONAL, *_IGNORED}

_METHOD_ATTRIBUTES = ("method", "decoder_method")  # the kind of sampling in RT-DETRv2 and D-FINE


def patch(model: nn.Module) -> PatchHandle:
    """Replace multi-scale deformable attention everywhere inside `model` with `ops.ms_deform_attn`.

    Modules, functions and autograd functions are recognised if they have "deform" in their name, take
    `value`, spatial shapes, `sampling_locations` and `attention_weights`, and have no unknown arguments. They
    occur in all of transformers' models with this operator, in RF-DETR, D-FINE, RT-DETR, mmcv, the authors'
    code, and copies of these. Results and gradients of finite inputs stay the same up to rounding; the output
    has the dtype of `value`.

    A deep copy of a patched model is patched permanently. So is a patched model that was pickled as a whole;
    loading it requires this package. Patch a model that uses `torch.compile` before its first call.

    Returns:
        A handle that counts the replacements (`count`), undoes them (`undo()`), and can also be used as a
        context manager, which undoes them at the end of its block.

    Raises:
        ValueError: if there is nothing to replace, something is already patched (undo that first), or the
            operator cannot be replaced, as with RT-DETRv2's "discrete" method, which uses the nearest pixel.
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
    """The replacements that `patch` made in a model, which can be undone.

    A handle that is used as a context manager undoes the replacements at the end of the block.
    """

    def __init__(self, swaps: Sequence[_Swap]) -> None:
        self._swaps = tuple(swaps)
        self._undone = False

    @property
    def count(self) -> int:
        """The number of replacements; a `forward` that calls several operators counts once."""
        return len(self._swaps)

    def undo(self) -> None:
        """Restore the model's own operators. A second call does nothing.

        Raises:
            RuntimeError: if a patched attribute has been replaced since; nothing is changed in this case.
        """
        if self._undone:
            return
        for swap in self._swaps:
            if vars(swap.module).get(swap.attribute) is not swap.replacement:
                raise RuntimeError(
                    f"{swap.name}.{swap.attribute} was replaced after ops.patch: undo that first"
                )
        for swap in self._swaps:
            if swap.original is _MISSING:
                delattr(swap.module, swap.attribute)
            else:
                setattr(swap.module, swap.attribute, swap.original)
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


# ---- Our operator with their arguments -----------------------------------------------------------


class _Operator:
    """This package's operator, called with the arguments of another project's operator.

    `parameters` are the names of the other operator's parameters, in order, and `defaults` their default
    values by name. This is a class instead of a closure, so that a patched model can be pickled.
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
        raise ValueError(f"{num_points} points cannot be divided equally among {num_levels} levels")
    return (num_points // num_levels,) * num_levels


def _tokens_first(value: Tensor | Sequence[Tensor], tokens: int, heads: int) -> Tensor:
    """Return `value` as (B, S, M, D), for S `tokens` and M `heads`.

    The argument may have this layout, that of RF-DETR, (B, M, D, S), or that of D-FINE, which is a sequence
    of one tensor (B, M, D, S_l) per level.

    Raises:
        ValueError: if a tensor's shape matches neither of the first two layouts, or both.
    """
    if not isinstance(value, Tensor):
        return torch.cat(list(value), dim=-1).permute(0, 3, 1, 2)
    first = tuple(value.shape[1:3]) == (tokens, heads)
    last = (value.shape[1], value.shape[3]) == (heads, tokens)
    if first == last:
        raise ValueError(
            f"value of shape {tuple(value.shape)} should be (B, S, M, D) or (B, M, D, S) with S = {tokens} "
            f"tokens and M = {heads} heads, and {'it matches both' if first else 'it matches neither'}"
        )
    return value if first else value.permute(0, 3, 1, 2)


class _ReboundForward:
    """The `forward` of a module's class, in which the operator's names refer to this package's operator.

    This is a class instead of a bound method, so that each copy or pickle of the module has its own instance.
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
    """Return a function with the code of `forward`, whose globals refer to this package's operator.

    Neither the module's file nor other instances change.

    Python looks up a function's global names in one dictionary, its `__globals__`. The code is copied because
    torch.compile stores its results on the code object, and these are invalid for another dictionary.
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


# ---- Recognition of their operators --------------------------------------------------------------

_MISSING = object()


@dataclass(frozen=True, eq=False)
class _Swap:
    """The replacement of an attribute of a module.

    `name` is the module's name in the model. `original` is the instance's attribute before the replacement,
    or `_MISSING` if only the class had one.
    """

    name: str
    module: nn.Module
    attribute: str
    replacement: object
    original: object


def _swaps_in(name: str, module: nn.Module) -> Iterator[_Swap]:
    """Yield the replacements of one module's operators; `name` is the module's name in the model.

    Raises:
        ValueError: if the module is already patched, or one of its operators cannot be replaced.
    """
    name = name or type(module).__name__
    own = vars(module)
    if any(_is_ours(value) for value in own.values()):
        raise ValueError(f"{name} is already patched: undo that first")

    def swap(attribute: str, replacement: object) -> _Swap:
        return _Swap(name, module, attribute, replacement, own.get(attribute, _MISSING))

    forward = inspect.getattr_static(type(module), "forward", None)
    if not isinstance(forward, FunctionType):  # for example, the forward of a ScriptModule
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
            raise ValueError(f"{name} has a replaced forward (by hooks, for example): patch it before that")
        yield swap("forward", _ReboundForward(module))


@functools.cache
def _operators_called_by(forward: FunctionType) -> dict[str, Any]:
    """Return the replacement for each operator that `forward` calls, by the operator's global name."""
    names = {code.argval for code in dis.get_instructions(forward) if code.opname == "LOAD_GLOBAL"}
    replacements = {name: _replacement_for(forward.__globals__.get(name)) for name in sorted(names)}
    return {name: replacement for name, replacement in replacements.items() if replacement is not None}


def _replacement_for(value: object) -> Callable[..., Tensor] | SimpleNamespace | None:
    """Return the replacement for a function, partial function or autograd function that is the operator.

    For any other value, return None.
    """
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
    """Return the replacement for a function if it is the operator, otherwise None.

    `name` is the name of the function, or of the class that contains it. The function's first `skip`
    parameters, such as `self` and `ctx`, are not passed by callers.
    """
    if "deform" not in name.lower():
        return None
    parameters = list(inspect.signature(function).parameters.values())[skip:]
    names = tuple(parameter.name for parameter in parameters)
    if not _REQUIRED <= set(names) <= _KNOWN or set(_SHAPES).isdisjoint(names):
        return None
    defaults = {item.name: item.default for item in parameters if item.default is not item.empty}
    return _Operator(names, defaults)


def _is_ours(value: object) -> bool:
    if isinstance(value, functools.partial):
        return _is_ours(value.func)
    return isinstance(value, (_Operator, _ReboundForward))


def _require_bilinear(name: str, module: nn.Module, value: object) -> None:
    """Raise ValueError if a module samples by the method "discrete", which this package does not have.

    The method is a keyword of `value`, if that is a partial function, or an attribute of the module.
    `_Operator` would raise the error only at its first call. `name` is the module's name, for the message.
    """
    keywords = value.keywords if isinstance(value, functools.partial) else {}
    for method in (keywords.get("method"), *(getattr(module, key, None) for key in _METHOD_ATTRIBUTES)):
        if method == "discrete":
            raise ValueError(_other_method(name, method))


def _other_method(name: str, method: str) -> str:
    return f"{name} samples by the method {method!r}, not bilinearly: ops.patch cannot replace that"
