"""Batches of pictures, and the divisors of losses."""

from __future__ import annotations

import pytest
import torch

from deformable_detr.structures import BatchCount, ImageBatch, Target


def test_a_batch_is_padded_at_the_bottom_and_right_without_a_size_divisor() -> None:
    batch = ImageBatch.from_images([torch.ones(3, 5, 7), torch.ones(3, 6, 4)])
    assert batch.pixels.shape == (2, 3, 6, 7)
    assert len(batch) == 2
    assert batch.pixels.sum() == 3 * (5 * 7 + 6 * 4)
    assert not batch.mask[0, :5, :].any()
    assert batch.mask[0, 5:].all()
    assert batch.mask[1, :, 4:].all()


@pytest.mark.parametrize(
    "image", [torch.ones(1, 5, 7), torch.ones(5, 7), torch.ones(3, 5, 7, dtype=torch.uint8)]
)
def test_a_batch_refuses_what_is_no_normalised_image(image: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="image 1 must be a float tensor"):
        ImageBatch.from_images([torch.ones(3, 5, 7), image])


def test_a_batch_needs_an_image() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        ImageBatch.from_images([])


def test_counts_of_an_update() -> None:
    targets = [Target(torch.zeros(n, dtype=torch.int64), torch.zeros(n, 4)) for n in (0, 2, 9)]
    count = BatchCount.from_targets(targets, num_queries=5)
    assert (count.objects, count.matched, count.images) == (11, 7, 3)
    assert (count + count).objects == 22
    assert BatchCount(0, 0, 4).share_of(2) == BatchCount(0.5, 0, 2)


def test_all_forms_of_pictures_make_the_same_batch() -> None:
    pictures = torch.randn(2, 3, 5, 7)
    batch = ImageBatch.from_images(list(pictures))
    for form in (pictures, list(pictures), tuple(pictures), (batch.pixels, batch.mask), batch):
        made = ImageBatch.from_input(form)
        assert torch.equal(made.pixels, batch.pixels)
        assert torch.equal(made.mask, batch.mask)
    for wrong, words in (
        (torch.randn(3, 5, 7), r"image 0 must be a float tensor of shape \(3, H, W\)"),
        ((pictures, torch.zeros(2, 5, 7)), "must be bool"),
        ((pictures, torch.zeros(2, 7, 5, dtype=torch.bool)), r"must be bool and \(B, H, W\), not"),
        ([], "at least one image"),
    ):
        with pytest.raises(ValueError, match=words):
            ImageBatch.from_input(wrong)
