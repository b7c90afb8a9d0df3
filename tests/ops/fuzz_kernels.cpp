// Runs the kernels, without PyTorch, on random problems with wild numbers: every array is allocated at its exact
// size, so that AddressSanitizer sees any step outside. Where the numbers are tame, results are compared: the
// output with plain loops, the gradients through the operator's linearity.
// Started by test_ms_deform_attn.py: fuzz NUMBER_OF_PROBLEMS. Exits with 1 at the first difference.

#include "kernel.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <type_traits>
#include <vector>

namespace deformable_detr {
extern const Kernels DDETR_KERNELS;
}
using namespace deformable_detr;

namespace {

std::mt19937_64 random_bits(20260101);

int64_t between(int64_t low, int64_t high) {
  return low + static_cast<int64_t>(random_bits() % static_cast<uint64_t>(high - low + 1));
}

double uniform(double low, double high) {
  return low + (high - low) * static_cast<double>(random_bits() >> 11) * 0x1p-53;
}

// Sometimes nothing sensible.
double wild(double low, double high) {
  const double inf = std::numeric_limits<double>::infinity();
  switch (between(0, 19)) {
    case 0: return std::nan("");
    case 1: return between(0, 1) ? inf : -inf;
    case 2: return uniform(-1e30, 1e30);
    case 3: return between(0, 1) ? 3e38 : -3e38;
    case 4: return static_cast<double>(between(-3, 3));
    case 5: return std::ldexp(uniform(-1, 1), static_cast<int>(between(-149, 127)));
    default: return uniform(low, high);
  }
}

// The four types of values: bits from a number, and back. (Rounding is tested from Python: here towards zero.)
template <class T> T stored(double x) { return static_cast<T>(x); }
template <class T> double read(T x) { return x; }
struct BFloat16 { uint16_t raw; };
struct Half { uint16_t raw; };
template <> BFloat16 stored(double x) {
  const float f = static_cast<float>(x);
  uint32_t u;
  memcpy(&u, &f, 4);
  return {static_cast<uint16_t>(u >> 16)};
}
template <> double read(BFloat16 x) {
  const uint32_t u = uint32_t{x.raw} << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}
template <> Half stored(double x) {  // |x| in [2^-14, 65504), which is all that is asked for; else zero
  int exponent;
  const double mantissa = std::frexp(std::fabs(x), &exponent);
  if (exponent < -13) return {0};
  const auto raw = static_cast<uint16_t>(((exponent + 14) << 10) | (static_cast<int>(mantissa * 2048) & 1023));
  return {static_cast<uint16_t>(raw | (x < 0 ? 0x8000 : 0))};
}
template <> double read(Half x) {
  const int exponent = (x.raw >> 10) & 31;
  const double mantissa = exponent ? 1024 + (x.raw & 1023) : x.raw & 1023;
  return (x.raw & 0x8000 ? -1 : 1) * std::ldexp(mantissa, (exponent ? exponent : 1) - 25);
}

void run(Step step, const Problem& p, int64_t tasks, size_t scratch_bytes) {
  for (int64_t task = 0; task < tasks; ++task) {
    const size_t rounded = (scratch_bytes + 63) / 64 * 64;
    const std::unique_ptr<void, void (*)(void*)> scratch(std::aligned_alloc(64, rounded), std::free);
    memset(scratch.get(), 0xff, rounded);  // NaN: nothing may rely on zeros
    step(p, task, scratch.get());
  }
}

// The largest difference allowed, and a complaint if it is exceeded.
bool differs(const char* what, const Problem& p, double got, double expected, double tolerance) {
  if (std::fabs(got - expected) <= tolerance) return false;
  std::printf("%s: %.9g where %.9g is expected. B %ld S %ld M %ld D %ld Q %ld L %ld P %ld reference %ld\n", what,
              got, expected, (long)p.B, (long)p.S, (long)p.M, (long)p.D, (long)p.Q, (long)p.L, (long)p.P,
              (long)p.reference_size);
  return true;
}

template <class Value, class Real>
bool fuzz(const Steps& steps, double precision) {
  Problem p{};
  const bool tame = between(0, 1);
  const auto number = [&](double low, double high) { return tame ? uniform(low, high) : wild(low, high); };
  p.B = between(1, 2), p.M = between(1, 3), p.Q = between(1, 9), p.L = between(1, 4);
  p.D = between(0, 2) ? between(1, 40) : 8 * between(1, 40);
  std::vector<int64_t> shapes, per_level;
  for (int64_t l = 0; l < p.L; ++l) {
    shapes.push_back(between(1, 6)), shapes.push_back(between(1, 6));
    per_level.push_back(between(0, 9));
    p.S += shapes[2 * l] * shapes[2 * l + 1];
    p.P += per_level[l];
  }
  if (p.P == 0) p.P = per_level.back() = 1;
  p.spatial_shapes = shapes.data(), p.points_per_level = per_level.data();
  p.reference_size = 2 * between(0, 2);

  std::vector<Value> value(p.B * p.S * p.M * p.D), grad_output(p.B * p.Q * p.M * p.D);
  std::vector<Real> reference(p.B * p.Q * p.L * p.reference_size), points(p.B * p.Q * p.M * p.P * 2),
      weights(p.B * p.Q * p.M * p.P);
  const auto sign = [] { return between(0, 1) ? 1.0 : -1.0; };
  for (auto& each : value) each = stored<Value>(sign() * uniform(0.25, 1));
  for (auto& each : grad_output) each = stored<Value>(sign() * uniform(0.25, 1));
  for (auto& each : reference) each = static_cast<Real>(number(0, 1));
  for (auto& each : points) each = static_cast<Real>(p.reference_size ? number(-4, 4) : number(-0.5, 1.5));
  for (auto& each : weights) each = static_cast<Real>(number(-2, 2));

  p.value = value.data();
  if (between(0, 1)) {  // tokens within heads, or heads within tokens
    p.value_head_stride = p.S * p.D, p.value_token_stride = p.D;
  } else {
    p.value_head_stride = p.D, p.value_token_stride = p.M * p.D;
  }
  p.value_batch_stride = p.S * p.M * p.D;
  p.reference = reference.data();
  p.reference_query_stride = p.L * p.reference_size, p.reference_batch_stride = p.Q * p.reference_query_stride;
  p.points = points.data(), p.weights = weights.data();
  p.weights_head_stride = p.P, p.weights_query_stride = p.M * p.P, p.weights_batch_stride = p.Q * p.M * p.P;
  p.points_head_stride = 2 * p.weights_head_stride, p.points_query_stride = 2 * p.weights_query_stride;
  p.points_batch_stride = 2 * p.weights_batch_stride;
  p.queries_per_task = between(1, p.Q + 2);
  p.levels_per_task = between(1, p.L);
  p.channels_per_task = between(0, 1) ? p.D : 8 * between(1, 3);

  const Value nothing = stored<Value>(9);
  const Real never = 9;
  p.grad_value_is_zero = std::is_same_v<Value, Real> && between(0, 1);
  std::vector<Value> output(grad_output.size(), nothing);
  std::vector<Value> grad_value(value.size(), p.grad_value_is_zero ? stored<Value>(0) : nothing);
  std::vector<Real> grad_reference(reference.size(), never), grad_points(points.size(), never),
      grad_weights(weights.size(), never);
  p.output = output.data(), p.grad_output = grad_output.data(), p.grad_value = grad_value.data();
  p.grad_reference = p.reference_size ? grad_reference.data() : nullptr;
  p.grad_points = grad_points.data(), p.grad_weights = grad_weights.data();

  run(steps.forward, p, query_tasks(p), steps.query_scratch_bytes(p));
  run(steps.backward_points, p, query_tasks(p), steps.query_scratch_bytes(p));
  run(steps.backward_value, p, value_tasks(p), steps.value_scratch_bytes(p));
  if (!tame) return true;

  // The output, by plain loops; and ⟨grad_output, output⟩, which is linear in value.
  double product = 0;
  for (int64_t b = 0; b < p.B; ++b) {
    for (int64_t q = 0; q < p.Q; ++q) {
      for (int64_t m = 0; m < p.M; ++m) {
        const int64_t row = (b * p.Q + q) * p.M + m;
        double most = -1e300, total = 0;
        for (int64_t i = 0; i < p.P; ++i) most = std::fmax(most, weights[row * p.P + i]);
        for (int64_t i = 0; i < p.P; ++i) total += std::exp(weights[row * p.P + i] - most);
        std::vector<double> sum(p.D, 0.0);
        for (int64_t l = 0, i = 0, first = 0; l < p.L; first += shapes[2 * l] * shapes[2 * l + 1], ++l) {
          const int64_t H = shapes[2 * l], W = shapes[2 * l + 1];
          for (int64_t k = 0; k < per_level[l]; ++k, ++i) {
            double x = points[(row * p.P + i) * 2], y = points[(row * p.P + i) * 2 + 1];
            double weight = weights[row * p.P + i];
            if (p.reference_size) {
              const Real* r = &reference[((b * p.Q + q) * p.L + l) * p.reference_size];
              x = r[0] + (p.reference_size == 2 ? x / W : x / per_level[l] * r[2] / 2);
              y = r[1] + (p.reference_size == 2 ? y / H : y / per_level[l] * r[3] / 2);
              weight = std::exp(weight - most) / total;
            }
            x = x * W - 0.5, y = y * H - 0.5;
            for (int64_t row_y = 0; row_y < H; ++row_y) {
              for (int64_t column = 0; column < W; ++column) {
                const double bilinear = std::fmax(0, 1 - std::fabs(x - column)) * std::fmax(0, 1 - std::fabs(y - row_y));
                if (bilinear == 0) continue;
                const Value* pixel = &value[b * p.value_batch_stride + (first + row_y * W + column) * p.value_token_stride +
                                            m * p.value_head_stride];
                for (int64_t d = 0; d < p.D; ++d) sum[d] += weight * bilinear * read(pixel[d]);
              }
            }
          }
        }
        for (int64_t d = 0; d < p.D; ++d) {
          const double got = read(output[row * p.D + d]);
          if (differs("output", p, got, sum[d], precision * (1 + p.P))) return false;
          product += sum[d] * read(grad_output[row * p.D + d]);
        }
      }
    }
  }
  // grad_value is dense, value need not be.
  double through_value = 0, through_weights = 0;
  for (int64_t b = 0; b < p.B; ++b)
    for (int64_t s = 0; s < p.S; ++s)
      for (int64_t m = 0; m < p.M; ++m)
        for (int64_t d = 0; d < p.D; ++d)
          through_value += read(grad_value[((b * p.S + s) * p.M + m) * p.D + d]) *
                           read(value[b * p.value_batch_stride + s * p.value_token_stride + m * p.value_head_stride + d]);
  const double tolerance = precision * (1 + p.P) * static_cast<double>(output.size());
  if (differs("<grad_value, value>", p, through_value, product, tolerance)) return false;
  for (size_t i = 0; i < weights.size(); ++i) through_weights += double{weights[i]} * grad_weights[i];
  if (!p.reference_size && differs("<grad_weights, weights>", p, through_weights, product, tolerance)) return false;
  // Moving the reference moves every point of the level: the gradients are tied.
  for (int64_t l = 0, first = 0; p.reference_size == 2 && l < p.L; first += per_level[l++]) {
    double sum = 0;
    for (int64_t m = 0; m < p.M; ++m)
      for (int64_t k = 0; k < per_level[l]; ++k) sum += grad_points[(m * p.P + first + k) * 2] * shapes[2 * l + 1];
    if (differs("grad_reference", p, grad_reference[l * 2], sum, precision * 100 * (1 + std::fabs(sum)))) return false;
  }
  return true;
}

}  // namespace

int main(int, char** arguments) {
  const int problems = std::atoi(arguments[1]);
  for (int i = 0; i < problems; ++i) {
    const bool right = i % 4 == 0   ? fuzz<float, float>(DDETR_KERNELS.float32, 1e-5)
                       : i % 4 == 1 ? fuzz<double, double>(DDETR_KERNELS.float64, 1e-12)
                       : i % 4 == 2 ? fuzz<BFloat16, float>(DDETR_KERNELS.bfloat16, 8e-3)
                                    : fuzz<Half, float>(DDETR_KERNELS.float16, 1e-3);
    if (!right) return 1;
  }
  std::printf("%d problems\n", problems);
  return 0;
}
