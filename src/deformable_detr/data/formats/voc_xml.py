"""Parsing one XML file of Pascal VOC."""

from __future__ import annotations

from dataclasses import dataclass, field
from xml.parsers import expat

from ...errors import UserError
from ..records import Problem
from . import values
from .assembly import read_annotation


@dataclass
class Object:
    """One object, with the line of its <object> and, if there is one, of its <bndbox> (`box_line`)."""

    line: int
    box_line: int
    name: str = ""
    difficult: bool = False
    corners: dict[str, str] = field(default_factory=dict)


@dataclass
class Annotation:
    file_name: str = ""
    size: dict[str, str] = field(default_factory=dict)
    objects: list[Object] = field(default_factory=list)


class _RefusedError(Exception):
    """Raised for XML that is not an annotation of Pascal VOC or has a document type.

    A document type allows entity bombs and external files, and no annotation needs one.
    """


def parse(file: str) -> Annotation | Problem:
    """Return the annotation, or the reason why it is unreadable (`where` is then ":line", or empty).

    The parser is expat, which reports the line of each element and allows a document type to be refused.
    """
    try:
        data = read_annotation(file)
    except UserError as error:
        return Problem("unreadable-annotation", "", f"{error} Left out")
    if not data.strip():
        return Problem("unreadable-annotation", "", "the file is empty: left out")

    annotation = Annotation()
    path: list[str] = []
    text: list[str] = []
    parser = expat.ParserCreate()
    parser.buffer_text = True

    def doctype(*_: object) -> None:
        raise _RefusedError("it declares a document type, which is refused")

    def start(tag: str, _: dict[str, str]) -> None:
        if not path and tag != "annotation":
            raise _RefusedError(f"its root is <{tag}>, not <annotation>")
        path.append(tag)
        text.clear()
        if path[1:] == ["object"]:
            line = parser.CurrentLineNumber
            annotation.objects.append(Object(line, line))
        elif path[1:] == ["object", "bndbox"]:
            annotation.objects[-1].box_line = parser.CurrentLineNumber

    def end(tag: str) -> None:
        content = "".join(text).strip()
        text.clear()
        match path[1:]:
            case ["filename"]:
                annotation.file_name = content
            case ["size", side]:
                annotation.size[side] = content
            case ["object", "name"]:
                annotation.objects[-1].name = content
            case ["object", "difficult"]:
                annotation.objects[-1].difficult = bool(values.flag(content))
            case ["object", "bndbox", corner]:
                annotation.objects[-1].corners[corner] = content
        path.pop()

    parser.StartDoctypeDeclHandler = doctype
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text.append
    try:
        parser.Parse(data, True)
    except _RefusedError as error:
        where = f":{parser.CurrentLineNumber}"
        return Problem("unreadable-annotation", where, f"{error}: left out")
    except expat.ExpatError as error:
        return Problem(
            "unreadable-annotation",
            f":{error.lineno}",
            f"not well-formed XML ({expat.ErrorString(error.code)}): left out",
        )
    except (ValueError, LookupError) as error:  # an encoding that Python or expat does not support
        return Problem("unreadable-annotation", "", f"not readable XML ({error}): left out")
    return annotation
