"""The measured limit reads, multiplies and adds what it says: against NumPy, all kernels that run here."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deformable_detr import ops
from deformable_detr.ops.native import cpu_kernels

pytestmark = pytest.mark.skipif(not ops.native_available(), reason=ops.kernels()["cpu"])
KERNELS = cpu_kernels()[1:] if ops.native_available() else ("none",)
TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
READS, STRETCHES, OUTPUTS, TASKS = 8, 3, 11, 2
# Tasks get 5 and 6 outputs; the i-th reads stretch i mod 3.
LAST_STRETCH = (1, 2)
TIMES_READ = ((2, 2, 1), (2, 2, 2))


def case(dtype: torch.dtype, D: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    real = torch.float64 if dtype == torch.float64 else torch.float32
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(STRETCHES * READS, D, generator=generator).to(dtype)
    weights = torch.randn(READS, dtype=real, generator=generator)
    return rows, weights, torch.randn(D, generator=generator).to(dtype)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("D", [16, 32, 48])
def test_forward_is_the_weighted_sum_of_rows(kernels: str, dtype: torch.dtype, D: int) -> None:
    rows, weights, _ = case(dtype, D)
    found = torch.ops.deformable_detr.sampling_limit(rows, weights, OUTPUTS, TASKS, kernels)
    assert found.dtype == dtype
    stretches = rows.double().numpy().reshape(STRETCHES, READS, D)
    expected = np.stack([weights.double().numpy() @ stretches[stretch] for stretch in LAST_STRETCH])
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 2.0**-7)
    np.testing.assert_allclose(found.double().numpy(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("D", [16, 32, 48])
def test_backward_is_every_dot_product_and_every_row_added_to(
    kernels: str, dtype: torch.dtype, D: int
) -> None:
    rows, weights, grad = case(dtype, D)
    dots, sums = torch.ops.deformable_detr.sampling_limit_backward(
        rows, weights, grad, OUTPUTS, TASKS, kernels
    )
    assert dots.dtype == sums.dtype == weights.dtype
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    stretches = rows.double().numpy().reshape(STRETCHES, READS, D)
    expected_dots = np.stack([stretches[stretch] @ grad.double().numpy() for stretch in LAST_STRETCH])
    np.testing.assert_allclose(dots.double().numpy(), expected_dots, rtol=tolerance, atol=tolerance)

    product = np.outer(weights.double().numpy(), grad.double().numpy())
    expected_sums = np.array([[times * product for times in task] for task in TIMES_READ])
    # Channels stay in the order in which a vector holds them, and that is not 0, 1, 2 … for bfloat16.
    np.testing.assert_allclose(
        np.sort(sums.double().numpy()),
        np.sort(expected_sums.reshape(TASKS, STRETCHES * READS, D)),
        rtol=tolerance,
        atol=tolerance,
    )


@pytest.mark.parametrize(
    ("rows", "weights", "kernels", "sentence"),
    [
        (torch.zeros(8, 16), torch.zeros(6), KERNELS[0], "a multiple of"),
        (torch.zeros(9, 16), torch.zeros(8), KERNELS[0], "a multiple of"),
        (torch.zeros(8, 20), torch.zeros(8), KERNELS[0], "a multiple of"),
        (torch.zeros(8, 32)[:, ::2], torch.zeros(8), KERNELS[0], "dense"),
        (torch.zeros(8, 16), torch.zeros(8).double(), KERNELS[0], "of the type"),
        (torch.zeros(8, 16, dtype=torch.int32), torch.zeros(8), KERNELS[0], "no kernels for Int"),
        (torch.zeros(8, 16), torch.zeros(8), "abacus", "not compiled for kernels named abacus"),
    ],
)
def test_unsupported_requests_are_refused(
    rows: torch.Tensor, weights: torch.Tensor, kernels: str, sentence: str
) -> None:
    with pytest.raises(RuntimeError, match=sentence):
        torch.ops.deformable_detr.sampling_limit(rows, weights, 4, 1, kernels)
