"""The description of a model, which contains everything that is needed to use it except its weights.

A description is stored in a checkpoint's `config.json` and in the metadata of an exported file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import RECIPES, DataConfig, ModelConfig, from_dict, to_dict
from ..detections import ClassTable
from ..errors import UserError
from ..system.machine import package_version
from .decision import Decision

FORMAT_VERSION = 1
DECISION = "decision"  # the only field that may be missing, because some models have no thresholds
_FIELDS = {"format", "format_version", "recipe", "model", "classes", "preprocessing", "versions"}


@dataclass(frozen=True)
class Description:
    """Everything that is needed to use a model, except its weights.

    Attributes:
        config: the configuration of the model.
        classes: one entry per class of the model.
        data: the settings of the preprocessing.
        recipe: the name of the model's recipe, or of the closest one.
        decision: the minimum score of each class; None if no scores have been chosen.
    """

    config: ModelConfig
    classes: ClassTable
    data: DataConfig
    recipe: str
    decision: Decision | None = None

    def to_dict(self, format: str) -> dict[str, Any]:
        """Convert to JSON values, including the versions of this package and of PyTorch.

        `format` is the name of the file format, which becomes a part of the result.
        """
        import torch

        decision = {} if self.decision is None else {DECISION: self.decision.to_dict()}
        return {
            "format": format,
            "format_version": FORMAT_VERSION,
            "recipe": self.recipe,
            "model": to_dict(self.config),
            "classes": to_dict(self.classes),
            "preprocessing": to_dict(self.data),
            **decision,
            "versions": {"deformable_detr": package_version(), "torch": torch.__version__},
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], where: str | Path) -> Description:
        """Create a description from the content of an untrusted file.

        Args:
            content: the result of `to_dict`.
            where: the file's name in error messages.

        Raises:
            UserError: if the content has another format version, or is not a result of `to_dict`.
        """
        version = content.get("format_version")
        if version != FORMAT_VERSION:
            raise UserError(
                f"{where} has format version {version!r:.40}, but this version of deformable_detr reads "
                f"{FORMAT_VERSION}: install the version that wrote it, or a newer one."
            )
        if set(content) - {DECISION} != _FIELDS:
            mismatched = sorted((set(content) - {DECISION}) ^ _FIELDS)
            raise UserError(
                f"{where} has unknown or missing fields ({', '.join(mismatched)}): it was changed by hand."
            )
        try:
            config = from_dict(ModelConfig, content["model"], "model.")
            data = from_dict(DataConfig, content["preprocessing"], "preprocessing.")
            table = content["classes"]
            classes = ClassTable(tuple(table["names"]), tuple(table["category_ids"]))
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        except (TypeError, AttributeError, KeyError, ValueError) as error:
            raise UserError(f"{where} is malformed ({error!r}): it was changed by hand.") from error
        if len(classes) != config.num_classes:
            raise UserError(
                f"{where} names {len(classes)} classes, but model.num_classes is {config.num_classes}: "
                "it was changed by hand."
            )
        recipe = content["recipe"]
        if not isinstance(recipe, str) or recipe not in RECIPES:
            raise UserError(
                f"{where}: there is no recipe {recipe}; set recipe to one of {', '.join(RECIPES)}."
            )
        decision = None
        if DECISION in content:
            try:
                decision = Decision.from_dict(content[DECISION], len(classes))
            except ValueError as error:
                raise UserError(
                    f"{where}: {error}; correct it, or remove the whole field {DECISION}."
                ) from error
        return cls(config=config, classes=classes, data=data, recipe=recipe, decision=decision)
