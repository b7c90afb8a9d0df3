// Depthwise convolution and its gradients. With the channels last, neighbouring channels fill a vector, and a kernel
// is KH·KW products per vector. A block of two vectors of channels passes through a whole row, so that its part of the
// kernel and of the rows that it reads stays in the first cache.

#include "depthwise.h"

#include "simd.h"
#include "tables.h"

namespace {

using namespace deformable_detr;

DDETR_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
DDETR_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
DDETR_INLINE int64_t divide_up_or_zero(int64_t a, int64_t b) { return a <= 0 ? 0 : (a + b - 1) / b; }

// Calls visit.operator()<N, COUNT>(channel) for blocks of channels from `first` to `end`.
template <class Real, class Visit>
DDETR_INLINE void visit_channels(int64_t first, int64_t end, const Visit& visit) {
  constexpr int N = full_lanes<Real>;
  int64_t c = first;
  for (; end - c >= 2 * N; c += 2 * N) visit.template operator()<N, 2>(c);
  visit_narrow_blocks<N>(c, end, visit);
}

// PIXELS neighbouring outputs of one block of channels. All of them read taps first_kx to end_kx; they share the loads
// of the taps, and no sum waits for the one before.
template <int PIXELS, int N, int COUNT, class Real>
DDETR_INLINE void sum_pixels(
    const Real* pixels, int64_t row_step, int64_t pixel_step, int64_t C, const Real* taps, int64_t tap_row_step,
    int64_t tap_step, int64_t rows, int64_t columns, const Vector<Real, N> (&bias)[COUNT], Real* output) {
  using V = Vector<Real, N>;
  V sums[PIXELS][COUNT];
  for (int i = 0; i < PIXELS; ++i) {
    for (int j = 0; j < COUNT; ++j) sums[i][j] = bias[j];
  }
  for (int64_t ky = 0; ky < rows; ++ky, pixels += row_step, taps += tap_row_step) {
    for (int64_t kx = 0; kx < columns; ++kx) {
      V tap[COUNT];
      load_block<N, COUNT>(taps + kx * tap_step, tap);
#pragma GCC unroll 4
      for (int i = 0; i < PIXELS; ++i) {
        V pixel[COUNT];
        load_block<N, COUNT>(pixels + kx * C + i * pixel_step, pixel);
        for (int j = 0; j < COUNT; ++j) sums[i][j] += pixel[j] * tap[j];
      }
    }
  }
  for (int i = 0; i < PIXELS; ++i) store_block<N, COUNT>(sums[i], output + i * C);
}

// One row of the correlation of `image` (H, W, C) with the taps, of which tap (ky, kx) is at (ky·KW + kx)·tap_step.
template <class Real>
DDETR_INLINE void correlate_row(
    const Depthwise& p, const Real* image, int64_t H, int64_t W, int64_t y, int64_t left, int64_t stride,
    const Real* taps, int64_t tap_step, const Real* bias_or_null, Real* row, int64_t OW) {
  constexpr int PIXELS = 4;
  const int64_t first_ky = larger(0, -y), end_ky = smaller(p.KH, H - y);
  // Outputs from `first` to `end` read the input with all columns of the kernel.
  const int64_t first = smaller(OW, divide_up_or_zero(left, stride));
  const int64_t last = W - p.KW + left;
  const int64_t end = larger(first, smaller(OW, last < 0 ? 0 : last / stride + 1));
  visit_channels<Real>(0, p.C, [&]<int N, int COUNT>(int64_t c) DDETR_INLINE_LAMBDA {
    Vector<Real, N> bias[COUNT] = {};
    if (bias_or_null) load_block<N, COUNT>(bias_or_null + c, bias);
    const auto edge = [&](int64_t ox) DDETR_INLINE_LAMBDA {
      const int64_t x = ox * stride - left;
      const int64_t first_kx = larger(0, -x), end_kx = smaller(p.KW, W - x);
      sum_pixels<1, N, COUNT, Real>(
          image + ((y + first_ky) * W + x + first_kx) * p.C + c, W * p.C, 0, p.C,
          taps + (first_ky * p.KW + first_kx) * tap_step + c, p.KW * tap_step, tap_step, end_ky - first_ky,
          end_kx - first_kx, bias, row + ox * p.C + c);
    };
    const auto inside = [&]<int COLUMNS>(int64_t ox) DDETR_INLINE_LAMBDA {
      sum_pixels<COLUMNS, N, COUNT, Real>(
          image + ((y + first_ky) * W + ox * stride - left) * p.C + c, W * p.C, stride * p.C, p.C,
          taps + first_ky * p.KW * tap_step + c, p.KW * tap_step, tap_step, end_ky - first_ky, p.KW, bias,
          row + ox * p.C + c);
    };
    int64_t ox = 0;
    for (; ox < first; ++ox) edge(ox);
    for (; ox + PIXELS <= end; ox += PIXELS) inside.template operator()<PIXELS>(ox);
    for (; ox < end; ++ox) inside.template operator()<1>(ox);
    for (; ox < OW; ++ox) edge(ox);
  });
}

template <class Real>
void forward(const Depthwise& p, int64_t task) {
  const Real* image = static_cast<const Real*>(p.input) + task / p.OH * p.H * p.W * p.C;
  correlate_row<Real>(
      p, image, p.H, p.W, task % p.OH * p.stride - p.top, p.left, p.stride, static_cast<const Real*>(p.weight), p.C,
      static_cast<const Real*>(p.bias), static_cast<Real*>(p.result) + task * p.OW * p.C, p.OW);
}

// Each input pixel gathers from the outputs that read it. With a stride, these read it with every stride-th tap.
template <class Real>
void gather_row(const Depthwise& p, int64_t task) {
  const int64_t b = task / p.H, y = task % p.H + p.top;  // tap ky was read by output row (y - ky) / stride
  const int64_t first_ky = larger(y % p.stride, y - (p.OH - 1) * p.stride), end_ky = smaller(p.KH, y + 1);
  const Real* image = static_cast<const Real*>(p.grad) + b * p.OH * p.OW * p.C;
  Real* row = static_cast<Real*>(p.result) + task * p.W * p.C;
  visit_channels<Real>(0, p.C, [&]<int N, int COUNT>(int64_t c) DDETR_INLINE_LAMBDA {
    const Vector<Real, N> zero[COUNT] = {};
    const Real* weight = static_cast<const Real*>(p.weight) + c;
    for (int64_t column = 0; column < p.W; ++column) {
      const int64_t x = column + p.left;
      const int64_t first_kx = larger(x % p.stride, x - (p.OW - 1) * p.stride), end_kx = smaller(p.KW, x + 1);
      // Later taps were read by earlier outputs.
      sum_pixels<1, N, COUNT, Real>(
          image + ((y - first_ky) / p.stride * p.OW + (x - first_kx) / p.stride) * p.C + c, -p.OW * p.C, 0, -p.C,
          weight + (first_ky * p.KW + first_kx) * p.C, p.stride * p.KW * p.C, p.stride * p.C,
          divide_up_or_zero(end_ky - first_ky, p.stride), divide_up_or_zero(end_kx - first_kx, p.stride), zero,
          row + column * p.C + c);
    }
  });
}

template <class Real>
void grad_input(const Depthwise& p, int64_t task) {
  if (p.stride > 1) return gather_row<Real>(p, task);
  // With stride 1, this is the correlation of the output's gradient with the kernel, read backwards.
  const Real* image = static_cast<const Real*>(p.grad) + task / p.H * p.OH * p.OW * p.C;
  const Real* last_tap = static_cast<const Real*>(p.weight) + (p.KH * p.KW - 1) * p.C;
  correlate_row<Real>(
      p, image, p.OH, p.OW, task % p.H - (p.KH - 1 - p.top), p.KW - 1 - p.left, 1, last_tap, -p.C, nullptr,
      static_cast<Real*>(p.result) + task * p.W * p.C, p.W);
}

// Adds to TAPS taps of one row of the kernel, starting with tap kx, what one row of the output has of them. All taps
// of an output are summed at once, so that it is loaded only once.
template <int TAPS, int N, int COUNT, class Real, class V>
DDETR_INLINE void add_row(
    const Depthwise& p, const Real* grads, const Real* pixels, int64_t kx, V (&sums)[TAPS][COUNT]) {
  const auto add = [&](int64_t ox, int tap) DDETR_INLINE_LAMBDA {
    V grad[COUNT], pixel[COUNT];
    load_block<N, COUNT>(grads + ox * p.C, grad);
    load_block<N, COUNT>(pixels + (ox * p.stride - p.left + kx + tap) * p.C, pixel);
    for (int j = 0; j < COUNT; ++j) sums[tap][j] += grad[j] * pixel[j];
  };
  const auto reads = [&](int64_t ox, int tap) DDETR_INLINE_LAMBDA {
    const int64_t x = ox * p.stride - p.left + kx + tap;
    return x >= 0 && x < p.W;
  };
  // Outputs from `first` to `end` read the input with all taps.
  int64_t first = smaller(p.OW, divide_up_or_zero(p.left - kx, p.stride));
  int64_t end = p.W - TAPS - kx + p.left < 0 ? 0 : (p.W - TAPS - kx + p.left) / p.stride + 1;
  end = larger(first, smaller(end, p.OW));
  for (int64_t ox = 0; ox < first; ++ox) {
    for (int tap = 0; tap < TAPS; ++tap) {
      if (reads(ox, tap)) add(ox, tap);
    }
  }
  for (int64_t ox = first; ox < end; ++ox) {
    V grad[COUNT];
    load_block<N, COUNT>(grads + ox * p.C, grad);
    const Real* from = pixels + (ox * p.stride - p.left + kx) * p.C;
#pragma GCC unroll 5
    for (int tap = 0; tap < TAPS; ++tap) {
      V pixel[COUNT];
      load_block<N, COUNT>(from + tap * p.C, pixel);
      for (int j = 0; j < COUNT; ++j) sums[tap][j] += grad[j] * pixel[j];
    }
  }
  for (int64_t ox = end; ox < p.OW; ++ox) {
    for (int tap = 0; tap < TAPS; ++tap) {
      if (reads(ox, tap)) add(ox, tap);
    }
  }
}

template <int TAPS, int N, int COUNT, class Real>
DDETR_INLINE void add_taps(
    const Depthwise& p, const Real* grads, const Real* pixels, int64_t kx, Real* result) {
  Vector<Real, N> sums[TAPS][COUNT];
  for (int tap = 0; tap < TAPS; ++tap) load_block<N, COUNT>(result + (kx + tap) * p.C, sums[tap]);
  add_row<TAPS, N, COUNT, Real>(p, grads, pixels, kx, sums);
  for (int tap = 0; tap < TAPS; ++tap) store_block<N, COUNT>(sums[tap], result + (kx + tap) * p.C);
}

// Row after row, because a column of pixels would touch a page of memory for each of them.
template <class Real>
void grad_weight(const Depthwise& p, int64_t task) {
  Real* result = static_cast<Real*>(p.result) + task * p.KH * p.KW * p.C;
  memset(result, 0, p.KH * p.KW * p.C * sizeof(Real));
  for (int64_t oy = 0; oy < p.OH; ++oy) {
    const int64_t y = oy * p.stride - p.top;
    const int64_t first_ky = larger(0, -y), end_ky = smaller(p.KH, p.H - y);
    const Real* grads = static_cast<const Real*>(p.grad) + (task * p.OH + oy) * p.OW * p.C;
    const Real* pixels = static_cast<const Real*>(p.input) + (task * p.H + y) * p.W * p.C;
    visit_channels<Real>(0, p.C, [&]<int N, int COUNT>(int64_t c) DDETR_INLINE_LAMBDA {
      for (int64_t ky = first_ky; ky < end_ky; ++ky) {
        const Real* row = pixels + ky * p.W * p.C + c;
        Real* taps = result + ky * p.KW * p.C + c;
        int64_t kx = 0;
        for (; p.KW - kx >= 5; kx += 5) add_taps<5, N, COUNT, Real>(p, grads + c, row, kx, taps);
        for (; p.KW - kx >= 3; kx += 3) add_taps<3, N, COUNT, Real>(p, grads + c, row, kx, taps);
        for (; kx < p.KW; ++kx) add_taps<1, N, COUNT, Real>(p, grads + c, row, kx, taps);
      }
    });
  }
}

template <class Real>
constexpr DepthwiseSteps depthwise_steps_of() {
  return {forward<Real>, grad_input<Real>, grad_weight<Real>};
}

}  // namespace

namespace deformable_detr {
DDETR_DEFINE_TABLE(DepthwiseKernels, depthwise_) = {
    DDETR_KERNELS_NAME, depthwise_steps_of<float>(), depthwise_steps_of<double>()};
}  // namespace deformable_detr
