// The measured limit: what the operator would cost if it never had to look anything up. The contract between its
// registration (limit_register.cpp) and its loops (limit.cpp, compiled once per instruction set as kernel.cpp is).
// Only `deformable-detr benchmark op` calls it. Definition: docs/operator.md, "How near the limit".
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace deformable_detr {

// An "output" reads 4·samples rows of D channels, as one (query, head) of the operator does: the i-th output of a
// task the stretch i mod (row_count / (4·samples)) of `rows`. Value and Real as in kernel.h.
struct Limit {
  int64_t row_count, D, samples;
  const void* rows;     // Value (row_count, D); row_count a multiple of 4·samples, D of 16
  const void* weights;  // Real (4·samples,)
  const void* grad;     // Value (D,); backward only
};

// One task each, of so many outputs, which all write to the same place, so that it stays in the cache.
struct LimitSteps {
  // output: Value (D,), the last output's.
  void (*forward)(const Limit&, int64_t outputs, void* output);
  // partial: 64 bytes for each of 4·samples rows; dots: Real (4·samples,), the last output's.
  void (*backward_points)(const Limit&, int64_t outputs, void* partial, void* dots);
  // sums: Real (row_count, D), added to; channels in the order in which load_block (simd.h) has them.
  void (*backward_value)(const Limit&, int64_t outputs, void* sums);
};

struct LimitKernels {
  const char* name;
  LimitSteps float32, float64, bfloat16, float16;
};

}  // namespace deformable_detr
