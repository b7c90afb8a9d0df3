// Depthwise convolution for training: the contract between its registration (depthwise_register.cpp) and its loops
// (depthwise.cpp, compiled once per instruction set as kernel.cpp is).
//
// Letters: B batch, C channels, H, W height and width of the input map, OH, OW those of the output map, KH, KW those
// of the kernel. All tensors are dense with the channels last.
#pragma once

#include <stdint.h>

namespace deformable_detr {

struct Depthwise {
  int64_t B, C, H, W, OH, OW, KH, KW, stride;
  int64_t top, left;   // rows and columns of zeros above and left of the input; those below and right follow from OH, OW
  const void* input;   // Real (B, H, W, C)
  const void* weight;  // Real (KH, KW, C)
  const void* bias;    // Real (C,)
  const void* grad;    // Real (B, OH, OW, C), of the output
  void* result;        // the step's output; every element is written
};

using DepthwiseStep = void (*)(const Depthwise&, int64_t task);

// Tasks may run in any order and at once; the results do not depend on it, to the last bit.
struct DepthwiseSteps {
  DepthwiseStep forward;      // result: (B, OH, OW, C); a task is a row of the output, of B·OH
  DepthwiseStep grad_input;   // result: (B, H, W, C); a task is a row of the input, of B·H
  DepthwiseStep grad_weight;  // result: (B, KH, KW, C), the part of each image; a task is an image
};

struct DepthwiseKernels {
  const char* name;
  DepthwiseSteps float32, float64;
};

}  // namespace deformable_detr
