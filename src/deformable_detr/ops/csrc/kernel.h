// The contract between the operator's registration (register.cpp: tensors in, tensors out) and its arithmetic
// (kernel.cpp: pointers and loops, compiled once per instruction set). Nothing but plain data crosses it.
//
// Letters: B batch, S value tokens, M heads, D channels of a head, Q queries, L levels, K_l points of level l,
// P = Σ K_l points of one head. Strides count elements.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace deformable_detr {

// One call of the operator. `Value` below is the type of value and output (float, double, bfloat16, half);
// `Real` is what everything else is kept and computed in: float, or double where Value is double.
struct Problem {
  int64_t B, S, M, D, Q, L, P;
  const int64_t* spatial_shapes;    // (L, 2): H, W; every one at least 1, Σ H·W = S
  const int64_t* points_per_level;  // (L,)

  const void* value;  // Value (B, S, M, D), channels dense
  int64_t value_batch_stride, value_token_stride, value_head_stride;

  // reference_size 0: `points` are locations in [0, 1] and `weights` weigh them.
  // 2 or 4: fused. `points` are offsets around reference points or boxes, `weights` the softmax's logits.
  int64_t reference_size;
  const void* reference;  // Real (B, Q, L, reference_size), the last two dense
  int64_t reference_batch_stride, reference_query_stride;
  const void* points;  // Real (B, Q, M, P, 2), the last two dense; x, y
  int64_t points_batch_stride, points_query_stride, points_head_stride;
  const void* weights;  // Real (B, Q, M, P), the last dense
  int64_t weights_batch_stride, weights_query_stride, weights_head_stride;

  void* output;  // Value (B, Q, M·D), dense

  // Backward only; all dense, every element is written.
  const void* grad_output;  // Value (B, Q, M·D)
  void* grad_value;         // Value (B, S, M, D)
  void* grad_reference;     // Real, or null where not fused
  void* grad_points;        // Real
  void* grad_weights;       // Real

  // Few queries, and Value is Real: grad_value holds zeros, and backward_value adds to it in place.
  bool grad_value_is_zero;

  // How the work is cut. Results do not depend on it, to the last bit.
  int64_t queries_per_task;   // forward and backward_points: a task is (image, this many queries)
  int64_t levels_per_task;    // backward_value: a task is (image, head, levels, channels), and owns
  int64_t channels_per_task;  //   that slice of grad_value
};

using Step = void (*)(const Problem&, int64_t task, void* scratch);

// The three steps for one type of values. A task needs `scratch_bytes` of memory, aligned to 64 bytes,
// with nothing in it; tasks may run in any order and at once.
struct Steps {
  Step forward;
  Step backward_points;  // gradients of reference, points, weights
  Step backward_value;
  size_t (*query_scratch_bytes)(const Problem&);  // for forward and backward_points
  size_t (*value_scratch_bytes)(const Problem&);  // for backward_value
};

// Everything compiled for one instruction set.
struct Kernels {
  const char* name;
  Steps float32, float64, bfloat16, float16;
};

// The name of the kernels in use, for operators with tables of their own (register.cpp).
const char* chosen_kernels_name();

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t query_tasks(const Problem& p) { return p.B * divide_up(p.Q, p.queries_per_task); }

inline int64_t value_tasks(const Problem& p) {
  return p.B * p.M * divide_up(p.L, p.levels_per_task) * divide_up(p.D, p.channels_per_task);
}

}  // namespace deformable_detr
