"""fitting.py: length, warm-up, queries and picture size of a run follow from its data, unless set by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deformable_detr.config import RECIPES, RunConfig, override, read_config, recipe
from deformable_detr.data.formats import read_split
from deformable_detr.data.records import ImageRecord, Split
from deformable_detr.training import train
from deformable_detr.training.fitting import fit_to_data
from tests.support.tiny import changed_data, tiny_config

pytestmark = pytest.mark.usefixtures("one_thread")


def of_size(split: Split, num_images: int, most_objects: int = 3) -> Split:
    """Return a split of so many images, of which one has `most_objects` objects, and a crowd region."""

    def with_objects(count: int) -> ImageRecord:
        return replace(
            split.images[0],
            boxes_xyxy=np.tile([0.0, 0.0, 9.0, 9.0], (count + 1, 1)),
            labels=np.zeros(count + 1, dtype=np.int64),
            crowd=np.array([*[False] * count, True]),
        )

    return replace(split, images=(with_objects(most_objects), *[with_objects(1)] * (num_images - 1)))


@pytest.fixture
def split(tiny_data: Path) -> Split:
    return read_split(tiny_data, "train")


def fitted(split: Split, num_images: int, most: int = 3, **changes: Any) -> tuple[RunConfig, list[str]]:
    config = override(recipe("deformable_detr_lite"), changes)
    return fit_to_data(config, of_size(split, num_images, most), config.train.batch_size)


def test_sixteen_pictures_get_a_minimum_of_updates_and_a_tenth_of_warm_up(split: Split) -> None:
    config, lines = fitted(split, 16)
    assert config.train.epochs == 175  # 700 updates of 4 pictures
    assert config.train.warmup_steps == 70
    assert config.train.evaluate_every == 30  # instead of 4: about as many evaluations
    assert len(lines) == 2
    for line, facts in zip(
        lines, [("175", "24", "--train.epochs"), ("70", "100", "warmup_steps")], strict=True
    ):
        assert all(fact in line for fact in facts)


def test_common_data_sets_keep_the_recipe(split: Split) -> None:
    config, lines = fitted(split, 205, most=30)
    assert config == recipe("deformable_detr_lite")
    assert lines == []


@pytest.mark.parametrize(("most", "queries"), [(66, 100), (67, 150), (313, 500), (600, 900), (601, 900)])
def test_queries_have_room_for_the_fullest_picture(split: Split, most: int, queries: int) -> None:
    config, lines = fitted(split, 205, most)
    assert config.model.num_queries == queries
    assert len(lines) == (queries > 100)
    if lines:
        assert f"{queries} queries" in lines[0]
        assert f"{most} objects" in lines[0]


def test_more_objects_than_queries_are_a_warning(split: Split) -> None:
    for most, changes in ((901, {}), (60, {"num_queries": 50})):
        _, lines = fitted(split, 205, most, **changes)
        assert "warning" in lines[-1]
        assert f"{most} objects" in lines[-1]


def photographs(
    split: Split, size: tuple[int, int], sides: list[int], labels: list[int] | None = None
) -> Split:
    """Return a split of 205 pictures of `size` (H, W), each with square objects of these sides and labels."""
    picture = replace(
        split.images[0],
        size=size,
        boxes_xyxy=np.array([[0, 0, side, side] for side in sides], dtype=np.float64).reshape(-1, 4),
        labels=np.array(labels or [0] * len(sides), dtype=np.int64),
        crowd=np.zeros(len(sides), dtype=bool),
    )
    return replace(split, images=(picture,) * 205)


@pytest.mark.parametrize(
    ("size", "sides", "image_size"),
    [
        ((480, 640), [30, 46, 90], 352),  # half of the objects have 34 pixels after resizing
        ((480, 640), [30, 40, 90], 416),
        ((480, 640), [30, 36, 90], 416),  # at most 1.2 times the recipe's size for 34 pixels
        ((1080, 1920), [50, 50], 576),  # more for 27 pixels
        ((1080, 1920), [2, 2], 704),  # at most twice the recipe's size
        ((400, 640), [6, 6], 384),  # no more pixels than the pictures have, in steps of 32
        ((200, 300), [6, 6], 352),
        ((480, 640), [], 352),
    ],
)
def test_small_objects_are_shown_larger(
    split: Split, size: tuple[int, int], sides: list[int], image_size: int
) -> None:
    usual = recipe("deformable_detr_lite")
    data = photographs(split, size, sides)
    config, lines = fit_to_data(usual, data, 4)
    assert config.data.image_size == image_size
    assert config.data.max_size == round(usual.data.max_size * image_size / usual.data.image_size)
    assert config.data.train_sizes[-1] == image_size
    assert [size % 32 for size in config.data.train_sizes] == [0, 0, 0, 0]
    assert fit_to_data(config, data, 4) == (config, [])
    assert len(lines) == (image_size > 352)
    if lines:
        assert all(fact in lines[0] for fact in (str(image_size), "352", "--data.image_size"))


@pytest.mark.parametrize(("others", "image_size"), [(9, 416), (30, 352)])
def test_a_common_class_of_small_objects_counts_too(split: Split, others: int, image_size: int) -> None:
    """One platelet and many blood cells in each picture; of 31 objects, one is less than 5 %."""
    data = photographs(split, (480, 640), [38] + [90] * others, [1] + [0] * others)
    config, lines = fit_to_data(recipe("deformable_detr_lite"), data, 4)
    assert config.data.image_size == image_size
    if image_size > 352:
        assert f"the class {split.classes.name(1)} " in lines[0]
        assert "28 pixels" in lines[0]


@pytest.mark.parametrize("changes", [{"image_size": 384}, {"max_size": 640}, {"train_sizes": [320]}])
def test_a_picture_size_that_was_set_stays(split: Split, changes: dict[str, Any]) -> None:
    config = override(recipe("deformable_detr_lite"), changes)
    assert fit_to_data(config, photographs(split, (1080, 1920), [20]), 4) == (config, [])


def test_values_that_were_set_stay(split: Split) -> None:
    config, lines = fitted(split, 16, 80, epochs=3, warmup_steps=7, num_queries=90)
    assert (config.train.epochs, config.train.warmup_steps, config.model.num_queries) == (3, 7, 90)
    assert lines == []


def test_a_fitted_configuration_is_not_fitted_again(split: Split) -> None:
    once, _ = fitted(split, 16, 313)
    again, lines = fit_to_data(once, of_size(split, 16, 313), 4)
    assert again == once
    assert lines == []


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "deformable_detr_lite"])
def test_other_recipes_are_never_fitted(split: Split, name: str) -> None:
    config = recipe(name)
    assert fit_to_data(config, of_size(split, 4, 400), 4) == (config, [])


def test_a_run_says_and_saves_what_was_fitted_and_counts_empty_pictures(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def empty_one(content: dict[str, Any]) -> None:
        first = content["images"][0]["id"]
        content["annotations"] = [row for row in content["annotations"] if row["image_id"] != first]

    data = changed_data(tiny_data, tmp_path / "data", empty_one)
    empty = sum(len(record) == 0 for record in read_split(data, "train").images)
    assert empty >= 1
    base = tiny_config(fit_to_data=True, evaluate_every=4, max_steps=6)
    config = replace(base, train=replace(base.train, epochs=24, warmup_steps=100))
    train(data, config, tmp_path / "run")
    said = " ".join(capsys.readouterr().out.split())
    assert f"training images without an object, learned as background: {empty}" in said
    assert "117 epochs instead of 24" in said  # of six updates each
    saved = read_config(tmp_path / "run" / "config.yaml", RunConfig())
    assert (saved.train.epochs, saved.train.warmup_steps) == (117, 71)


def test_names_in_the_first_lines_are_shown_as_they_are(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class may be called `[/x]`, which is not markup, and control characters do not reach the terminal."""
    monkeypatch.setattr("deformable_detr.training.run.opening_lines", lambda run: ["the class [/x]\x1b[31m"])
    train(tiny_data, tiny_config(max_steps=1), tmp_path / "run")
    said = capsys.readouterr().out
    assert "the class [/x]\\x1b[31m" in said
    assert "\x1b[31m" not in said
