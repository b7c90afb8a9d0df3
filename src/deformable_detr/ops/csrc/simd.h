// Short vectors on GCC's and Clang's vector extensions: one source, lowered to whatever the translation unit is
// compiled for. DDETR_VECTOR_BYTES sets the width (16 SSE2 and NEON, 32 AVX2, 64 AVX-512).
//
// Everything has internal linkage, and nothing of the standard library's templates is used: an inline function
// compiled here for AVX-512 and merged by the linker with a baseline copy would crash older machines.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#define DDETR_INLINE inline __attribute__((always_inline))
#define DDETR_INLINE_LAMBDA __attribute__((always_inline))

namespace {

template <class T, int N>
struct VectorOf {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};
template <class T, int N>
using Vector = typename VectorOf<T, N>::type;

template <class Real>
constexpr int full_lanes = DDETR_VECTOR_BYTES / sizeof(Real);

// Integers as wide as Real: what comparisons of Real yield, and what indexes are computed in.
template <class Real>
struct IntegerOf;
template <>
struct IntegerOf<float> {
  using type = int32_t;
};
template <>
struct IntegerOf<double> {
  using type = int64_t;
};
template <class Real>
using Integer = typename IntegerOf<Real>::type;

template <class To, class From>
DDETR_INLINE To bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

template <class V>
DDETR_INLINE V load(const void* from) {
  V v;
  memcpy(&v, from, sizeof v);
  return v;
}

template <class V>
DDETR_INLINE void store(void* to, V v) {
  memcpy(to, &v, sizeof v);
}

template <class T, int N>
DDETR_INLINE Vector<T, N> splat(T x) {
  return x - Vector<T, N>{};  // exact for -0 too, so the compiler drops the subtraction (x + 0 it must keep)
}

template <class V>
DDETR_INLINE V minimum(V a, V b) {
  return a < b ? a : b;
}

template <class V>
DDETR_INLINE V maximum(V a, V b) {
  return a > b ? a : b;
}

// e^x for x ≤ 0, within 2 ulp; below −87 zero (float32's smallest normal number). NaN stays NaN.
template <int N>
DDETR_INLINE Vector<float, N> exp_of_nonpositive(Vector<float, N> x) {
  using V = Vector<float, N>;
  using U = Vector<uint32_t, N>;
  const V floor_x = splat<float, N>(-87.0f);
  const auto vanishes = x < floor_x;
  x = vanishes ? floor_x : x;
  // x = n·ln 2 + r with |r| ≤ ln 2 / 2. Adding 1.5·2^23 rounds to an integer and leaves it in the low bits.
  const V magic = splat<float, N>(12582912.0f);
  const V shifted = x * 1.44269504f + magic;
  const V n = shifted - magic;
  const V r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts (Cody and Waite)
  V e = splat<float, N>(1.0f / 5040.0f);                    // Taylor: the rest is below 2^-24 for such r
  e = e * r + (1.0f / 720.0f);
  e = e * r + (1.0f / 120.0f);
  e = e * r + (1.0f / 24.0f);
  e = e * r + (1.0f / 6.0f);
  e = e * r + 0.5f;
  e = e * r + 1.0f;
  e = e * r + 1.0f;
  const U power_of_two = (bits<U>(shifted) - bits<U>(magic) + 127u) << 23;
  return vanishes ? V{} : e * bits<V>(power_of_two);
}

template <int N>
DDETR_INLINE Vector<double, N> exp_of_nonpositive(Vector<double, N> x) {
  for (int i = 0; i < N; ++i) x[i] = __builtin_exp(x[i]);
  return x;
}

// ---- Shuffles ------------------------------------------------------------------------------------------------

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define DDETR_HAS_SHUFFLEVECTOR 1
#endif
#endif

template <int... I>
struct Indexes {};
template <int N, int... I>
struct MakeIndexes : MakeIndexes<N - 1, N - 1, I...> {};
template <int... I>
struct MakeIndexes<0, I...> {
  using type = Indexes<I...>;
};

// (a, b) → the lanes of a without bit S in their number beside the lanes of b with it.
template <int S, class V, int... I>
DDETR_INLINE V blend(V a, V b, Indexes<I...>) {
  constexpr int N = sizeof...(I);
#if DDETR_HAS_SHUFFLEVECTOR
  return __builtin_shufflevector(a, b, (I & S ? I + N : I)...);
#else
  using Mask = decltype(a < b);
  return __builtin_shuffle(a, b, Mask{(I & S ? I + N : I)...});
#endif
}

// Lane i goes to lane i ^ S.
template <int S, class V, int... I>
DDETR_INLINE V swap_lanes(V a, Indexes<I...>) {
#if DDETR_HAS_SHUFFLEVECTOR
  return __builtin_shufflevector(a, a, (I ^ S)...);
#else
  using Mask = decltype(a < a);
  return __builtin_shuffle(a, Mask{(I ^ S)...});
#endif
}

// The sum or the maximum of all lanes, in each lane: in log₂ N rounds, because one lane after the other would take as
// many times the latency of an addition as there are lanes.
template <int N, int S = N / 2, class V>
DDETR_INLINE V sum_of_lanes(V v) {
  if constexpr (S > 0) v = sum_of_lanes<N, S / 2>(v + swap_lanes<S>(v, typename MakeIndexes<N>::type{}));
  return v;
}

template <int N, int S = N / 2, class V>
DDETR_INLINE V maximum_of_lanes(V v) {
  if constexpr (S > 0) v = maximum_of_lanes<N, S / 2>(maximum(v, swap_lanes<S>(v, typename MakeIndexes<N>::type{})));
  return v;
}

// (x0 y0 x1 y1 …) in two vectors → (x0 x1 …) and (y0 y1 …), and back.
template <class V, int... I>
DDETR_INLINE void deinterleave(V a, V b, V& x, V& y, Indexes<I...>) {
#if DDETR_HAS_SHUFFLEVECTOR
  x = __builtin_shufflevector(a, b, (2 * I)...);
  y = __builtin_shufflevector(a, b, (2 * I + 1)...);
#else
  using Mask = decltype(a < b);
  x = __builtin_shuffle(a, b, Mask{(2 * I)...});
  y = __builtin_shuffle(a, b, Mask{(2 * I + 1)...});
#endif
}

template <class V, int... I>
DDETR_INLINE void interleave(V x, V y, V& a, V& b, Indexes<I...>) {
  constexpr int N = sizeof...(I);
#if DDETR_HAS_SHUFFLEVECTOR
  a = __builtin_shufflevector(x, y, (I / 2 + (I % 2) * N)...);
  b = __builtin_shufflevector(x, y, (N / 2 + I / 2 + (I % 2) * N)...);
#else
  using Mask = decltype(x < y);
  a = __builtin_shuffle(x, y, Mask{(I / 2 + (I % 2) * N)...});
  b = __builtin_shuffle(x, y, Mask{(N / 2 + I / 2 + (I % 2) * N)...});
#endif
}

// N rows of N lanes → one vector whose lane r is the sum of row r. Each round halves the number of rows: rows r
// and r + S fold into one, whose lanes without bit S go on with row r and those with it with row r + S.
template <int N, int S, class V>
DDETR_INLINE void fold_rows(V* rows) {
  if constexpr (S > 0) {
    using All = typename MakeIndexes<N>::type;
    for (int r = 0; r < S; ++r) {
      const V keep = blend<S>(rows[r], rows[r + S], All{});
      const V move = blend<S>(rows[r + S], rows[r], All{});
      rows[r] = keep + swap_lanes<S>(move, All{});
    }
    fold_rows<N, S / 2>(rows);
  }
}

template <class Real, int N>
DDETR_INLINE Vector<Real, N> sum_each_row(const Real* memory) {
  using V = Vector<Real, N>;
  V rows[N];
  for (int r = 0; r < N; ++r) rows[r] = load<V>(memory + r * N);
  fold_rows<N, N / 2>(rows);
  return rows[0];
}

// ---- 16-bit floats -------------------------------------------------------------------------------------------
// Only names for storage: arithmetic is always in Real.

struct BFloat16 {
  uint16_t raw;
};
struct Half {
  uint16_t raw;
};

// float32 → the bits of bfloat16 in the upper half (the lower half is rubbish): to nearest, ties to even.
template <int N>
DDETR_INLINE Vector<uint32_t, N> round_to_bfloat16(Vector<float, N> x) {
  using U = Vector<uint32_t, N>;
  const U u = bits<U>(x);
  const U rounded = u + 0x7fffu + ((u >> 16) & 1u);
  return x == x ? rounded : (u | 0x400000u);  // a NaN must not round to infinity
}

template <int N>
DDETR_INLINE Vector<float, N> half_to_float(Vector<uint16_t, N> h) {
#if defined(__F16C__)
  if constexpr (N == 4) {
    return bits<Vector<float, 4>>(_mm_cvtph_ps(_mm_set_epi64x(0, bits<int64_t>(h))));
  } else if constexpr (N == 8) {
    return bits<Vector<float, 8>>(_mm256_cvtph_ps(bits<__m128i>(h)));
#if defined(__AVX512F__)
  } else if constexpr (N == 16) {
    return bits<Vector<float, 16>>(_mm512_cvtph_ps(bits<__m256i>(h)));
#endif
  }
#endif
  using U = Vector<uint32_t, N>;
  using F = Vector<float, N>;
  const U u = __builtin_convertvector(h, U);
  // Exponent and mantissa moved into place are the number divided by 2^112, subnormal or not.
  F f = bits<F>((u & 0x7fffu) << 13) * 0x1p112f;
  const U special = f >= 65536.0f ? splat<uint32_t, N>(0x7f800000u) : U{};  // infinity and NaN
  return bits<F>(bits<U>(f) | special | ((u & 0x8000u) << 16));
}

template <int N>
DDETR_INLINE Vector<uint16_t, N> float_to_half(Vector<float, N> x) {
  using U = Vector<uint32_t, N>;
  using F = Vector<float, N>;
  const U sign = bits<U>(x) & 0x80000000u;
  const U u = bits<U>(x) ^ sign;
  const U normal = (u - (112u << 23) + 0xfffu + ((u >> 13) & 1u)) >> 13;
  const F magic = splat<float, N>(0.5f);  // its last bit weighs as much as half's smallest subnormal
  const U subnormal = bits<U>(bits<F>(u) + magic) - bits<U>(magic);
  U h = u < (113u << 23) ? subnormal : normal;
  h = u >= 0x477ff000u ? splat<uint32_t, N>(0x7c00u) : h;  // 65520 and more round to infinity
  h = u > 0x7f800000u ? splat<uint32_t, N>(0x7e00u) : h;
  return __builtin_convertvector(h | (sign >> 16), Vector<uint16_t, N>);
}

// ---- Blocks of channels --------------------------------------------------------------------------------------
// A block is COUNT vectors of N lanes: N·COUNT neighbouring channels of one token. load_block and store_block
// agree on which lane holds which channel; nobody else needs to know. (For bfloat16 a pair of vectors holds the
// even and the odd channels: a shift and a mask unpack them, where the natural order would cost two shuffles.)

template <int N, int COUNT, class Real, class V>
  requires(sizeof(Real) >= 4)
DDETR_INLINE void load_block(const Real* from, V* to) {
  for (int j = 0; j < COUNT; ++j) to[j] = load<V>(from + j * N);
}

template <int N, int COUNT, class Real, class V>
  requires(sizeof(Real) >= 4)
DDETR_INLINE void store_block(const V* from, Real* to) {
  for (int j = 0; j < COUNT; ++j) store(to + j * N, from[j]);
}

template <int N, int COUNT>
DDETR_INLINE void load_block(const BFloat16* from, Vector<float, N>* to) {
  using U = Vector<uint32_t, N>;
  using F = Vector<float, N>;
  if constexpr (COUNT % 2 == 0) {
    for (int j = 0; j < COUNT; j += 2) {
      const U pair = load<U>(from + j * N);
      to[j] = bits<F>(pair << 16);
      to[j + 1] = bits<F>(pair & 0xffff0000u);
    }
  } else {
    for (int j = 0; j < COUNT; ++j) {
      const auto raw = load<Vector<uint16_t, N>>(from + j * N);
      to[j] = bits<F>(__builtin_convertvector(raw, U) << 16);
    }
  }
}

template <int N, int COUNT>
DDETR_INLINE void store_block(const Vector<float, N>* from, BFloat16* to) {
  if constexpr (COUNT % 2 == 0) {
    for (int j = 0; j < COUNT; j += 2) {
      const auto even = round_to_bfloat16<N>(from[j]) >> 16;
      const auto odd = round_to_bfloat16<N>(from[j + 1]) & 0xffff0000u;
      store(to + j * N, even | odd);
    }
  } else {
    for (int j = 0; j < COUNT; ++j) {
      const auto raw = round_to_bfloat16<N>(from[j]) >> 16;
      store(to + j * N, __builtin_convertvector(raw, Vector<uint16_t, N>));
    }
  }
}

template <int N, int COUNT>
DDETR_INLINE void load_block(const Half* from, Vector<float, N>* to) {
  for (int j = 0; j < COUNT; ++j) to[j] = half_to_float<N>(load<Vector<uint16_t, N>>(from + j * N));
}

template <int N, int COUNT>
DDETR_INLINE void store_block(const Vector<float, N>* from, Half* to) {
  for (int j = 0; j < COUNT; ++j) store(to + j * N, float_to_half<N>(from[j]));
}

// D channels as blocks, the widest first: calls visit.operator()<N, COUNT>(first channel). What is left over
// from full vectors goes in halves, down to a single lane, so that any D works without masks.
template <int N, class Visit>
DDETR_INLINE void visit_narrow_blocks(int64_t d, int64_t D, const Visit& visit) {
  if constexpr (N >= 1) {
    if (D - d >= N) {
      visit.template operator()<N, 1>(d);
      d += N;
    }
    visit_narrow_blocks<N / 2>(d, D, visit);
  }
}

template <class Real, class Visit>
DDETR_INLINE void visit_blocks(int64_t D, const Visit& visit) {
  constexpr int N = full_lanes<Real>;
  int64_t d = 0;
  for (; D - d >= 8 * N; d += 8 * N) visit.template operator()<N, 8>(d);
  if (D - d >= 4 * N) {
    visit.template operator()<N, 4>(d);
    d += 4 * N;
  }
  if (D - d >= 2 * N) {
    visit.template operator()<N, 2>(d);
    d += 2 * N;
  }
  visit_narrow_blocks<N>(d, D, visit);
}

}  // namespace
