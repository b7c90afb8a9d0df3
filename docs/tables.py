"""Writes configuration.md and recipes.md from the code, so that they cannot be out of date.

python docs/tables.py            # `make docs` does it first; tests/test_docs.py notices if it was forgotten
"""

from __future__ import annotations

from pathlib import Path

from deformable_detr.config import (
    RECIPES,
    BackboneConfig,
    DataConfig,
    LossConfig,
    ModelConfig,
    RouteConfig,
    RunConfig,
    TrainConfig,
    settings_of,
)
from deformable_detr.config.checks import written

DOCS = Path(__file__).resolve().parent
NOTE = "<!-- Written by docs/tables.py from the code: change it there. -->\n"
GROUPS = {
    "model": ModelConfig,
    "model.backbone": BackboneConfig,
    "data": DataConfig,
    "train": TrainConfig,
    "train.loss": LossConfig,
    "train.routes": RouteConfig,
}
BASE = "deformable_detr_r50"


SETTINGS = [setting for setting in settings_of(RunConfig) if setting.group]


def first_paragraph(thing: object) -> str:
    return " ".join((thing.__doc__ or "").partition("\n\n")[0].split())


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
    for group, config in GROUPS.items():
        text += f"\n## {group}\n\n{first_paragraph(config)}\n\n"
        text += row("field", "default", "what it is") + "|---|---|---|\n"
        for setting in SETTINGS:
            if setting.group == group:
                default = written(setting.of(RunConfig()))
                text += row(f"`{setting.name}`", f"`{default}`", setting.help)
    return text


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
    values = {name: values_of(make()) for name, make in RECIPES.items()}
    text += row("recipe", "what", "settings") + "|---|---|---|\n"
    known = [BASE]
    for name, make in RECIPES.items():
        nearest = min(known, key=lambda other: len(differences(values[name], values[other])))
        changes = differences(values[name], values[nearest])
        told = f"`{nearest}` with<br>" + "<br>".join(changes) if name != BASE else "the defaults"
        text += row(f"`{name}`", first_paragraph(make), told)
        known.append(name)
    return text


def values_of(config: RunConfig) -> dict[str, str]:
    return {setting.path: written(setting.of(config)) for setting in SETTINGS}


def differences(values: dict[str, str], others: dict[str, str]) -> list[str]:
    return [f"`{path} {value}`" for path, value in values.items() if value != others[path]]


PAGES = {"configuration.md": configuration, "recipes.md": recipes}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
