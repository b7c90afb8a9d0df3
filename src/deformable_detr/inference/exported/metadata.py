"""The metadata of an exported file: two JSON strings that the file contains in addition to its graph.

`deformable_detr`: the description of the model, with versions (checkpoint/description.py).
`deformable_detr_certificate`: the drift, which is the measured difference between the predictions of a draft
of the file and those of the PyTorch model (exporter/certificate.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...checkpoint import Description
from ...errors import UserError

FORMAT = "deformable_detr_export"
DESCRIPTION, CERTIFICATE = "deformable_detr", "deformable_detr_certificate"
INPUTS, OUTPUTS = ("pixels", "mask"), ("logits", "boxes_cxcywh")
MAX_CHARACTERS = 8_000_000  # a description has about 4,000, plus 20 for each class


@dataclass(frozen=True)
class Metadata:
    """The contents of both JSON strings.

    Attributes:
        description: the description of the model.
        certificate: the measured drift as JSON values; None in a draft, for which none has been measured yet.
    """

    description: Description
    certificate: dict[str, Any] | None

    def to_texts(self) -> dict[str, str]:
        texts = {DESCRIPTION: _text(self.description.to_dict(FORMAT))}
        if self.certificate is not None:
            texts[CERTIFICATE] = _text(self.certificate)
        return texts

    @classmethod
    def from_texts(cls, texts: Mapping[str, str], path: Path) -> Metadata:
        """Parse the results of `to_texts`, JSON strings by name.

        Args:
            texts: the strings that the file contains; the certificate may be missing.
            path: the file's path in error messages.

        Raises:
            UserError: if the description is missing or not a result of `to_texts`, or a string is too long or
                not a JSON object.
        """
        if DESCRIPTION not in texts:
            raise UserError(
                f"{path} does not describe its classes and preprocessing, so it was not written by "
                "`deformable-detr export`: export the model again with it."
            )
        where = f"the metadata of {path}"
        content = _object(texts[DESCRIPTION], where)
        if content.get("format") != FORMAT:
            raise UserError(f"{where} has the format {content.get('format')!r}, not {FORMAT!r}.")
        certificate = None
        if CERTIFICATE in texts:
            certificate = _object(texts[CERTIFICATE], f"the certificate in {path}")
        return cls(Description.from_dict(content, where), certificate)


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=True, allow_nan=False)


def _object(text: str, where: str) -> dict[str, Any]:
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"{where} has {len(text):,} characters, more than {MAX_CHARACTERS:,}: do not use it.")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} cannot be read as JSON ({error}).") from error
    if not isinstance(content, dict):
        raise UserError(f"{where} must be a JSON object, not {type(content).__name__}: export it again.")
    return content
