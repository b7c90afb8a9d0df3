// The measured limit on PyTorch's dispatcher (limit.h). For benchmarks only: no autograd, no shape functions.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <string>
#include <tuple>

#include "limit.h"
#include "tables.h"

namespace deformable_detr {

DDETR_DECLARE_TABLES(LimitKernels, limit_);

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

const LimitKernels& limit_kernels(const std::string& name) {
  // Asked for by the name that cpu_kernels() gave, so this processor can run them.
  const LimitKernels* kernels = table_named(limit_tables, name.c_str());
  STD_TORCH_CHECK(kernels, "deformable_detr: the limit was not compiled for kernels named ", name);
  return *kernels;
}

const LimitSteps& limit_steps(const LimitKernels& kernels, ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return kernels.float32;
    case ScalarType::Double:
      return kernels.float64;
    case ScalarType::BFloat16:
      return kernels.bfloat16;
    case ScalarType::Half:
      return kernels.float16;
    default:
      STD_TORCH_CHECK(false, "deformable_detr: the limit has no kernels for ", torch::headeronly::toString(type));
  }
}

Limit limit_of(const Tensor& rows, const Tensor& weights, int64_t tasks) {
  const ScalarType real = rows.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(
      rows.dim() == 2 && rows.is_contiguous() && weights.dim() == 1 && weights.is_contiguous() &&
          weights.scalar_type() == real && tasks > 0,
      "deformable_detr: the limit takes dense rows (R, D), dense weights (4·samples,) of the type that values are "
      "multiplied in, and at least one task");
  const int64_t reads = weights.size(0);
  STD_TORCH_CHECK(
      reads > 0 && reads % 4 == 0 && rows.size(0) > 0 && rows.size(0) % reads == 0 && rows.size(1) % 16 == 0,
      "deformable_detr: the limit needs R a multiple of 4·samples, D of 16");
  return {rows.size(0), rows.size(1), reads / 4, rows.const_data_ptr(), weights.const_data_ptr(), nullptr};
}

// As register.cpp runs its tasks: one by one from a counter, on torch's threads. run(task, its outputs).
template <class Run>
void run_tasks(int64_t outputs, int64_t tasks, const Run& run) {
  std::atomic<int64_t> next{0};
  const int64_t workers = std::min(tasks, int64_t{torch::stable::get_num_threads()});
  torch::stable::parallel_for(0, workers, 1, [&](int64_t, int64_t) {
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
      run(task, (task + 1) * outputs / tasks - task * outputs / tasks);
    }
  });
}

char* part(Tensor& tensor, int64_t task, int64_t tasks, int64_t item_bytes) {
  return static_cast<char*>(tensor.mutable_data_ptr()) + task * (tensor.numel() / tasks) * item_bytes;
}

int64_t bytes_of(ScalarType type) {
  return type == ScalarType::Double ? 8 : type == ScalarType::Float ? 4 : 2;
}

Tensor sampling_limit(Tensor rows, Tensor weights, int64_t outputs, int64_t tasks, std::string kernels) {
  const Limit limit = limit_of(rows, weights, tasks);
  const LimitSteps& steps = limit_steps(limit_kernels(kernels), rows.scalar_type());
  Tensor output = torch::stable::new_zeros(rows, {tasks, limit.D});
  const int64_t bytes = bytes_of(rows.scalar_type());
  run_tasks(outputs, tasks, [&](int64_t task, int64_t count) {
    steps.forward(limit, count, part(output, task, tasks, bytes));
  });
  return output;
}

std::tuple<Tensor, Tensor> sampling_limit_backward(
    Tensor rows, Tensor weights, Tensor grad, int64_t outputs, int64_t tasks, std::string kernels) {
  Limit limit = limit_of(rows, weights, tasks);
  STD_TORCH_CHECK(
      grad.dim() == 1 && grad.is_contiguous() && grad.size(0) == limit.D && grad.scalar_type() == rows.scalar_type(),
      "deformable_detr: the limit's grad must be dense, (D,), and of rows' type");
  limit.grad = grad.const_data_ptr();
  const LimitSteps& steps = limit_steps(limit_kernels(kernels), rows.scalar_type());
  const int64_t bytes = bytes_of(weights.scalar_type());
  const int64_t reads = 4 * limit.samples;
  Tensor dots = torch::stable::new_zeros(weights, {tasks, reads});
  Tensor partial = torch::stable::new_zeros(weights, {tasks, reads * 64 / bytes});
  Tensor sums = torch::stable::new_zeros(weights, {tasks, limit.row_count, limit.D});
  run_tasks(outputs, tasks, [&](int64_t task, int64_t count) {
    steps.backward_points(limit, count, part(partial, task, tasks, bytes), part(dots, task, tasks, bytes));
  });
  run_tasks(outputs, tasks, [&](int64_t task, int64_t count) {
    steps.backward_value(limit, count, part(sums, task, tasks, bytes));
  });
  return {dots, sums};
}

}  // namespace
}  // namespace deformable_detr

// `weights` has 4·samples numbers; `kernels` is a name from cpu_kernels(). Task t has (t+1)·outputs/tasks −
// t·outputs/tasks outputs; results: (tasks, D), and (tasks, 4·samples), (tasks, R, D).
STABLE_TORCH_LIBRARY_FRAGMENT(deformable_detr, library) {
  library.def("sampling_limit(Tensor rows, Tensor weights, int outputs, int tasks, str kernels) -> Tensor");
  library.def(
      "sampling_limit_backward(Tensor rows, Tensor weights, Tensor grad, int outputs, int tasks, str kernels) "
      "-> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(deformable_detr, CPU, library) {
  library.impl("sampling_limit", TORCH_BOX(&deformable_detr::sampling_limit));
  library.impl("sampling_limit_backward", TORCH_BOX(&deformable_detr::sampling_limit_backward));
}
