// The operator on PyTorch's dispatcher: schemas, checks, allocation, threads. The arithmetic is in kernel.cpp.
//
// Only LibTorch's stable ABI and headers are used (torch ≥ 2.10): one build serves every later torch and every
// Python. What the stable ABI has no words for (shape functions, autograd, vmap) is registered from Python, on
// these same operators, in ../native.py. Letters: see kernel.h.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <tuple>
#include <vector>

#include "kernel.h"
#include "tables.h"

namespace deformable_detr {

DDETR_DECLARE_TABLES(Kernels, );

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// ---- Which kernels -------------------------------------------------------------------------------------------

// Those this processor can run, the best first.
std::vector<const Kernels*> runnable_kernels() {
  std::vector<const Kernels*> kernels(std::begin(tables), std::end(tables));
#ifdef DDETR_X86_64
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                  __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  if (!v4) std::erase(kernels, &kernels_x86_64_v4);
  if (!v3) std::erase(kernels, &kernels_x86_64_v3);
#endif
  return kernels;
}

std::atomic<const Kernels*> chosen_kernels{runnable_kernels().front()};

std::string cpu_kernels() {
  std::string names = chosen_kernels.load()->name;
  for (const Kernels* kernels : runnable_kernels()) names += std::string(" ") + kernels->name;
  return names;
}

void choose_cpu_kernels(std::string name) {
  for (const Kernels* kernels : runnable_kernels()) {
    if (name == kernels->name) {
      chosen_kernels = kernels;
      return;
    }
  }
  STD_TORCH_CHECK(false, "deformable_detr: this CPU has no kernels named ", name);
}

const Steps& steps_for(ScalarType type) {
  const Kernels& kernels = *chosen_kernels.load();
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
      STD_TORCH_CHECK(
          false, "deformable_detr: value must be float32, float64, bfloat16 or float16, not ",
          torch::headeronly::toString(type));
  }
}

// ---- Threads -------------------------------------------------------------------------------------------------

// Multiply-adds of one query, and how many of them are worth waking a thread for (some ten microseconds).
int64_t work_of_query(const Problem& p) { return 4 * p.M * p.P * p.D; }
constexpr int64_t kWorkOfTask = 200'000;

// Runs the tasks on torch's own threads. Tasks are taken one by one from a counter, because some are longer than
// others (and some cores slower); which thread runs a task makes no difference to the result.
void run_tasks(Step step, const Problem& problem, int64_t tasks, size_t scratch_bytes) {
  std::atomic<int64_t> next{0};
  const int64_t worthwhile = problem.B * problem.Q * work_of_query(problem) / kWorkOfTask + 1;
  const int64_t workers = std::min({tasks, worthwhile, int64_t{torch::stable::get_num_threads()}});
  torch::stable::parallel_for(0, workers, 1, [&](int64_t, int64_t) {
    constexpr std::align_val_t alignment{64};
    const std::unique_ptr<void, void (*)(void*)> scratch(
        ::operator new(std::max<size_t>(scratch_bytes, 1), alignment),
        [](void* memory) { ::operator delete(memory, std::align_val_t{64}); });
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
      step(problem, task, scratch.get());
    }
  });
}

// ---- From tensors to a problem -------------------------------------------------------------------------------

std::string text(const Tensor& tensor) {
  std::string shape = "(";
  for (int64_t i = 0; i < tensor.dim(); ++i) shape += (i ? ", " : "") + std::to_string(tensor.size(i));
  return shape + ")";
}

void check_shape(const char* name, const Tensor& tensor, const std::vector<int64_t>& expected) {
  bool same = tensor.dim() == static_cast<int64_t>(expected.size());
  for (size_t i = 0; same && i < expected.size(); ++i) same = tensor.size(i) == expected[i];
  std::string wanted;
  for (int64_t size : expected) wanted += (wanted.empty() ? "" : ", ") + std::to_string(size);
  STD_TORCH_CHECK(same, "deformable_detr: ", name, " has shape ", text(tensor), " where (", wanted, ") is expected");
}

void check_type(const char* name, const Tensor& tensor, ScalarType expected) {
  STD_TORCH_CHECK(
      tensor.scalar_type() == expected, "deformable_detr: ", name, " must be ",
      torch::headeronly::toString(expected), ", not ", torch::headeronly::toString(tensor.scalar_type()));
}

// The tensor itself if its last `dims` dimensions lie densely in memory, else a copy in which they do.
Tensor dense_tail(const Tensor& tensor, int64_t dims) {
  int64_t step = 1;
  for (int64_t i = tensor.dim() - 1; i >= tensor.dim() - dims; --i) {
    if (tensor.size(i) != 1 && tensor.stride(i) != step) return torch::stable::contiguous(tensor);
    step *= tensor.size(i);
  }
  return tensor;
}

// Whether a head's queries have more points than there are pixels: an encoder. Then each row is read many times.
bool is_dense(const Problem& p) { return p.Q * p.P > p.S; }

// The same value (B, S, M, D) with each head's rows side by side in memory. Rows of one head that lie M·D apart share a
// few sets of the first cache: with the copy, an encoder's call takes 15 % less (docs/operator.md). (Stride 0: all heads read alike.)
Tensor heads_apart(const Tensor& value) {
  if (value.size(2) == 1 || value.stride(2) == 0 || value.stride(1) == value.size(3)) return value;
  return torch::stable::transpose(torch::stable::contiguous(torch::stable::transpose(value, 1, 2)), 1, 2);
}

// A Problem and the tensors and tables that its pointers point into.
struct Call {
  Problem problem{};
  ScalarType value_type, real_type;
  Tensor value, points, weights;
  std::vector<Tensor> reference;  // none or one
  std::vector<int64_t> spatial_shapes, points_per_level;

  Call(
      const Tensor& value_in, std::vector<int64_t> spatial_shapes_in, const Tensor* reference_in,
      const Tensor& points_in, const Tensor& weights_in, std::vector<int64_t> points_per_level_in)
      : value_type(value_in.scalar_type()),
        real_type(value_type == ScalarType::Double ? ScalarType::Double : ScalarType::Float),
        value(value_in),
        points(points_in),
        weights(weights_in),
        spatial_shapes(std::move(spatial_shapes_in)),
        points_per_level(std::move(points_per_level_in)) {
    steps_for(value_type);  // refuses other types
    STD_TORCH_CHECK(value.dim() == 4, "deformable_detr: value must be (B, S, M, D), not ", text(value));
    STD_TORCH_CHECK(weights.dim() == 4, "deformable_detr: weights must be (B, Q, M, P), not ", text(weights));
    Problem& p = problem;
    p.B = value.size(0), p.S = value.size(1), p.M = value.size(2), p.D = value.size(3);
    p.Q = weights.size(1), p.P = weights.size(3);
    p.L = points_per_level.size();
    STD_TORCH_CHECK(
        static_cast<int64_t>(spatial_shapes.size()) == 2 * p.L, "deformable_detr: spatial_shapes must hold H and W for ",
        p.L, " levels, not ", spatial_shapes.size(), " numbers");
    int64_t tokens = 0, points_of_head = 0;
    for (int64_t l = 0; l < p.L; ++l) {
      const int64_t H = spatial_shapes[2 * l], W = spatial_shapes[2 * l + 1], K = points_per_level[l];
      STD_TORCH_CHECK(
          H >= 1 && W >= 1 && K >= 0, "deformable_detr: level ", l, " has size (", H, ", ", W, ") and ", K, " points");
      // Checked one by one, so that products cannot overflow. Pixels are counted in Real: 2^22 is exact with room.
      STD_TORCH_CHECK(H < (1 << 22) && W < (1 << 22), "deformable_detr: level ", l, " is too large");
      STD_TORCH_CHECK(K <= p.P, "deformable_detr: points_per_level hold more than weights' ", p.P, " points");
      tokens += H * W;
      points_of_head += K;
      STD_TORCH_CHECK(tokens <= p.S, "deformable_detr: spatial_shapes hold more than value's ", p.S, " tokens");
    }
    STD_TORCH_CHECK(
        tokens == p.S, "deformable_detr: spatial_shapes hold ", tokens, " tokens, but value has ", p.S);
    STD_TORCH_CHECK(
        points_of_head == p.P, "deformable_detr: points_per_level hold ", points_of_head,
        " points, but weights have ", p.P);
    check_shape("weights", weights, {p.B, p.Q, p.M, p.P});
    check_shape("points", points, {p.B, p.Q, p.M, p.P, 2});
    check_type("points", points, real_type);
    check_type("weights", weights, real_type);

    value = dense_tail(value, 1);
    if (is_dense(p)) value = heads_apart(value);
    points = dense_tail(points, 2);
    weights = dense_tail(weights, 1);
    p.spatial_shapes = spatial_shapes.data();
    p.points_per_level = points_per_level.data();
    p.value = value.const_data_ptr();
    p.value_batch_stride = value.stride(0);
    p.value_token_stride = value.stride(1);
    p.value_head_stride = value.stride(2);
    p.points = points.const_data_ptr();
    p.points_batch_stride = points.stride(0);
    p.points_query_stride = points.stride(1);
    p.points_head_stride = points.stride(2);
    p.weights = weights.const_data_ptr();
    p.weights_batch_stride = weights.stride(0);
    p.weights_query_stride = weights.stride(1);
    p.weights_head_stride = weights.stride(2);
    // Offsets within an image are 32 bits wide.
    const int64_t farthest = std::max(p.S * p.value_token_stride, p.S * p.M * p.D);
    STD_TORCH_CHECK(
        farthest <= std::numeric_limits<int32_t>::max(),
        "deformable_detr: an image's value spans more than 2^31 elements; split it by heads");

    if (reference_in) {
      const Tensor& given = *reference_in;
      STD_TORCH_CHECK(
          given.dim() == 4 && (given.size(3) == 2 || given.size(3) == 4),
          "deformable_detr: reference must be (B, Q, L, 2) or (B, Q, L, 4), not ", text(given));
      check_shape("reference", given, {p.B, p.Q, p.L, given.size(3)});
      check_type("reference", given, real_type);
      reference.push_back(dense_tail(given, 2));
      p.reference_size = given.size(3);
      p.reference = reference[0].const_data_ptr();
      p.reference_batch_stride = reference[0].stride(0);
      p.reference_query_stride = reference[0].stride(1);
    }

    // Tiles of queries: large enough to share what neighbours have brought into the cache, small enough for
    // every thread to get several. Slices: a head of an image; levels and then channels apart if that leaves
    // threads without work.
    const int64_t threads = torch::stable::get_num_threads();
    const int64_t fewest = divide_up(kWorkOfTask, std::max<int64_t>(work_of_query(p), 1));
    p.queries_per_task = std::clamp<int64_t>(p.B * p.Q / (8 * threads), std::min<int64_t>(fewest, 32), 32);
    p.levels_per_task = p.B * p.M >= threads ? std::max<int64_t>(p.L, 1) : 1;
    p.channels_per_task = p.B * p.M * p.L >= threads ? std::max<int64_t>(p.D, 1) : 16;
  }

  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  const Steps& steps() const { return steps_for(value_type); }
  bool is_empty() const { return problem.B * problem.Q * problem.M * problem.D == 0; }
};

Tensor run_forward(Call& call) {
  Problem& p = call.problem;
  Tensor output = torch::stable::new_empty(call.value, {p.B, p.Q, p.M * p.D});
  if (call.is_empty()) return output;
  p.output = output.mutable_data_ptr();
  run_tasks(call.steps().forward, p, query_tasks(p), call.steps().query_scratch_bytes(p));
  return output;
}

struct Gradients {
  Tensor value, points, weights;
  std::vector<Tensor> reference;
};

Gradients run_backward(Call& call, const Tensor& grad_output_in) {
  Problem& p = call.problem;
  check_shape("grad_output", grad_output_in, {p.B, p.Q, p.M * p.D});
  check_type("grad_output", grad_output_in, call.value_type);
  const Tensor grad_output = torch::stable::contiguous(grad_output_in);
  const bool empty = call.is_empty();
  // Dense; zeros where nothing would be written (no queries, say).
  const auto make = [&](const Tensor& like, const std::vector<int64_t>& shape, bool zeros) {
    return zeros ? torch::stable::new_zeros(like, shape) : torch::stable::new_empty(like, shape);
  };
  p.grad_value_is_zero = call.value_type == call.real_type && !is_dense(p);
  Gradients grads;
  grads.value = make(call.value, {p.B, p.S, p.M, p.D}, empty || p.grad_value_is_zero);
  grads.points = make(call.points, {p.B, p.Q, p.M, p.P, 2}, empty);
  grads.weights = make(call.weights, {p.B, p.Q, p.M, p.P}, empty);
  if (p.reference_size) grads.reference.push_back(make(call.reference[0], {p.B, p.Q, p.L, p.reference_size}, empty));
  if (empty) return grads;

  p.grad_output = grad_output.const_data_ptr();
  p.grad_value = grads.value.mutable_data_ptr();
  p.grad_points = grads.points.mutable_data_ptr();
  p.grad_weights = grads.weights.mutable_data_ptr();
  if (p.reference_size) p.grad_reference = grads.reference[0].mutable_data_ptr();
  const Steps& steps = call.steps();
  run_tasks(steps.backward_points, p, query_tasks(p), steps.query_scratch_bytes(p));
  run_tasks(steps.backward_value, p, value_tasks(p), steps.value_scratch_bytes(p));
  return grads;
}

// ---- The operators -------------------------------------------------------------------------------------------

Tensor ms_deform_attn(
    Tensor value, std::vector<int64_t> spatial_shapes, Tensor locations, Tensor weights,
    std::vector<int64_t> points_per_level) {
  Call call(value, std::move(spatial_shapes), nullptr, locations, weights, std::move(points_per_level));
  return run_forward(call);
}

std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward(
    Tensor grad_output, Tensor value, std::vector<int64_t> spatial_shapes, Tensor locations, Tensor weights,
    std::vector<int64_t> points_per_level) {
  Call call(value, std::move(spatial_shapes), nullptr, locations, weights, std::move(points_per_level));
  Gradients grads = run_backward(call, grad_output);
  return {grads.value, grads.points, grads.weights};
}

Tensor fused_ms_deform_attn(
    Tensor value, std::vector<int64_t> spatial_shapes, Tensor reference, Tensor offsets, Tensor logits,
    std::vector<int64_t> points_per_level) {
  Call call(value, std::move(spatial_shapes), &reference, offsets, logits, std::move(points_per_level));
  return run_forward(call);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> fused_ms_deform_attn_backward(
    Tensor grad_output, Tensor value, std::vector<int64_t> spatial_shapes, Tensor reference, Tensor offsets,
    Tensor logits, std::vector<int64_t> points_per_level) {
  Call call(value, std::move(spatial_shapes), &reference, offsets, logits, std::move(points_per_level));
  Gradients grads = run_backward(call, grad_output);
  return {grads.value, grads.reference[0], grads.points, grads.weights};
}

}  // namespace

const char* chosen_kernels_name() { return chosen_kernels.load()->name; }

}  // namespace deformable_detr

// SymInt: with plain int, torch.export would bake the sizes of the example picture into the program.
STABLE_TORCH_LIBRARY(deformable_detr, library) {
  library.def(
      "ms_deform_attn(Tensor value, SymInt[] spatial_shapes, Tensor locations, Tensor weights, "
      "int[] points_per_level) -> Tensor");
  library.def(
      "ms_deform_attn_backward(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, Tensor locations, "
      "Tensor weights, int[] points_per_level) -> (Tensor, Tensor, Tensor)");
  library.def(
      "fused_ms_deform_attn(Tensor value, SymInt[] spatial_shapes, Tensor reference, Tensor offsets, "
      "Tensor logits, int[] points_per_level) -> Tensor");
  library.def(
      "fused_ms_deform_attn_backward(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, "
      "Tensor reference, Tensor offsets, Tensor logits, int[] points_per_level) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  // The kernels in use, then all that this CPU can run; and another choice among these (tests, benchmarks).
  library.def("cpu_kernels() -> str");
  library.def("choose_cpu_kernels(str name) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(deformable_detr, CPU, library) {
  library.impl("ms_deform_attn", TORCH_BOX(&deformable_detr::ms_deform_attn));
  library.impl("ms_deform_attn_backward", TORCH_BOX(&deformable_detr::ms_deform_attn_backward));
  library.impl("fused_ms_deform_attn", TORCH_BOX(&deformable_detr::fused_ms_deform_attn));
  library.impl("fused_ms_deform_attn_backward", TORCH_BOX(&deformable_detr::fused_ms_deform_attn_backward));
}

STABLE_TORCH_LIBRARY_IMPL(deformable_detr, CompositeExplicitAutograd, library) {
  library.impl("cpu_kernels", TORCH_BOX(&deformable_detr::cpu_kernels));
  library.impl("choose_cpu_kernels", TORCH_BOX(&deformable_detr::choose_cpu_kernels));
}
