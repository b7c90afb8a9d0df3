"""What one must know of a model to use it, without its weights: in a checkpoint's `config.json`, and in the
metadata of an exported file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..config import RECIPES, DataConfig, ModelConfig, from_dict, to_dict
from ..errors import UserError
from ..structures import ClassTable
from ..system.machine import package_version

FORMAT_VERSION = 1
_FIELDS = {"format", "format_version", "recipe", "model", "classes", "preprocessing", "versions"}


@dataclass(frozen=True)
class Description:
    """`config`: of the model. `classes`: one entry per class of it. `data`: preprocessing. `recipe`: the name
    of the recipe that it comes from, or is closest to; always a name in `recipes.RECIPES`."""

    config: ModelConfig
    classes: ClassTable
    data: DataConfig
    recipe: str

    def to_dict(self, format: str) -> dict[str, Any]:
        """As JSON holds it, with the versions that wrote it."""
        return {
            "format": format,
            "format_version": FORMAT_VERSION,
            "recipe": self.recipe,
            "model": to_dict(self.config),
            "classes": to_dict(self.classes),
            "preprocessing": to_dict(self.data),
            "versions": {"deformable_detr": package_version(), "torch": torch.__version__},
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], where: str | Path) -> Description:
        """The inverse, of a file that nobody vouches for.

        Raises:
            UserError: `where` was written by a newer version, or is not what `to_dict` makes.
        """
        version = content.get("format_version")
        if version != FORMAT_VERSION:
            raise UserError(
                f"{where} has format version {version}, this version of deformable_detr reads "
                f"{FORMAT_VERSION}: install the version that wrote it, or a newer one."
            )
        if set(content) != _FIELDS:
            odd = sorted(set(content) ^ _FIELDS)
            raise UserError(
                f"{where} has unknown or missing fields ({', '.join(odd)}): it was changed by hand."
            )
        try:
            config = from_dict(ModelConfig, content["model"], "model.")
            data = from_dict(DataConfig, content["preprocessing"], "preprocessing.")
            table = content["classes"]
            classes = ClassTable(tuple(table["names"]), tuple(table["category_ids"]))
            if not all(name is None or isinstance(name, str) for name in classes.names):
                raise TypeError("a class name that is not a text")
            if not all(type(number) is int for number in classes.category_ids):
                raise TypeError("a category id that is not a whole number")
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
        return cls(config=config, classes=classes, data=data, recipe=recipe)
