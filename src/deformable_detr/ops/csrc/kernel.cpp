// Multi-scale deformable attention on a CPU: the arithmetic. Paper: section 4.1, equations 2 and 3.
// Compiled once per instruction set (CMakeLists.txt); register.cpp chooses one when the library is loaded.
// docs/operator.md tells the same story with a picture. Letters: see kernel.h.
//
// One (query, head) has P sampling points, some sixteen. Two kinds of work alternate:
//   * across points: where each one falls, its four pixels, its bilinear weights. A vector holds one number of
//     N points, so this costs almost nothing. No branches: a pixel outside of its level keeps a valid address
//     and gets weight zero.
//   * across channels: for each point, four rows of D channels times four weights. A vector holds N channels
//     of one pixel. This is where the time goes.
//
// The backward pass makes two sweeps. backward_points goes through queries as the forward pass does, and finds
// the gradients of points, weights and references. backward_value gives each task a slice of grad_value of its
// own (an image, a head) and adds up all queries' contributions to it in their order: no atomics, and the same
// bits for any number of threads.

#include "kernel.h"
#include "simd.h"
#include "tables.h"

namespace {

using namespace deformable_detr;

// ---- Memory of a task ----------------------------------------------------------------------------------------

// Hands out pieces of one buffer. With no buffer it only measures, so that one function both plans and lays out.
class Arena {
 public:
  explicit Arena(void* memory) : memory_(static_cast<char*>(memory)) {}

  template <class T>
  T* take(int64_t count) {
    char* piece = memory_ ? memory_ + used_ : nullptr;
    used_ += (count * sizeof(T) + 63) / 64 * 64;
    return reinterpret_cast<T*>(piece);
  }
  size_t used() const { return used_; }

 private:
  char* memory_;
  size_t used_ = 0;
};

template <class Real>
int64_t padded_points(const Problem& p) {
  return divide_up(p.P, full_lanes<Real>) * full_lanes<Real>;
}

// The pixels of N points: ↖ ↗ ↙ ↘, as offsets in elements, and bilinear weight · attention. Read lane by lane in the
// loop over points: all eight numbers of a point lie at fixed distances from one pointer.
template <class Real>
struct Pixels {
  Integer<Real> offset[4][full_lanes<Real>];
  Real weight[4][full_lanes<Real>];
};

// The points of one (query, head), once they are located.
template <class Real>
struct Located {
  Real* attention;
  Pixels<Real>* pixels;  // [padded / N]

  // backward_points only.
  Real *wx[2], *wy[2];            // bilinear weights by side: left, right; top, bottom. Zero outside
  Real *slope_x[2], *slope_y[2];  // their derivatives' size: one inside, zero outside
};

// Numbers of one (query, head), or of a tile of queries: arrays over the points, padded to whole vectors. The
// lanes after P belong to no level: they always fall outside, and their weight is zero.
template <class Real>
struct Scratch {
  using Int = Integer<Real>;

  // Of each point's level.
  Real *width, *height;
  Int *first_token, *row_step;  // in elements of the memory that is sampled: first pixel; from a row to the next
  Real *side_x, *side_y;        // half a box side divided by K, in pixels per unit of the reference

  // pixel = base + scale · input, for x and for y. Everything that differs between locations, offsets around
  // points and offsets around boxes is in these four; [queries of the tile or 1][4][padded].
  Real* pixel_map;
  int64_t pixel_map_step;

  Located<Real> located[2];  // of queries with even and with odd numbers (one_ahead)

  // backward_points only.
  Real* products;        // [padded / N][4][N][N]: ⟨grad_output, pixel⟩ before the last sum over N lanes
  Real* grad_attention;
  Real* reference_sums;  // [queries of the tile][4][padded]

  int64_t padded;
  size_t bytes;

  Scratch(const Problem& p, void* memory, bool for_points) {
    Arena arena(memory);
    padded = padded_points<Real>(p);
    const auto reals = [&] { return arena.template take<Real>(padded); };
    const auto ints = [&] { return arena.template take<Int>(padded); };
    width = reals(), height = reals(), side_x = reals(), side_y = reals();
    first_token = ints(), row_step = ints();
    const bool fused = p.reference_size > 0;
    pixel_map = arena.template take<Real>((fused ? p.queries_per_task : 1) * 4 * padded);
    pixel_map_step = fused ? 4 * padded : 0;
    for (Located<Real>& points : located) {
      points.attention = reals();
      points.pixels = arena.template take<Pixels<Real>>(padded / full_lanes<Real>);
      for (int side = 0; side < 2 && for_points; ++side) {
        points.wx[side] = reals(), points.wy[side] = reals();
        points.slope_x[side] = reals(), points.slope_y[side] = reals();
      }
    }
    if (for_points) {
      products = arena.template take<Real>(4 * padded * full_lanes<Real>);
      grad_attention = reals();
      reference_sums = arena.template take<Real>(fused ? p.queries_per_task * 4 * padded : 0);
    }
    bytes = arena.used();
  }
};

// Consecutive queries of one image.
struct Tile {
  int64_t image, begin, end;
};

Tile tile_of(const Problem& p, int64_t task) {
  const int64_t tiles = divide_up(p.Q, p.queries_per_task);
  const int64_t begin = task % tiles * p.queries_per_task;
  const int64_t end = begin + p.queries_per_task;
  return {task / tiles, begin, end < p.Q ? end : p.Q};
}

// ---- Across points -------------------------------------------------------------------------------------------

// Tables of the levels for memory in which tokens are token_step elements apart and the first token is `origin`.
template <class Real>
void fill_levels(const Problem& p, Scratch<Real>& s, int64_t token_step, int64_t origin) {
  int64_t point = 0, token = 0;
  for (int64_t l = 0; l < p.L; ++l) {
    const int64_t H = p.spatial_shapes[2 * l], W = p.spatial_shapes[2 * l + 1], K = p.points_per_level[l];
    for (int64_t k = 0; k < K; ++k, ++point) {
      s.width[point] = W, s.height[point] = H;
      s.side_x[point] = Real(0.5) * W / K, s.side_y[point] = Real(0.5) * H / K;
      s.first_token[point] = (token - origin) * token_step;
      s.row_step[point] = W * token_step;
    }
    token += H * W;
  }
  for (; point < s.padded; ++point) {
    s.width[point] = s.height[point] = 1;
    s.side_x[point] = s.side_y[point] = 0;
    s.first_token[point] = s.row_step[point] = 0;
  }
}

template <class Real>
void fill_pixel_maps(const Problem& p, Scratch<Real>& s, const Tile& tile) {
  const int64_t size = p.reference_size;
  const int64_t maps = size ? tile.end - tile.begin : 1;
  for (int64_t q = 0; q < maps; ++q) {
    Real* base_x = s.pixel_map + q * s.pixel_map_step;
    Real *base_y = base_x + s.padded, *scale_x = base_y + s.padded, *scale_y = scale_x + s.padded;
    const Real* reference = static_cast<const Real*>(p.reference) + tile.image * p.reference_batch_stride +
                            (tile.begin + q) * p.reference_query_stride;
    int64_t point = 0;
    for (int64_t l = 0; l < p.L; ++l) {
      const Real H = p.spatial_shapes[2 * l], W = p.spatial_shapes[2 * l + 1];
      // Pixel centres lie at (i + 1/2) / W: hence the half.
      Real bx = Real(-0.5), by = Real(-0.5), sx = W, sy = H;
      if (size != 0) {
        bx += reference[l * size] * W, by += reference[l * size + 1] * H;
        sx = sy = 1;
      }
      for (int64_t k = 0; k < p.points_per_level[l]; ++k, ++point) {
        base_x[point] = bx, base_y[point] = by;
        scale_x[point] = size == 4 ? reference[l * 4 + 2] * s.side_x[point] : sx;
        scale_y[point] = size == 4 ? reference[l * 4 + 3] * s.side_y[point] : sy;
      }
    }
    for (; point < s.padded; ++point) {
      base_x[point] = base_y[point] = -2;
      scale_x[point] = scale_y[point] = 0;
    }
  }
}

// The next N numbers of `count`, zeros after them.
template <class Real>
DDETR_INLINE Vector<Real, full_lanes<Real>> load_some(const Real* from, int64_t count) {
  constexpr int N = full_lanes<Real>;
  if (count >= N) return load<Vector<Real, N>>(from);
  Vector<Real, N> v{};
  for (int64_t i = 0; i < count; ++i) v[i] = from[i];
  return v;
}

template <class Real>
DDETR_INLINE void store_some(Real* to, int64_t count, Vector<Real, full_lanes<Real>> v) {
  constexpr int N = full_lanes<Real>;
  if (count >= N) {
    store(to, v);
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = v[i];
  }
}

// Attention weights of one (query, head), as given or as the softmax of logits.
template <class Real>
DDETR_INLINE void read_attention(const Problem& p, const Real* weights, Real* attention) {
  constexpr int N = full_lanes<Real>;
  using V = Vector<Real, N>;
  if (p.reference_size == 0) {
    for (int64_t c = 0; c < p.P; c += N) store(attention + c, load_some(weights + c, p.P - c));
    return;
  }
  V largest = splat<Real, N>(Real(-__builtin_inf()));
  for (int64_t c = 0; c < p.P; c += N) {
    V logits = load_some(weights + c, p.P - c);
    for (int64_t i = p.P - c; i < N; ++i) logits[i] = Real(-__builtin_inf());
    store(attention + c, logits);
    largest = maximum(largest, logits);
  }
  const V most = maximum_of_lanes<N>(largest);
  V sums{};
  for (int64_t c = 0; c < p.P; c += N) {
    const V e = exp_of_nonpositive<N>(load<V>(attention + c) - most);
    store(attention + c, e);
    sums += e;
  }
  const V sum = sum_of_lanes<N>(sums);
  for (int64_t c = 0; c < p.P; c += N) store(attention + c, load<V>(attention + c) / sum);
}

// Along one axis, for N points: the pixels before and after, as offsets, with weights and slopes.
template <class Real, int N>
struct Side {
  Vector<Integer<Real>, N> offset[2];
  Vector<Real, N> weight[2], slope[2];
};

template <class Real, int N>
DDETR_INLINE Side<Real, N> sides_of(
    Vector<Real, N> pixel, Vector<Real, N> size, Vector<Integer<Real>, N> step) {
  using V = Vector<Real, N>;
  using I = Vector<Integer<Real>, N>;
  // Outside is outside, however far. Clamped before the conversion to integers, which is undefined for NaN,
  // infinity and large numbers. Comparisons with NaN are false: it becomes -2.
  const V low = splat<Real, N>(-2);
  pixel = pixel >= low ? pixel : low;
  pixel = pixel <= size + 1 ? pixel : size + 1;
  I before = __builtin_convertvector(pixel, I);  // towards zero; a true comparison is -1, and makes it floor
  before += __builtin_convertvector(before, V) > pixel;
  const V fraction = pixel - __builtin_convertvector(before, V);
  const I last = __builtin_convertvector(size, I) - 1;
  const I zero{};
  const auto before_is_inside = (before >= 0) & (before <= last);
  const auto after_is_inside = (before >= -1) & (before < last);

  Side<Real, N> side;
  const I clamped = minimum(maximum(before, zero), last);
  const I clamped_after = minimum(maximum(before + 1, zero), last);
  side.offset[0] = clamped * step;
  side.offset[1] = side.offset[0] + ((clamped_after > clamped) & step);
  side.slope[0] = before_is_inside ? splat<Real, N>(1) : V{};
  side.slope[1] = after_is_inside ? splat<Real, N>(1) : V{};
  side.weight[0] = side.slope[0] * (1 - fraction);
  side.weight[1] = side.slope[1] * fraction;
  return side;
}

// Points first, first + N, … of one (query, head): the four offsets of each, and either the four weights
// (KEEP_SIDES false) or what the gradient needs. `map` is the query's pixel map.
template <bool KEEP_SIDES, class Real>
DDETR_INLINE void locate(
    const Problem& p, const Scratch<Real>& s, const Real* map, const Real* points, int64_t token_step,
    int64_t first, int64_t end, Located<Real>& to) {
  constexpr int N = full_lanes<Real>;
  using V = Vector<Real, N>;
  using I = Vector<Integer<Real>, N>;
  using All = typename MakeIndexes<N>::type;
  for (int64_t c = first; c < end; c += N) {
    V input_x, input_y;
    deinterleave(
        load_some(points + 2 * c, 2 * (p.P - c)), load_some(points + 2 * c + N, 2 * (p.P - c) - N), input_x,
        input_y, All{});
    const auto at = [&](const auto* table) { return load<Vector<Real, N>>(table + c); };
    const V x = at(map) + at(map + 2 * s.padded) * input_x;
    const V y = at(map + s.padded) + at(map + 3 * s.padded) * input_y;
    const I step = splat<Integer<Real>, N>(token_step);
    const auto horizontal = sides_of<Real, N>(x, at(s.width), step);
    const auto vertical = sides_of<Real, N>(y, at(s.height), load<I>(s.row_step + c));
    const I origin = load<I>(s.first_token + c);
    const V attention = at(to.attention);
    Pixels<Real>& pixels = to.pixels[c / N];
    for (int k = 0; k < 4; ++k) {
      store(pixels.offset[k], origin + vertical.offset[k / 2] + horizontal.offset[k % 2]);
      if constexpr (!KEEP_SIDES) {
        store(pixels.weight[k], attention * vertical.weight[k / 2] * horizontal.weight[k % 2]);
      }
    }
    if constexpr (KEEP_SIDES) {
      for (int side = 0; side < 2; ++side) {
        store(to.wx[side] + c, horizontal.weight[side]);
        store(to.wy[side] + c, vertical.weight[side]);
        store(to.slope_x[side] + c, horizontal.slope[side]);
        store(to.slope_y[side] + c, vertical.slope[side]);
      }
    }
  }
}

// Pointers to the inputs of one (image, query, head).
template <class Real>
const Real* points_of(const Problem& p, int64_t b, int64_t q, int64_t m) {
  return static_cast<const Real*>(p.points) + b * p.points_batch_stride + q * p.points_query_stride +
         m * p.points_head_stride;
}

template <class Real>
const Real* weights_of(const Problem& p, int64_t b, int64_t q, int64_t m) {
  return static_cast<const Real*>(p.weights) + b * p.weights_batch_stride + q * p.weights_query_stride +
         m * p.weights_head_stride;
}

// Points first … end of a query of the tile, and all attention weights.
template <bool KEEP_SIDES, class Real>
DDETR_INLINE void locate_query(
    const Problem& p, const Scratch<Real>& s, const Tile& tile, int64_t q, int64_t m, int64_t token_step,
    int64_t first, int64_t end, Located<Real>& to) {
  read_attention(p, weights_of<Real>(p, tile.image, q, m), to.attention);
  const Real* map = s.pixel_map + (q - tile.begin) * s.pixel_map_step;
  locate<KEEP_SIDES>(p, s, map, points_of<Real>(p, tile.image, q, m), token_step, first, end, to);
}

// Asks for the inputs of a query some steps ahead: with heads in the outer loop they lie too far apart for the
// processor to guess.
template <class Real>
DDETR_INLINE void prefetch_inputs(const Problem& p, int64_t b, int64_t q, int64_t m) {
  constexpr int64_t kLine = 64 / sizeof(Real);
  q = q + 4 < p.Q ? q + 4 : q;
  const Real* points = points_of<Real>(p, b, q, m);
  const Real* weights = weights_of<Real>(p, b, q, m);
  for (int64_t i = 0; i < 2 * p.P; i += kLine) __builtin_prefetch(points + i);
  for (int64_t i = 0; i < p.P; i += kLine) __builtin_prefetch(weights + i);
}

template <class Value>
DDETR_INLINE void prefetch_gradient(const Problem& p, int64_t b, int64_t q, int64_t m) {
  constexpr int64_t kLine = 64 / sizeof(Value);
  q = q + 4 < p.Q ? q + 4 : q;
  const Value* row = static_cast<const Value*>(p.grad_output) + ((b * p.Q + q) * p.M + m) * p.D;
  for (int64_t d = 0; d < p.D; d += kLine) __builtin_prefetch(row + d);
}

template <class Value>
const Value* value_of(const Problem& p, int64_t b, int64_t m) {
  return static_cast<const Value*>(p.value) + b * p.value_batch_stride + m * p.value_head_stride;
}

// Points first … end of one (query, head): visit(their pixels, lane, number).
template <class Real, class Visit>
DDETR_INLINE void visit_points(const Located<Real>& points, int64_t first, int64_t end, const Visit& visit) {
  constexpr int64_t N = full_lanes<Real>;
  for (int64_t c = first / N * N; c < end; c += N) {
    const Pixels<Real>& pixels = points.pixels[c / N];
    const int64_t lanes = end - c < N ? end - c : N;
    for (int64_t lane = c < first ? first - c : 0; lane < lanes; ++lane) visit(pixels, lane, c);
  }
}

// Asks for the right pixels of points on the first level, which is the finest: from a query to its neighbour, the left
// ones are often those that were right, and coarser levels stay in the cache.
template <class Value, class Real>
DDETR_INLINE void prefetch_first_level(
    const Problem& p, const Value* rows, int64_t channels, const Located<Real>& points) {
  constexpr int64_t kLine = 64 / sizeof(Value);
  if (p.L == 0) return;
  visit_points(points, 0, p.points_per_level[0], [&](const Pixels<Real>& pixels, int64_t lane, int64_t) {
    for (int64_t d = 0; d < channels; d += kLine) {
      __builtin_prefetch(rows + pixels.offset[1][lane] + d);
      __builtin_prefetch(rows + pixels.offset[3][lane] + d);
    }
  });
}

// For each query of a tile, locate(query, to) and then use(query, from), but always one query ahead: the processor
// locates the points of the next query while it waits for the rows of this one.
template <class Real, class Locate, class Use>
DDETR_INLINE void one_ahead(Scratch<Real>& s, const Tile& tile, const Locate& locate, const Use& use) {
  for (int64_t q = tile.begin; q <= tile.end; ++q) {
    if (q < tile.end) locate(q, s.located[q & 1]);
    if (q > tile.begin) use(q - 1, s.located[(q - 1) & 1]);
  }
}

// ---- Forward -------------------------------------------------------------------------------------------------

// A block of channels of one (query, head): Σ over points and pixels of weight · value.
template <int N, int COUNT, class Value, class Real>
DDETR_INLINE void gather(
    const Value* value, const Located<Real>& points, int64_t count, Value* output) {
  using V = Vector<Real, N>;
  // The rows of pixels above and below have sums of their own where registers allow: shorter chains of additions.
  constexpr int SETS = COUNT <= 4 ? 2 : 1;
  V sums[SETS][COUNT] = {};
  visit_points(points, 0, count, [&](const Pixels<Real>& pixels, int64_t lane, int64_t) DDETR_INLINE_LAMBDA {
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      V pixel[COUNT];
      load_block<N, COUNT>(value + pixels.offset[k][lane], pixel);
      const V weight = splat<Real, N>(pixels.weight[k][lane]);
#pragma GCC unroll 8
      for (int j = 0; j < COUNT; ++j) sums[k / 2 % SETS][j] += weight * pixel[j];
    }
  });
  if constexpr (SETS == 2) {
    for (int j = 0; j < COUNT; ++j) sums[0][j] += sums[1][j];
  }
  store_block<N, COUNT>(sums[0], output);
}

template <class Value, class Real>
void forward(const Problem& p, int64_t task, void* memory) {
  Scratch<Real> s(p, memory, false);
  const Tile tile = tile_of(p, task);
  fill_levels(p, s, p.value_token_stride, 0);
  fill_pixel_maps(p, s, tile);
  for (int64_t m = 0; m < p.M; ++m) {
    const Value* value = value_of<Value>(p, tile.image, m);
    one_ahead(
        s, tile,
        [&](int64_t q, Located<Real>& to) DDETR_INLINE_LAMBDA {
          prefetch_inputs<Real>(p, tile.image, q, m);
          locate_query<false>(p, s, tile, q, m, p.value_token_stride, 0, p.P, to);
          prefetch_first_level(p, value, p.D, to);
        },
        [&](int64_t q, const Located<Real>& points) DDETR_INLINE_LAMBDA {
          Value* output = static_cast<Value*>(p.output) + ((tile.image * p.Q + q) * p.M + m) * p.D;
          visit_blocks<Real>(p.D, [&]<int N, int COUNT>(int64_t d) {
            gather<N, COUNT>(value + d, points, p.P, output + d);
          });
        });
  }
}

// ---- Backward: points, weights, references -------------------------------------------------------------------

// For each pixel of each point: s.products (one row of N lanes) = or += the products of a block of channels.
template <int N, int COUNT, bool FIRST, class Value, class Real>
DDETR_INLINE void multiply(
    const Value* value, const Value* grad_output, const Scratch<Real>& s, const Located<Real>& points,
    int64_t count) {
  using V = Vector<Real, N>;
  V grad[COUNT];
  load_block<N, COUNT>(grad_output, grad);
  constexpr int64_t WIDE = full_lanes<Real>;
  visit_points(points, 0, count, [&](const Pixels<Real>& pixels, int64_t lane, int64_t c) DDETR_INLINE_LAMBDA {
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      V pixel[COUNT];
      load_block<N, COUNT>(value + pixels.offset[k][lane], pixel);
      Real* row = s.products + ((c * 4 + k * WIDE) + lane) * WIDE;
      V sum = pixel[0] * grad[0];
      if constexpr (!FIRST) sum += load<V>(row);
#pragma GCC unroll 8
      for (int j = 1; j < COUNT; ++j) sum += pixel[j] * grad[j];
      store(row, sum);
    }
  });
}

template <class Value, class Real>
void backward_points(const Problem& p, int64_t task, void* memory) {
  constexpr int N = full_lanes<Real>;
  using V = Vector<Real, N>;
  using All = typename MakeIndexes<N>::type;
  Scratch<Real> s(p, memory, true);
  const Tile tile = tile_of(p, task);
  const bool fused = p.reference_size > 0;
  Located<Real>& located = s.located[0];
  fill_levels(p, s, p.value_token_stride, 0);
  fill_pixel_maps(p, s, tile);
  memset(s.products, 0, 4 * s.padded * N * sizeof(Real));  // the padding's rows stay zero
  if (fused) memset(s.reference_sums, 0, (tile.end - tile.begin) * 4 * s.padded * sizeof(Real));

  for (int64_t m = 0; m < p.M; ++m) {
    const Value* value = value_of<Value>(p, tile.image, m);
    for (int64_t q = tile.begin; q < tile.end; ++q) {
      const Real* points = points_of<Real>(p, tile.image, q, m);
      const Real* map = s.pixel_map + (q - tile.begin) * s.pixel_map_step;
      const int64_t row = (tile.image * p.Q + q) * p.M + m;
      prefetch_inputs<Real>(p, tile.image, q, m);
      prefetch_gradient<Value>(p, tile.image, q, m);
      locate_query<true>(p, s, tile, q, m, p.value_token_stride, 0, p.P, located);

      const Value* grad_output = static_cast<const Value*>(p.grad_output) + row * p.D;
      if (p.D < N) memset(s.products, 0, 4 * s.padded * N * sizeof(Real));
      visit_blocks<Real>(p.D, [&]<int LANES, int COUNT>(int64_t d) {
        if (LANES == N && d == 0) {
          multiply<LANES, COUNT, true>(value, grad_output, s, located, p.P);
        } else {
          multiply<LANES, COUNT, false>(value + d, grad_output + d, s, located, p.P);
        }
      });

      Real* grad_points = static_cast<Real*>(p.grad_points) + row * p.P * 2;
      Real* grad_weights = static_cast<Real*>(p.grad_weights) + row * p.P;
      Real* reference_sums = s.reference_sums + (fused ? (q - tile.begin) * 4 * s.padded : 0);
      V mean_sums{};
      for (int64_t c = 0; c < p.P; c += N) {
        V product[4];
        for (int k = 0; k < 4; ++k) {
          product[k] = sum_each_row<Real, N>(s.products + (c * 4 + k * N) * N);
        }
        const auto at = [&](const Real* table) { return load<Vector<Real, N>>(table + c); };
        const V attention = at(located.attention);
        const V left = at(located.wx[0]), right = at(located.wx[1]), top = at(located.wy[0]), bottom = at(located.wy[1]);
        const V above = left * product[0] + right * product[1];
        const V below = left * product[2] + right * product[3];
        const V grad_attention = top * above + bottom * below;
        const V slope_left = at(located.slope_x[0]), slope_right = at(located.slope_x[1]);
        const V grad_x = attention * (top * (slope_right * product[1] - slope_left * product[0]) +
                                      bottom * (slope_right * product[3] - slope_left * product[2]));
        const V grad_y = attention * (at(located.slope_y[1]) * below - at(located.slope_y[0]) * above);

        V first_half, second_half;
        interleave(
            at(map + 2 * s.padded) * grad_x, at(map + 3 * s.padded) * grad_y, first_half, second_half, All{});
        store_some(grad_points + 2 * c, 2 * (p.P - c), first_half);
        store_some(grad_points + 2 * c + N, 2 * (p.P - c) - N, second_half);
        store(s.grad_attention + c, grad_attention);
        mean_sums += attention * grad_attention;

        if (fused) {
          Real* sums = reference_sums + c;
          const auto add = [&](int which, V v) {
            store(sums + which * s.padded, load<V>(sums + which * s.padded) + v);
          };
          add(0, grad_x * at(s.width));
          add(1, grad_y * at(s.height));
          if (p.reference_size == 4) {
            V input_x, input_y;
            deinterleave(
                load_some(points + 2 * c, 2 * (p.P - c)), load_some(points + 2 * c + N, 2 * (p.P - c) - N),
                input_x, input_y, All{});
            add(2, grad_x * input_x * at(s.side_x));
            add(3, grad_y * input_y * at(s.side_y));
          }
        }
      }
      const V mean = sum_of_lanes<N>(mean_sums);
      for (int64_t c = 0; c < p.P; c += N) {
        V grad = load<V>(s.grad_attention + c);
        if (fused) grad = load<V>(located.attention + c) * (grad - mean);
        store_some(grad_weights + c, p.P - c, grad);
      }
    }
  }

  for (int64_t q = tile.begin; fused && q < tile.end; ++q) {
    const Real* sums = s.reference_sums + (q - tile.begin) * 4 * s.padded;
    Real* grad = static_cast<Real*>(p.grad_reference) + (tile.image * p.Q + q) * p.L * p.reference_size;
    for (int64_t l = 0, first = 0; l < p.L; first += p.points_per_level[l++]) {
      for (int64_t i = 0; i < p.reference_size; ++i) {
        Real sum = 0;
        for (int64_t k = 0; k < p.points_per_level[l]; ++k) sum += sums[i * s.padded + first + k];
        *grad++ = sum;
      }
    }
  }
}

// ---- Backward: value -----------------------------------------------------------------------------------------

// A block of channels of one (query, head), added to the pixels of points first … end.
template <int N, int COUNT, class Value, class Real>
DDETR_INLINE void scatter(
    const Value* grad_output, const Located<Real>& points, int64_t first, int64_t end, Real* __restrict slice) {
  using V = Vector<Real, N>;
  V grad[COUNT];
  load_block<N, COUNT>(grad_output, grad);
  visit_points(points, first, end, [&](const Pixels<Real>& pixels, int64_t lane, int64_t) DDETR_INLINE_LAMBDA {
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      Real* pixel = slice + pixels.offset[k][lane];
      const V weight = splat<Real, N>(pixels.weight[k][lane]);
#pragma GCC unroll 8
      for (int j = 0; j < COUNT; ++j) store(pixel + j * N, load<V>(pixel + j * N) + weight * grad[j]);
    }
  });
}

// What a task of backward_value owns: some levels and channels of an image's head.
struct Slice {
  int64_t image, head;
  int64_t first_token, tokens, first_point, end_point, first_channel, channels;
};

Slice slice_of(const Problem& p, int64_t task) {
  Slice slice{};
  const int64_t channel_groups = divide_up(p.D, p.channels_per_task);
  const int64_t level_groups = divide_up(p.L, p.levels_per_task);
  slice.first_channel = task % channel_groups * p.channels_per_task;
  slice.channels = p.D - slice.first_channel;
  if (slice.channels > p.channels_per_task) slice.channels = p.channels_per_task;
  task /= channel_groups;
  const int64_t first_level = task % level_groups * p.levels_per_task;
  task /= level_groups;
  slice.head = task % p.M;
  slice.image = task / p.M;
  for (int64_t l = 0; l < p.L && l < first_level + p.levels_per_task; ++l) {
    const int64_t tokens = p.spatial_shapes[2 * l] * p.spatial_shapes[2 * l + 1];
    if (l < first_level) {
      slice.first_token += tokens;
      slice.first_point += p.points_per_level[l];
      slice.end_point += p.points_per_level[l];
    } else {
      slice.tokens += tokens;
      slice.end_point += p.points_per_level[l];
    }
  }
  return slice;
}

template <class Value, class Real>
void backward_value(const Problem& p, int64_t task, void* memory) {
  constexpr int N = full_lanes<Real>;
  const Slice slice = slice_of(p, task);
  Scratch<Real> s(p, memory, false);
  Value* grad_value = static_cast<Value*>(p.grad_value) +
                      ((slice.image * p.S + slice.first_token) * p.M + slice.head) * p.D + slice.first_channel;
  // Where many queries add to each pixel, sums are kept densely: rows of grad_value are M·D apart. Where few do, that
  // would only be one more pass over the memory.
  const bool in_place = p.grad_value_is_zero;
  Real* sums = in_place ? reinterpret_cast<Real*>(grad_value)
                        : reinterpret_cast<Real*>(static_cast<char*>(memory) + s.bytes);
  const int64_t token_step = in_place ? p.M * p.D : slice.channels;
  if (!in_place) memset(sums, 0, slice.tokens * slice.channels * sizeof(Real));
  fill_levels(p, s, token_step, slice.first_token);

  for (int64_t begin = 0; begin < p.Q; begin += p.queries_per_task) {
    const int64_t end = begin + p.queries_per_task < p.Q ? begin + p.queries_per_task : p.Q;
    const Tile tile{slice.image, begin, end};
    fill_pixel_maps(p, s, tile);
    one_ahead(
        s, tile,
        [&](int64_t q, Located<Real>& to) DDETR_INLINE_LAMBDA {
          prefetch_inputs<Real>(p, tile.image, q, slice.head);
          prefetch_gradient<Value>(p, tile.image, q, slice.head);
          locate_query<false>(
              p, s, tile, q, slice.head, token_step, slice.first_point / N * N, slice.end_point, to);
          if (slice.first_point == 0) prefetch_first_level(p, sums, slice.channels, to);
        },
        [&](int64_t q, const Located<Real>& points) DDETR_INLINE_LAMBDA {
          const Value* grad_output = static_cast<const Value*>(p.grad_output) +
                                     ((tile.image * p.Q + q) * p.M + slice.head) * p.D + slice.first_channel;
          visit_blocks<Real>(slice.channels, [&]<int LANES, int COUNT>(int64_t d) {
            scatter<LANES, COUNT>(grad_output + d, points, slice.first_point, slice.end_point, sums + d);
          });
        });
  }

  for (int64_t token = 0; token < slice.tokens && !in_place; ++token) {
    Value* row = grad_value + token * p.M * p.D;
    visit_blocks<Real>(slice.channels, [&]<int LANES, int COUNT>(int64_t d) {
      Vector<Real, LANES> block[COUNT];
      load_block<LANES, COUNT>(sums + token * slice.channels + d, block);
      store_block<LANES, COUNT>(block, row + d);
    });
  }
}

template <class Real>
size_t query_scratch_bytes(const Problem& p) {
  return Scratch<Real>(p, nullptr, true).bytes;
}

template <class Real>
size_t value_scratch_bytes(const Problem& p) {
  int64_t most = 0;
  for (int64_t task = 0; task < value_tasks(p) && !p.grad_value_is_zero; ++task) {
    const Slice slice = slice_of(p, task);
    const int64_t size = slice.tokens * slice.channels;
    most = size > most ? size : most;
  }
  return Scratch<Real>(p, nullptr, false).bytes + most * sizeof(Real);
}

template <class Value, class Real>
constexpr Steps steps_of() {
  return {
      forward<Value, Real>, backward_points<Value, Real>, backward_value<Value, Real>,
      query_scratch_bytes<Real>, value_scratch_bytes<Real>};
}

}  // namespace

namespace deformable_detr {
DDETR_DEFINE_TABLE(Kernels, ) = {
    DDETR_KERNELS_NAME, steps_of<float, float>(), steps_of<double, double>(), steps_of<BFloat16, float>(),
    steps_of<Half, float>()};
}  // namespace deformable_detr
