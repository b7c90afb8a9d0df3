"""The paper's claims, measured on finished runs: the epochs that DETR needs, and the gain of each ingredient.

AP is a fraction here; published differences are in percent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from scipy.stats import t as student

from . import published
from .finished import Experiment
from .queue import ROWS

DEFORMABLE = "deformable_detr_r50"
DENSE = ("detr_r50", "detr_r50_dc5", "detr_r50_dc5_plus")

CHANCE = 0.05  # for each sign, the probability of reporting a difference that does not exist

Verdict = Literal["one seed", "as published", "undecided", "not as published", "not run"]


@dataclass(frozen=True)
class Ingredient:
    """A difference in AP between two rows that the paper or the repository reports. `published` is that
    difference, in percent. `published_with` is the source's result of the first row, if it differs from the
    paper's."""

    label: str
    with_it: str
    without: str
    published_with: published.Published | None = None

    @property
    def published(self) -> float:
        first = self.published_with or ROWS[self.with_it].published
        return round(first.AP - ROWS[self.without].published.AP, 1)


INGREDIENTS = (
    Ingredient(
        "multi-scale inputs", "deformable_detr_r50_own_level_k1", "deformable_detr_r50_single_scale_k1"
    ),
    Ingredient("K = 4 instead of 1", "deformable_detr_r50_own_level", "deformable_detr_r50_own_level_k1"),
    Ingredient("multi-scale attention", DEFORMABLE, "deformable_detr_r50_own_level"),
    Ingredient(
        "all levels instead of one",
        DEFORMABLE,
        "deformable_detr_r50_single_scale",
        published.DEFORMABLE_50_REPOSITORY,
    ),
    Ingredient("an FPN on top", "deformable_detr_r50_fpn", DEFORMABLE),
    Ingredient("a BiFPN on top", "deformable_detr_r50_bifpn", DEFORMABLE),
    Ingredient("iterative refinement", "deformable_detr_r50_refine", DEFORMABLE),
    Ingredient("two stages", "deformable_detr_r50_two_stage", "deformable_detr_r50_refine"),
    Ingredient("DETR-DC5: focal loss", "detr_r50_dc5_plus", "detr_r50_dc5_50_epochs"),
)


@dataclass(frozen=True)
class Convergence:
    """The training that a DETR needs to reach `target`, the AP of Deformable DETR after `target_epochs`.
    `epochs` is the epoch of the first evaluation at which DETR's mean curve reaches the target; None if it
    does not within `most_epochs`, which then replaces it in the ratios. `times` is the ratio of `epochs`
    to `target_epochs`, and `times_seconds` the ratio of the training times."""

    data: str
    row: str
    target: float
    target_epochs: int
    epochs: int | None
    most_epochs: int
    times: float
    times_seconds: float


@dataclass(frozen=True)
class Effect:
    """The gain in AP from an ingredient, if both of its rows were run for the same epochs. `mean` and
    `spread` are over the seeds that both have; `mean` is None if there are none, and `spread` if there are
    fewer than two."""

    data: str
    ingredient: str
    epochs: int | None
    mean: float | None
    spread: float | None
    seeds: int
    published: float
    verdict: Verdict


def convergence(experiments: Sequence[Experiment], data: str) -> list[Convergence]:
    """Compare each DETR on a data set with Deformable DETR's shortest schedule that was run there.

    Return an empty list if Deformable DETR was not run.

    Every evaluation counts, not only the last one. In the middle of a schedule DETR's AP is lower than at the
    end of a schedule of that length, because the learning rate has not dropped yet.
    """
    own = [each for each in experiments if each.data == data]
    targets = [each for each in own if each.row == DEFORMABLE and each.values("AP")]
    if not targets:
        return []
    target = min(targets, key=lambda each: each.epochs)
    wanted = fmean(target.values("AP"))
    found = []
    for row in DENSE:
        rivals = [each for each in own if each.row == row]
        if not rivals:
            continue
        longest = max(rivals, key=lambda each: each.epochs)
        reached = [
            (epoch, each) for each in rivals for epoch, value in each.curve("AP").items() if value >= wanted
        ]
        epochs, by = min(reached, key=lambda pair: pair[0]) if reached else (None, longest)
        spent = longest.epochs if epochs is None else epochs
        found.append(
            Convergence(
                data=data,
                row=row,
                target=wanted,
                target_epochs=target.epochs,
                epochs=epochs,
                most_epochs=longest.epochs,
                times=spent / target.epochs,
                times_seconds=by.hours * spent / by.epochs / target.hours,
            )
        )
    return found


def effects(experiments: Sequence[Experiment], data: str) -> list[Effect]:
    """Return the gain of each ingredient with the shortest schedule that both of its rows were run with."""
    own = {(each.row, each.epochs): each for each in experiments if each.data == data}
    return [_effect(ingredient, own, data) for ingredient in INGREDIENTS]


def _effect(ingredient: Ingredient, own: Mapping[tuple[str, int], Experiment], data: str) -> Effect:
    # Table 1 has two rows of DETR-DC5, published at 500 and at 50 epochs; here it is one recipe.
    with_it, without = (_recipe_row(name) for name in (ingredient.with_it, ingredient.without))
    common = sorted(epochs for row, epochs in own if row == with_it and (without, epochs) in own)
    differences: list[float] = []
    if common:
        first, second = (
            {run.seed: run.metrics["AP"] for run in own[row, common[0]].runs if run.metrics["AP"] >= 0}
            for row in (with_it, without)
        )
        differences = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
    mean = fmean(differences) if differences else None
    spread = stdev(differences) if len(differences) > 1 else None
    return Effect(
        data=data,
        ingredient=ingredient.label,
        epochs=common[0] if differences else None,
        mean=mean,
        spread=spread,
        seeds=len(differences),
        published=ingredient.published,
        verdict=_verdict(differences, ingredient.published),
    )


def _recipe_row(name: str) -> str:
    return ROWS[name].recipe


def _verdict(differences: Sequence[float], published: float) -> Verdict:
    """Return whether the differences have the published sign, or that they are too few or may be chance."""
    if not differences:
        return "not run"
    if len(differences) == 1:
        return "one seed"
    if not has_a_sign(differences):
        return "undecided"
    return "as published" if fmean(differences) * published > 0 else "not as published"


def has_a_sign(differences: Sequence[float]) -> bool:
    """Return True if chance would give the mean of these differences its sign in less than 5 % of all cases.

    This is Student's one-sided t test; there must be at least two differences.
    """
    error = stdev(differences) / len(differences) ** 0.5
    least = float(student.ppf(1 - CHANCE, len(differences) - 1)) * error
    result: bool = abs(fmean(differences)) > least
    return result
