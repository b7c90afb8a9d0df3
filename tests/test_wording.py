from __future__ import annotations

from deformable_detr.wording import count, listed


def test_numbers_and_lists_in_sentences() -> None:
    assert [count(number, "image") for number in (0, 1, 1204)] == ["0 images", "1 image", "1,204 images"]
    assert count(2, "class", "classes") == "2 classes"
    assert listed(["a", "b"], 2) == "a, b"
    assert listed(["a", "b", "c"], 2) == "a, b, … and 1 more"
    assert listed([], 2) == "none"
