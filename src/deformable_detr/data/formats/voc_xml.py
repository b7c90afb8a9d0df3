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
    """An object of an XML file. Its name and corners are text.

    `line` is the line of the element <object>, and `box_line` that of its <bndbox>, or that of <object> if
    there is no <bndbox>. `corners` maps the names xmin, ymin, xmax and ymax to their values.
    """

    line: int
    box_line: int
    name: str = ""
    difficult: bool = False
    corners: dict[str, str] = field(default_factory=dict)


@dataclass
class Annotation:
    """The content of an XML file: the text of <filename> and of the elements of <size>, and the objects."""

    file_name: str = ""
    size: dict[str, str] = field(default_factory=dict)
    objects: list[Object] = field(default_factory=list)


class _RefusedError(Exception):
    """Raised for XML that is not an annotation of Pascal VOC or has a document type declaration.

    Such a declaration (<!DOCTYPE …>) can define entities that expand to gigabytes or include other files,
    and no annotation needs one.
    """


class _Reader:
    """A parser that fills an `Annotation` from expat's events; expat reports the line of each element."""

    def __init__(self) -> None:
        self.annotation = Annotation()
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartDoctypeDeclHandler = self._doctype
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self._text: list[str] = []
        self.parser.CharacterDataHandler = self._text.append
        self._path: list[str] = []

    def _doctype(self, *_: object) -> None:
        raise _RefusedError("it declares a document type, which is refused")

    def _start(self, tag: str, _: dict[str, str]) -> None:
        if not self._path and tag != "annotation":
            raise _RefusedError(f"its root is <{tag}>, not <annotation>")
        self._path.append(tag)
        self._text.clear()
        line = self.parser.CurrentLineNumber
        if self._path[1:] == ["object"]:
            self.annotation.objects.append(Object(line, line))
        elif self._path[1:] == ["object", "bndbox"]:
            self.annotation.objects[-1].box_line = line

    def _end(self, tag: str) -> None:
        content = "".join(self._text).strip()
        self._text.clear()
        match self._path[1:]:
            case ["filename"]:
                self.annotation.file_name = content
            case ["size", side]:
                self.annotation.size[side] = content
            case ["object", "name"]:
                self.annotation.objects[-1].name = content
            case ["object", "difficult"]:
                self.annotation.objects[-1].difficult = bool(values.flag(content))
            case ["object", "bndbox", corner]:
                self.annotation.objects[-1].corners[corner] = content
        self._path.pop()


def parse(file: str) -> Annotation | Problem:
    """Return the content of an XML file, or a `Problem` if the file cannot be read or is not an annotation.

    The problem's `where` is a colon and the line, or empty if no line is known.
    """
    try:
        data = read_annotation(file)
    except UserError as error:
        return Problem("unreadable-annotation", "", f"{error} Left out")
    if not data.strip():
        return Problem("unreadable-annotation", "", "the file is empty: left out")
    reader = _Reader()
    try:
        reader.parser.Parse(data, True)
    except _RefusedError as error:
        where = f":{reader.parser.CurrentLineNumber}"
        return Problem("unreadable-annotation", where, f"{error}: left out")
    except expat.ExpatError as error:
        return Problem(
            "unreadable-annotation",
            f":{error.lineno}",
            f"not well-formed XML ({expat.ErrorString(error.code)}): left out",
        )
    except (ValueError, LookupError) as error:  # an encoding that Python or expat does not support
        return Problem("unreadable-annotation", "", f"not readable XML ({error}): left out")
    return reader.annotation
