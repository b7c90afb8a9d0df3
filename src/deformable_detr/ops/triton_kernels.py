"""Triton kernels of multi-scale deformable attention for GPUs (paper, section 4.1, equations 2 and 3).

triton_operators.py launches them. The section "On a GPU" of docs/operator.md explains them.

A program computes one head of one image for a block of queries. The rows of its tensors are queries, and the
columns are channels. The program processes the points one after another and reads four pixels per row and
point.

Letters: B batch, S value tokens, M heads, D channels of a head, Q queries, L levels, K points of a level,
P = Σ K_l points of a head.
"""

# Kernels are written in Triton's language, which has Python's syntax but not its types.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

# STARTS contains the index of each level's first point, followed by P. `sizes` contains (H, W) of each level
# as floats: Triton compiles a kernel again for integers that equal 1 or are divisible by 16, which would
# happen for every other picture, but it does not specialise on floats. If REFERENCE_SIZE is 0, `points` are
# locations as fractions of a level, and `weights` are their weights. If REFERENCE_SIZE is 2 or 4, `points`
# are offsets from reference points or boxes, and `weights` are the logits of a softmax.
#
# The loop over levels is unrolled. The loop over the points of a level is unrolled by the factor UNROLL: a
# higher factor keeps more loads in flight, but a factor of 16 would compile for ten seconds and need all
# registers of a thread.


@triton.jit
def _program(Q, M: tl.constexpr, BLOCK_Q: tl.constexpr):
    """Return this program's image, head and queries, and a mask of the queries that exist.

    The grid has one dimension, because the second and third are limited to 65,535. Programs that run at the
    same time process neighbouring parts of the picture, so they share the cache.
    """
    blocks = tl.cdiv(Q, BLOCK_Q)
    program = tl.program_id(0)
    query = program % blocks * BLOCK_Q + tl.arange(0, BLOCK_Q)
    return (program // blocks // M).to(tl.int64), program // blocks % M, query, query < Q


@triton.jit
def _load_points(rows, exists, P: tl.constexpr, P_PADDED: tl.constexpr, beyond):
    """Return the values of all points of each row, padded with `beyond` to P_PADDED points.

    `rows` are pointers to the first value of each row. Rows that do not exist are read as zeros.
    """
    point = tl.arange(0, P_PADDED)[None, :]
    block = tl.load(rows[:, None] + point, mask=exists[:, None] & (point < P), other=0.0)
    return tl.where(point < P, block, beyond)


@triton.jit
def _softmax_terms(logits):
    """Return each row's largest logit and its sum Σ exp(logit - largest).

    The softmax is exp(logit - largest) / sum.
    """
    largest = tl.max(logits, 1)
    return largest, tl.sum(tl.exp(logits - largest[:, None]), 1)


@triton.jit
def _half_side_step(size, K: tl.constexpr):
    """Return size / 2K: half the side, in pixels, of a box as large as the map, divided by the K points.

    `size` is the height or the width of the map in pixels.
    """
    return 0.5 * size / max(K, 1)  # unused if K is 0


@triton.jit
def _pixel_map(reference, exists, H, W, step_y, step_x, REFERENCE_SIZE: tl.constexpr):
    """Return base and scale for x and then for y, such that pixel = base + scale · input.

    The input is a location or an offset, and the kinds of input differ only in base and scale. The base
    contains -1/2, because the centre of pixel i is at (i + 1/2) / W.
    """
    base_x, scale_x, base_y, scale_y = -0.5, W, -0.5, H
    if REFERENCE_SIZE > 0:
        base_x += tl.load(reference, mask=exists, other=0.0) * W
        base_y += tl.load(reference + 1, mask=exists, other=0.0) * H
        scale_x, scale_y = 1.0, 1.0
    if REFERENCE_SIZE == 4:
        scale_x = tl.load(reference + 2, mask=exists, other=0.0) * step_x
        scale_y = tl.load(reference + 3, mask=exists, other=0.0) * step_y
    return base_x, scale_x, base_y, scale_y


@triton.jit
def _sides(pixel, size):
    """Return the pixel before a position along one axis, the fraction of the way to the next, and two masks.

    The masks state whether the pixels before and after the position are inside the map, which has `size`
    pixels along the axis.

    Positions are clamped before the conversion to integers, which is undefined for NaN, infinity and large
    numbers. This keeps outside positions outside. NaN becomes -2, because comparisons with NaN are false.
    """
    pixel = tl.where(pixel >= -2.0, pixel, -2.0)
    pixel = tl.where(pixel <= size + 1, pixel, size + 1)
    before = tl.floor(pixel)
    before_is_inside = (before >= 0) & (before < size)
    after_is_inside = (before >= -1) & (before < size - 1)
    return before.to(tl.int32), pixel - before, before_is_inside, after_is_inside


@triton.jit(do_not_specialize=["Q"])
def forward_kernel(
    output,  # (B, Q, M, D)
    value,  # (B, S, M, D), channels dense; the other strides are arguments
    reference,  # (B, Q, L, REFERENCE_SIZE)
    points,  # (B, Q, M, P, 2)
    weights,  # (B, Q, M, P)
    sizes,
    Q,
    image_stride,
    token_stride,
    head_stride,
    M: tl.constexpr,
    D: tl.constexpr,
    STARTS: tl.constexpr,
    REFERENCE_SIZE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
    P_PADDED: tl.constexpr,
    UNROLL: tl.constexpr,
):
    REAL: tl.constexpr = points.dtype.element_ty
    L: tl.constexpr = len(STARTS) - 1
    P: tl.constexpr = STARTS[L]
    image, head, query, exists = _program(Q, M, BLOCK_Q)
    channel = tl.arange(0, BLOCK_D)[None, :]
    is_channel = channel < D
    row = (image * Q + query) * M + head
    points += row * (2 * P)
    weights += row * P
    reference += (image * Q + query) * (L * REFERENCE_SIZE)
    pixels = value + image * image_stride + head.to(tl.int64) * head_stride
    if REFERENCE_SIZE > 0:
        largest, total = _softmax_terms(_load_points(weights, exists, P, P_PADDED, float("-inf")))

    sums = tl.zeros([BLOCK_Q, BLOCK_D], REAL)
    for level in tl.static_range(L):
        H, W = tl.cast(sizes[2 * level], REAL), tl.cast(sizes[2 * level + 1], REAL)
        row_stride = W.to(tl.int32) * token_stride
        step_x = _half_side_step(W, STARTS[level + 1] - STARTS[level])
        step_y = _half_side_step(H, STARTS[level + 1] - STARTS[level])
        base_x, scale_x, base_y, scale_y = _pixel_map(
            reference + level * REFERENCE_SIZE, exists, H, W, step_y, step_x, REFERENCE_SIZE
        )
        for point in tl.range(STARTS[level], STARTS[level + 1], loop_unroll_factor=UNROLL):
            attention = tl.load(weights + point, mask=exists, other=0.0)
            if REFERENCE_SIZE > 0:
                attention = tl.exp(attention - largest) / total
            x = base_x + scale_x * tl.load(points + 2 * point, mask=exists, other=0.0)
            y = base_y + scale_y * tl.load(points + 2 * point + 1, mask=exists, other=0.0)
            left, fx, in_left, in_right = _sides(x, W)
            top, fy, in_top, in_bottom = _sides(y, H)
            corner = pixels + (top * row_stride + left * token_stride)[:, None] + channel
            in_top &= exists
            in_bottom &= exists
            at = tl.load(corner, mask=(in_top & in_left)[:, None] & is_channel, other=0.0)
            sums += (attention * (1 - fy) * (1 - fx))[:, None] * at.to(REAL)
            at = tl.load(corner + token_stride, mask=(in_top & in_right)[:, None] & is_channel, other=0.0)
            sums += (attention * (1 - fy) * fx)[:, None] * at.to(REAL)
            corner += row_stride
            at = tl.load(corner, mask=(in_bottom & in_left)[:, None] & is_channel, other=0.0)
            sums += (attention * fy * (1 - fx))[:, None] * at.to(REAL)
            at = tl.load(corner + token_stride, mask=(in_bottom & in_right)[:, None] & is_channel, other=0.0)
            sums += (attention * fy * fx)[:, None] * at.to(REAL)
        pixels += (H.to(tl.int32) * row_stride).to(tl.int64)
    tl.store(output + (row * D)[:, None] + channel, sums, mask=exists[:, None] & is_channel)


@triton.jit(do_not_specialize=["S", "Q"])
def backward_kernel(
    grad_value,  # (B, S, M, D) in REAL, initially zeros
    grad_reference,  # (B, Q, M, L, REFERENCE_SIZE), separate for each head
    grad_points,  # (B, Q, M, P, 2)
    grad_weights,  # (B, Q, M, P)
    grad_output,  # (B, Q, M, D)
    value,
    reference,
    points,
    weights,
    sizes,
    S,
    Q,
    image_stride,
    token_stride,
    head_stride,
    M: tl.constexpr,
    D: tl.constexpr,
    STARTS: tl.constexpr,
    REFERENCE_SIZE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
    P_PADDED: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Write the gradients to the first four arguments, with the loops of `forward_kernel`.

    With g = grad_output, each point needs the scalar products ⟨g, pixel⟩ of g with its four pixels.
    """
    REAL: tl.constexpr = points.dtype.element_ty
    L: tl.constexpr = len(STARTS) - 1
    P: tl.constexpr = STARTS[L]
    image, head, query, exists = _program(Q, M, BLOCK_Q)
    channel = tl.arange(0, BLOCK_D)[None, :]
    is_channel = channel < D
    row = (image * Q + query) * M + head
    points += row * (2 * P)
    grad_points += row * (2 * P)
    weights += row * P
    grad_weights += row * P
    reference += (image * Q + query) * (L * REFERENCE_SIZE)
    grad_reference += row * (L * REFERENCE_SIZE)
    pixels = value + image * image_stride + head.to(tl.int64) * head_stride
    grad_pixels = grad_value + image * S * (M * D) + head * D
    if REFERENCE_SIZE > 0:
        largest, total = _softmax_terms(_load_points(weights, exists, P, P_PADDED, float("-inf")))
    mask = exists[:, None] & is_channel
    g = tl.load(grad_output + (row * D)[:, None] + channel, mask=mask, other=0.0).to(REAL)

    for level in tl.static_range(L):
        H, W = tl.cast(sizes[2 * level], REAL), tl.cast(sizes[2 * level + 1], REAL)
        width = W.to(tl.int32)
        step_x = _half_side_step(W, STARTS[level + 1] - STARTS[level])
        step_y = _half_side_step(H, STARTS[level + 1] - STARTS[level])
        base_x, scale_x, base_y, scale_y = _pixel_map(
            reference + level * REFERENCE_SIZE, exists, H, W, step_y, step_x, REFERENCE_SIZE
        )
        sum_x = tl.zeros([BLOCK_Q], REAL)
        sum_y = tl.zeros([BLOCK_Q], REAL)
        sum_side_x = tl.zeros([BLOCK_Q], REAL)
        sum_side_y = tl.zeros([BLOCK_Q], REAL)
        for point in tl.range(STARTS[level], STARTS[level + 1], loop_unroll_factor=UNROLL):
            attention = tl.load(weights + point, mask=exists, other=0.0)
            if REFERENCE_SIZE > 0:
                attention = tl.exp(attention - largest) / total
            input_x = tl.load(points + 2 * point, mask=exists, other=0.0)
            input_y = tl.load(points + 2 * point + 1, mask=exists, other=0.0)
            left, fx, in_left, in_right = _sides(base_x + scale_x * input_x, W)
            top, fy, in_top, in_bottom = _sides(base_y + scale_y * input_y, H)
            token = top * width + left
            corner = pixels + (token * token_stride)[:, None] + channel
            grad_corner = grad_pixels + (token * (M * D))[:, None] + channel
            in_top &= exists
            in_bottom &= exists
            share = attention[:, None] * g

            mask = (in_top & in_left)[:, None] & is_channel
            dot_0 = tl.sum(g * tl.load(corner, mask=mask, other=0.0).to(REAL), 1)
            tl.atomic_add(grad_corner, ((1 - fy) * (1 - fx))[:, None] * share, mask=mask, sem="relaxed")
            mask = (in_top & in_right)[:, None] & is_channel
            dot_1 = tl.sum(g * tl.load(corner + token_stride, mask=mask, other=0.0).to(REAL), 1)
            tl.atomic_add(grad_corner + M * D, ((1 - fy) * fx)[:, None] * share, mask=mask, sem="relaxed")
            corner += width * token_stride
            grad_corner += width * (M * D)
            mask = (in_bottom & in_left)[:, None] & is_channel
            dot_2 = tl.sum(g * tl.load(corner, mask=mask, other=0.0).to(REAL), 1)
            tl.atomic_add(grad_corner, (fy * (1 - fx))[:, None] * share, mask=mask, sem="relaxed")
            mask = (in_bottom & in_right)[:, None] & is_channel
            dot_3 = tl.sum(g * tl.load(corner + token_stride, mask=mask, other=0.0).to(REAL), 1)
            tl.atomic_add(grad_corner + M * D, (fy * fx)[:, None] * share, mask=mask, sem="relaxed")

            above = dot_0 + fx * (dot_1 - dot_0)
            below = dot_2 + fx * (dot_3 - dot_2)
            grad_attention = above + fy * (below - above)
            grad_x = attention * ((1 - fy) * (dot_1 - dot_0) + fy * (dot_3 - dot_2))
            grad_y = attention * (below - above)
            tl.store(grad_points + 2 * point, grad_x * scale_x, mask=exists)
            tl.store(grad_points + 2 * point + 1, grad_y * scale_y, mask=exists)
            tl.store(grad_weights + point, grad_attention, mask=exists)
            if REFERENCE_SIZE > 0:
                sum_x += grad_x
                sum_y += grad_y
                sum_side_x += grad_x * input_x
                sum_side_y += grad_y * input_y
        if REFERENCE_SIZE > 0:
            tl.store(grad_reference + level * REFERENCE_SIZE, sum_x * W, mask=exists)
            tl.store(grad_reference + level * REFERENCE_SIZE + 1, sum_y * H, mask=exists)
        if REFERENCE_SIZE == 4:
            tl.store(grad_reference + level * 4 + 2, sum_side_x * step_x, mask=exists)
            tl.store(grad_reference + level * 4 + 3, sum_side_y * step_y, mask=exists)
        tokens = H.to(tl.int32) * width
        pixels += (tokens * token_stride).to(tl.int64)
        grad_pixels += (tokens * (M * D)).to(tl.int64)
    if REFERENCE_SIZE > 0:  # from the gradient of attention to that of logits
        tl.debug_barrier()  # threads read what other threads of this program stored
        attention = _load_points(weights, exists, P, P_PADDED, float("-inf"))
        attention = tl.exp(attention - largest[:, None]) / total[:, None]
        grad_attention = _load_points(grad_weights, exists, P, P_PADDED, 0.0)
        mean = tl.sum(attention * grad_attention, 1)
        point = tl.arange(0, P_PADDED)[None, :]
        tl.store(
            grad_weights[:, None] + point,
            attention * (grad_attention - mean[:, None]),
            mask=exists[:, None] & (point < P),
        )
