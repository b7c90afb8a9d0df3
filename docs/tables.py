"""Writes configuration.md and recipes.md from the code, so that they cannot be out of date.

python docs/tables.py            # `make docs` does it first; tests/test_docs.py notices if it was forgotten
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from deformable_detr.config import (
    RECIPES,
    BackboneConfig,
    DataConfig,
    LossConfig,
    ModelConfig,
    TrainConfig,
    to_dict,
)

DOCS = Path(__file__).resolve().parent
NOTE = "<!-- Written by docs/tables.py from the code: change it there. -->\n"
GROUPS = {
    "model": ModelConfig,
    "model.backbone": BackboneConfig,
    "data": DataConfig,
    "train": TrainConfig,
    "train.loss": LossConfig,
}
BASE = "deformable_detr_r50"


def attributes(config: type) -> list[tuple[list[str], str]]:
    """What a dataclass's docstring says of its fields, and of which. An entry may speak of several:
    `a, b: …`; what follows `c:` after a full stop or semicolon is of c."""
    names = "|".join(re.escape(item.name) for item in dataclasses.fields(config))
    listed = rf"(?:{names})(?:, (?:{names}))*"
    _, _, text = (config.__doc__ or "").partition("Attributes:\n")
    found = []
    for entry in re.split(r"^        (?=\w)", text, flags=re.MULTILINE):
        parts = re.split(rf"(?:^|(?<=[.;] ))({listed}): ", without_sections(" ".join(entry.split())))
        for heads, words in zip(parts[1::2], parts[2::2], strict=True):
            found.append((heads.split(", "), words.strip().rstrip(".;") + "."))
    return found


def choices(config: type) -> dict[str, tuple[str, ...]]:
    """The words that a field may hold, of fields that hold one of a few."""
    hints = get_type_hints(config)
    return {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}


def without_sections(text: str) -> str:
    """Without references to the specification, which is not in this repository."""
    return re.sub(r"[:;,]? ?spec\.md (?:§[\d.]+(?:, )?)+", "", text).replace("()", "").replace(" .", ".")


def written(value: Any) -> str:
    """As one writes it in YAML or after a flag."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def configuration() -> str:
    text = (
        "# Configuration\n\n"
        + NOTE
        + """
Every field can be set in three ways, each stronger than the one before: by the recipe (`--recipe`), in a
YAML file (`--config run.yaml`), and by a flag (`--train.epochs 12`). In Python: `dd.train(data, recipe,
output, epochs=12)`, where a name needs its group only if it is not unique, as in
`**{"train.loss.class_weight": 1.0}`.

```yaml
model:
  num_queries: 100
train:
  epochs: 12
  lr: 1.0e-4
```

A run folder keeps the whole of it as `config.yaml`, which can be given to `--config` again. What cannot
work is refused when the configuration is made, with a sentence that names the field. Defaults are those of
`deformable_detr_r50`; what other recipes change: [Recipes](recipes.md).
"""
    )
    for path, config in GROUPS.items():
        summary = without_sections((config.__doc__ or "").partition("\n")[0])
        defaults = to_dict(config())
        text += f"\n## {path}\n\n{summary}\n\n" + row("field", "default", "what it is") + "|---|---|---|\n"
        for names, words in attributes(config):
            text += row(
                "<br>".join(f"`{name}`" for name in names),
                "<br>".join(f"`{written(defaults[name])}`" for name in names),
                words,
            )
    return text


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def recipes() -> str:
    text = (
        "# Recipes\n\n"
        + NOTE
        + f"""
A recipe is a whole configuration: model, data and training. `deformable-detr train DATA --recipe NAME`
trains it, `dd.create(NAME)` makes its untrained model, and any field can be changed
([Configuration](configuration.md)). AP figures are the papers' or the authors', on COCO; what has been
measured here is in [The paper, run here](paper.md) and [Training, measured](training.md).

The last column says what a recipe sets otherwise than the one above it that is most like it. The defaults,
those of `{BASE}`, are in [Configuration](configuration.md).

"""
    )
    settings = {name: flat(to_dict(make())) | {"recipe": ""} for name, make in RECIPES.items()}
    text += row("recipe", "what", "settings") + "|---|---|---|\n"
    known = [BASE]
    for name, make in RECIPES.items():
        nearest = min(known, key=lambda other: len(differences(settings[name], settings[other])))
        changes = differences(settings[name], settings[nearest])
        told = f"`{nearest}` with<br>" + "<br>".join(changes) if name != BASE else "the defaults"
        summary = " ".join((make.__doc__ or "").strip().partition("\n\n")[0].split())
        text += row(f"`{name}`", summary, told)
        known.append(name)
    return text


def differences(values: dict[str, Any], others: dict[str, Any]) -> list[str]:
    return [f"`{path} {written(value)}`" for path, value in values.items() if value != others[path]]


PAGES = {"configuration.md": configuration, "recipes.md": recipes}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
