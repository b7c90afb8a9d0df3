"""Translate a traced graph to ONNX in as few passes over it as possible, and simplify the result.

Each pass of PyTorch over the graph computes the sizes of all tensors again, as expressions of the picture's
height and width, which takes most of an export's time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..inference.exported.metadata import INPUTS, OUTPUTS
from ..inference.exported.model import engine

OPSET = 18  # GridSample was added in 16; 20 renamed its mode, and not every engine supports the new name
# Operators whose results have their own memory.
_NEW_MEMORY = ("aten.conv2d.", "aten.linear.", "aten.add.", "aten.zeros_like.")


def translated(program: torch.export.ExportedProgram) -> torch.onnx.ONNXProgram:
    """Translate a traced graph to ONNX, and simplify it. The program is changed.

    `torch.onnx.export` first decomposes operators for which it has no translation. This traces the whole
    graph again, which takes longer than all other steps together, even if there is nothing to decompose.
    Therefore the step is left out, unless the translation fails without it.
    """
    program.graph.eliminate_dead_code()
    _replace_operations_in_place(program.graph)
    decompose = program.run_decompositions
    # There is no option for this. The method is public, and torch.onnx.export calls it.
    program.run_decompositions = lambda *_: program
    try:
        result = _translated(program)
    except torch.onnx.OnnxExporterError:
        program.run_decompositions = decompose
        result = _translated(program)
    _simplify(result.model)
    return result


def _replace_operations_in_place(graph: torch.fx.Graph) -> None:
    """Replace in-place operations by ones with a new result, if nothing else reads the changed memory.

    ONNX has no in-place operations. Those that remain must be decomposed.
    """
    for node in graph.nodes:
        name = str(node.target).split(".")  # aten, add_, Tensor
        if len(name) == 3 and name[0] == "aten" and name[1].endswith("_") and name[1][0] != "_":
            written = node.args[0]
            if str(written.target).startswith(_NEW_MEMORY) and len(written.users) == 1:
                node.target = getattr(getattr(torch.ops.aten, name[1][:-1]), name[2])


def _translated(program: torch.export.ExportedProgram) -> torch.onnx.ONNXProgram:
    op, aten = engine("onnxscript").opset18, torch.ops.aten
    # Operators of these models that torch.onnx does not translate, but decomposes.
    translations: dict[Callable[..., Any], Callable[..., Any]] = {
        aten.to.dtype: lambda x, dtype: op.Cast(x, to=dtype),
        aten.rsub.Scalar: lambda x, number: op.Sub(op.CastLike(number, x), x),
        aten.__and__.Tensor: lambda x, y: op.And(x, y),
    }
    result = torch.onnx.export(
        program,
        (),
        input_names=list(INPUTS),
        output_names=list(OUTPUTS),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
        optimize=False,
        custom_translation_table=translations,
    )
    assert result is not None
    return result


def _simplify(model: Any) -> None:
    """Fold constants and remove what is unused or repeated in a model of onnx_ir.

    `onnxscript.optimizer.optimize` also searches for about a hundred patterns, of which these models have
    hardly any, and takes five times as long.
    """
    optimizer, passes = engine("onnxscript.optimizer"), engine("onnx_ir.passes.common")
    passes.InlinePass()(model)
    for _ in range(2):
        optimizer.fold_constants(model, onnx_shape_inference=True)
        passes.RemoveUnusedNodesPass()(model)
    for simplify in (
        passes.RemoveUnusedFunctionsPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    ):
        simplify(model)
