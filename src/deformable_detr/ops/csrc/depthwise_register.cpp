// Depthwise convolution on PyTorch's dispatcher: checks, allocation, threads. The arithmetic is in depthwise.cpp;
// autograd is added in ../depthwise.py. Letters: see depthwise.h.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "depthwise.h"
#include "kernel.h"
#include "tables.h"

namespace deformable_detr {

DDETR_DECLARE_TABLES(DepthwiseKernels, depthwise_);

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

const DepthwiseSteps& steps_for(const Tensor& tensor) {
  const DepthwiseKernels& kernels = *table_named(depthwise_tables, chosen_kernels_name());
  if (tensor.scalar_type() == ScalarType::Float) return kernels.float32;
  STD_TORCH_CHECK(
      tensor.scalar_type() == ScalarType::Double, "deformable_detr: a depthwise convolution takes float32 or float64, not ",
      torch::headeronly::toString(tensor.scalar_type()));
  return kernels.float64;
}

void run_tasks(DepthwiseStep step, const Depthwise& problem, int64_t tasks) {
  std::atomic<int64_t> next{0};
  const int64_t workers = std::min(tasks, int64_t{torch::stable::get_num_threads()});
  torch::stable::parallel_for(0, workers, 1, [&](int64_t, int64_t) {
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) step(problem, task);
  });
}

void check(const char* name, const Tensor& tensor, const Tensor& like, const std::vector<int64_t>& shape) {
  bool same = tensor.dim() == static_cast<int64_t>(shape.size()) && tensor.scalar_type() == like.scalar_type() &&
              tensor.is_contiguous();
  for (size_t i = 0; same && i < shape.size(); ++i) same = tensor.size(i) == shape[i];
  std::string wanted;
  for (int64_t size : shape) wanted += (wanted.empty() ? "" : ", ") + std::to_string(size);
  STD_TORCH_CHECK(same, "deformable_detr: ", name, " must be dense, of the input's type, and (", wanted, ")");
}

Depthwise problem_of(
    const Tensor& input, const Tensor& weight, int64_t stride, int64_t top, int64_t left, int64_t OH, int64_t OW) {
  STD_TORCH_CHECK(input.dim() == 4 && weight.dim() == 3, "deformable_detr: the input must be (B, H, W, C), the weight (KH, KW, C)");
  Depthwise p{};
  p.B = input.size(0), p.H = input.size(1), p.W = input.size(2), p.C = input.size(3);
  p.KH = weight.size(0), p.KW = weight.size(1), p.OH = OH, p.OW = OW, p.stride = stride, p.top = top, p.left = left;
  STD_TORCH_CHECK(
      stride >= 1 && top >= 0 && left >= 0 && OH >= 0 && OW >= 0,
      "deformable_detr: a stride must be positive, paddings and sizes must not be negative");
  check("the input", input, input, {p.B, p.H, p.W, p.C});
  check("the weight", weight, input, {p.KH, p.KW, p.C});
  p.input = input.const_data_ptr();
  p.weight = weight.const_data_ptr();
  return p;
}

Tensor depthwise_conv(
    Tensor input, Tensor weight, Tensor bias, int64_t stride, int64_t top, int64_t left, int64_t height, int64_t width) {
  Depthwise p = problem_of(input, weight, stride, top, left, height, width);
  check("the bias", bias, input, {p.C});
  p.bias = bias.const_data_ptr();
  Tensor output = torch::stable::new_empty(input, {p.B, p.OH, p.OW, p.C});
  p.result = output.mutable_data_ptr();
  run_tasks(steps_for(input).forward, p, p.B * p.OH);
  return output;
}

std::tuple<Tensor, Tensor> depthwise_conv_backward(
    Tensor grad, Tensor input, Tensor weight, int64_t stride, int64_t top, int64_t left) {
  STD_TORCH_CHECK(grad.dim() == 4, "deformable_detr: the gradient must be (B, OH, OW, C)");
  Depthwise p = problem_of(input, weight, stride, top, left, grad.size(1), grad.size(2));
  check("the gradient", grad, input, {p.B, p.OH, p.OW, p.C});
  p.grad = grad.const_data_ptr();
  Tensor grad_input = torch::stable::new_empty(input, {p.B, p.H, p.W, p.C});
  Tensor grad_weight = torch::stable::new_empty(input, {p.B, p.KH, p.KW, p.C});
  const DepthwiseSteps& steps = steps_for(input);
  p.result = grad_input.mutable_data_ptr();
  run_tasks(steps.grad_input, p, p.B * p.H);
  p.result = grad_weight.mutable_data_ptr();
  run_tasks(steps.grad_weight, p, p.B);
  return {grad_input, grad_weight};
}

}  // namespace
}  // namespace deformable_detr

// input (B, H, W, C), weight (KH, KW, C), bias (C,) → (B, height, width, C). All dense, of one type. The backward
// operator returns the gradients of the input and, separately for each image, of the weight: (B, KH, KW, C).
STABLE_TORCH_LIBRARY_FRAGMENT(deformable_detr, library) {
  library.def(
      "depthwise_conv(Tensor input, Tensor weight, Tensor bias, int stride, int top, int left, int height, "
      "int width) -> Tensor");
  library.def(
      "depthwise_conv_backward(Tensor grad, Tensor input, Tensor weight, int stride, int top, int left) "
      "-> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(deformable_detr, CPU, library) {
  library.impl("depthwise_conv", TORCH_BOX(&deformable_detr::depthwise_conv));
  library.impl("depthwise_conv_backward", TORCH_BOX(&deformable_detr::depthwise_conv_backward));
}
