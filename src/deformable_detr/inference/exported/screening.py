"""A .pt2 archive, looked through before `torch.export.load` may have it.

That function trusts its file: it unpickles what the file says is pickled, evaluates its symbolic expressions
as Python (by sympy), and resolves `torch.…` names to whatever they lead to. The files that this package
writes need none of that. So everything in the archive must be of a kind that they have: raw tensors,
operators by name, plain identifiers, arithmetic over the picture's size.
"""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

from ...errors import UserError

MAX_JSON = 200_000_000  # characters; a ResNet-50 model has some 10 million

_MEMBERS = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/\w+|models/model\.json"
    r"|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|data/sample_inputs/model\.pt|extra/\w+"
)
_OPERATORS = re.compile(
    r"torch\.ops\.aten\.(?!from_file)[a-z]\w*\.\w+|torch\.ops\.aten\._(assert_tensor_metadata|to_copy)\.\w+"
    r"|torch\.ops\.aten\.__(and|or|xor)__\.\w+"
    r"|torch\.ops\.deformable_detr\.\w+\.default|torch\.ops\.torchvision\.deform_conv2d\.default"
    r"|torch\.sym_(min|max|float|int|not)"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pow|getitem|eq|ne|lt|le|gt|ge)"
)
# What torch writes for an expression over sizes: sympy's constructors of numbers, and of sums and such.
_EXPRESSION = re.compile(
    r"(?:(?:Symbol|Integer|Rational|Float|Add|Mul|Pow|Min|Max|Mod|PythonMod|FloorDiv|CleanDiv|IntTrueDiv"
    r"|ModularIndexing|ToFloat|CeilToInt|FloorToInt|TruncToInt|Eq|Ne|Equality|Unequality|LessThan"
    r"|StrictLessThan|GreaterThan|StrictGreaterThan|And|Or|Not)\(|'[su]\d+'|[su]\d+"
    r"|(?:positive|integer|nonnegative|real)=(?:True|False)|true|false|True|False|\d+|[-+*/(), ])*"
)
_TEXT = re.compile(r"[\w.+\-:]*")
_TREE = re.compile(r'[\w.\[\]{}",: ]*')  # the nesting of inputs and outputs, as JSON in a text
_TREES = {"in_spec", "out_spec"}
_UNUSED = {"guards_code", "stack_trace"}  # code that is run only where one asks torch to check guards
_FOREIGN = {"as_custom_obj", "as_graph", "as_operator", "as_string_to_argument", "custom_obj", "token"}


def screen(path: Path) -> dict[str, str]:
    """The archive's extra texts.

    Raises:
        UserError: something in the archive is not of a kind that this package writes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {_inner(name): name for name in archive.namelist()}
            for inner in members:
                if not _MEMBERS.fullmatch(inner):
                    raise _refusal(path, f"the member {inner}")
            texts: dict[str, Any] = {}
            for inner, name in members.items():
                if inner.endswith(".json") or inner.startswith("extra/"):
                    if archive.getinfo(name).file_size > MAX_JSON:
                        raise _refusal(path, f"{inner} of {archive.getinfo(name).file_size:,} bytes")
                    texts[inner] = archive.read(name).decode("utf-8")
            if archive.read(members["data/sample_inputs/model.pt"]):
                raise _refusal(path, "example inputs")
            for each in ("weights", "constants"):
                _check_tensors(path, json.loads(texts[f"data/{each}/model_{each}_config.json"]))
            _check(path, json.loads(texts["models/model.json"]), "")
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, RecursionError, NotImplementedError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path} cannot be read, it is damaged or was not made by `deformable-detr export` ({error!r})."
        ) from error
    return {name.removeprefix("extra/"): text for name, text in texts.items() if name.startswith("extra/")}


def _inner(name: str) -> str:
    """The name without the archive's own folder."""
    return name.partition("/")[2]


def _refusal(path: Path, what: str) -> UserError:
    return UserError(
        f"{path} holds {what}, which files of this package never do, and which could run code: use a file "
        "that `deformable-detr export` of this version made."
    )


def _check_tensors(path: Path, content: Any) -> None:
    for name, entry in content["config"].items():
        if (
            entry["use_pickle"] is not False
            or not _TEXT.fullmatch(name)
            or not _TEXT.fullmatch(entry["path_name"])
        ):
            raise _refusal(path, f"the pickled tensor {name!r}")


def _check(path: Path, content: Any, key: str) -> None:
    """Every value below, known by the key that it stands under."""
    if isinstance(content, dict):
        for name, value in content.items():
            if name in _FOREIGN and value not in (None, {}, []):
                raise _refusal(path, f"{name} in its graph")
            if name == "metadata" and value != {}:
                raise _refusal(path, "remarks about its graph")
            if not _TEXT.fullmatch(name):
                raise _refusal(path, f"the name {name!r:.60}")
            if name not in _UNUSED:
                _check(path, value, name)
    elif isinstance(content, list):
        for value in content:
            _check(path, value, key)
    elif isinstance(content, str):
        kind = {"target": _OPERATORS, "expr_str": _EXPRESSION}.get(key, _TREE if key in _TREES else _TEXT)
        if not kind.fullmatch(content):
            raise _refusal(path, f"the {key} {content!r:.80}")
