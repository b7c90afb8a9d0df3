from __future__ import annotations

import pytest

from deformable_detr.data.formats.splits import (
    in_usual_order,
    is_measured,
    is_training,
    meaning,
    name_to_measure_on,
    names_meant,
    training_name,
)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("train2017", "train"),
        ("Train", "train"),
        ("TRAINING", "train"),
        ("train_2012", "train"),
        ("valid", "val"),
        ("Validation", "val"),
        ("trainval", "trainval"),
        ("trainval2007", "trainval"),
        ("2017", "2017"),
        ("Größe", "größe"),
    ],
)
def test_meaning(name: str, plain: str) -> None:
    assert meaning(name) == plain


@pytest.mark.parametrize(
    ("splits", "name"),
    [
        (("train", "val2017", "test"), "val2017"),
        (("train", "test", "valid"), "valid"),
        (("Train", "Test", "Validation"), "Validation"),
        (("test-dev", "train"), "test-dev"),
        (("train", "dev"), "dev"),
        (("train", "extra"), None),
        ((), None),
    ],
)
def test_the_split_to_measure_on(splits: tuple[str, ...], name: str | None) -> None:
    assert name_to_measure_on(splits) == name
    assert any(is_measured(each) for each in splits) == (name is not None)


def test_the_split_to_train_on_is_not_trainval() -> None:
    assert training_name(("trainval", "val", "Train2017")) == "Train2017"
    assert training_name(("trainval", "val")) is None
    assert not is_training("trainval")


def test_a_data_set_that_is_not_split_is_trained_on() -> None:
    assert training_name(("default",)) == "default"
    assert names_meant("train", ("default",)) == ["default"]
    assert training_name(("val",)) is None
    assert names_meant("train", ("test",)) == []
    assert training_name(("a", "b")) is None


def test_order_and_matches() -> None:
    assert in_usual_order(("b", "test", "Valid", "a", "train2017")) == (
        "train2017",
        "Valid",
        "test",
        "a",
        "b",
    )
    assert names_meant("val", ("val", "val2017")) == ["val"]
    assert names_meant("val", ("Val2014", "val2017", "train")) == ["Val2014", "val2017"]
    assert names_meant("validation", ("valid",)) == ["valid"]
    assert names_meant("test", ("train",)) == []
