// The measured limit: the operator's row loops with everything else taken away. Rows are walked through in order,
// within a buffer that the caller makes small enough for the first or the second cache; no locations, no softmax, no
// offsets to look up, no memory to wait for. What is left is what no kernel of this design can do without: loads,
// multiply-adds, stores. See limit.h.

#include "limit.h"

#include "simd.h"
#include "tables.h"

namespace {

using namespace deformable_detr;

// The compiler must neither skip an output whose result the next one overwrites nor keep inputs from one to the next.
DDETR_INLINE void end_of_output() { __asm__ volatile("" ::: "memory"); }

template <class Value>
DDETR_INLINE const Value* stretch_of(const Limit& p, int64_t output) {
  const int64_t reads = 4 * p.samples;
  return static_cast<const Value*>(p.rows) + output % (p.row_count / reads) * reads * p.D;
}

// Enough sums that no addition waits for the one before: 2 a cycle, 4 cycles each.
template <int COUNT>
constexpr int independent_sums = COUNT >= 8 ? 1 : COUNT >= 4 ? 2 : 4;

// Calls visit.operator()<COUNT>(first channel) for blocks of whole vectors.
template <class Real, class Visit>
DDETR_INLINE void visit_whole_blocks(int64_t D, const Visit& visit) {
  visit_blocks<Real>(D, [&]<int N, int COUNT>(int64_t d) DDETR_INLINE_LAMBDA {
    if constexpr (N == full_lanes<Real>) visit.template operator()<COUNT>(d);
  });
}

// Forward: output = Σ weight · row.
template <class Value, class Real>
void forward(const Limit& p, int64_t outputs, void* output) {
  constexpr int N = full_lanes<Real>;
  using V = Vector<Real, N>;
  const Real* weights = static_cast<const Real*>(p.weights);
  for (int64_t o = 0; o < outputs; ++o) {
    const Value* stretch = stretch_of<Value>(p, o);
    visit_whole_blocks<Real>(p.D, [&]<int COUNT>(int64_t d) DDETR_INLINE_LAMBDA {
      constexpr int SETS = independent_sums<COUNT>;
      V sums[SETS][COUNT] = {};
      const Value* row = stretch + d;
      for (int64_t i = 0; i < 4 * p.samples; i += 4) {
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k, row += p.D) {
          V pixel[COUNT];
          load_block<N, COUNT>(row, pixel);
          const V weight = splat<Real, N>(weights[i + k]);
#pragma GCC unroll 8
          for (int j = 0; j < COUNT; ++j) sums[k % SETS][j] += weight * pixel[j];
        }
      }
      for (int set = 1; set < SETS; ++set) {
        for (int j = 0; j < COUNT; ++j) sums[0][j] += sums[set][j];
      }
      store_block<N, COUNT>(sums[0], static_cast<Value*>(output) + d);
    });
    end_of_output();
  }
}

// Backward, the sweep over points: ⟨grad, row⟩ for every row. N partial sums of each are stored, as the operator
// does; they are added up only once per task.
template <class Value, class Real>
void backward_points(const Limit& p, int64_t outputs, void* partial, void* dots) {
  constexpr int N = full_lanes<Real>;
  using V = Vector<Real, N>;
  Real* products = static_cast<Real*>(partial);
  for (int64_t o = 0; o < outputs; ++o) {
    const Value* stretch = stretch_of<Value>(p, o);
    visit_whole_blocks<Real>(p.D, [&]<int COUNT>(int64_t d) DDETR_INLINE_LAMBDA {
      V grad[COUNT];
      load_block<N, COUNT>(static_cast<const Value*>(p.grad) + d, grad);
      const Value* row = stretch + d;
      for (int64_t i = 0; i < 4 * p.samples; i += 4) {
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k, row += p.D) {
          V pixel[COUNT];
          load_block<N, COUNT>(row, pixel);
          V sum = pixel[0] * grad[0];
          if (d > 0) sum += load<V>(products + (i + k) * N);
#pragma GCC unroll 8
          for (int j = 1; j < COUNT; ++j) sum += pixel[j] * grad[j];
          store(products + (i + k) * N, sum);
        }
      }
    });
    end_of_output();
  }
  for (int64_t i = 0; i < 4 * p.samples; ++i) {
    Real dot = 0;
    for (int lane = 0; lane < N; ++lane) dot += products[i * N + lane];
    static_cast<Real*>(dots)[i] = dot;
  }
}

// Backward, the sweep over values: row of sums += weight · grad.
template <class Value, class Real>
void backward_value(const Limit& p, int64_t outputs, void* sums) {
  constexpr int N = full_lanes<Real>;
  using V = Vector<Real, N>;
  const Real* weights = static_cast<const Real*>(p.weights);
  const int64_t reads = 4 * p.samples;
  for (int64_t o = 0; o < outputs; ++o) {
    Real* stretch = static_cast<Real*>(sums) + o % (p.row_count / reads) * reads * p.D;
    visit_whole_blocks<Real>(p.D, [&]<int COUNT>(int64_t d) DDETR_INLINE_LAMBDA {
      V grad[COUNT];
      load_block<N, COUNT>(static_cast<const Value*>(p.grad) + d, grad);
      Real* row = stretch + d;
      for (int64_t i = 0; i < reads; i += 4) {
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k, row += p.D) {
          const V weight = splat<Real, N>(weights[i + k]);
#pragma GCC unroll 8
          for (int j = 0; j < COUNT; ++j) store(row + j * N, load<V>(row + j * N) + weight * grad[j]);
        }
      }
    });
    end_of_output();
  }
}

template <class Value, class Real>
constexpr LimitSteps limit_steps_of() {
  return {forward<Value, Real>, backward_points<Value, Real>, backward_value<Value, Real>};
}

}  // namespace

namespace deformable_detr {
DDETR_DEFINE_TABLE(LimitKernels, limit_) = {
    DDETR_KERNELS_NAME, limit_steps_of<float, float>(), limit_steps_of<double, double>(),
    limit_steps_of<BFloat16, float>(), limit_steps_of<Half, float>()};
}  // namespace deformable_detr
