// Group norm with SiLU over pixels of `channels` values that lie side by side (NHWC). Registers run over channels, so a
// channel's sums are added pixel after pixel: the same bits whatever the width of a register.
#pragma once

#include <type_traits>

#include "convert.h"

namespace prunefast {
namespace {

constexpr int64_t kNormTile = 64;  // pixels that are added in float32 before a sum is continued in float64

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};
typedef uint16_t vh __attribute__((vector_size(kVector * 2)));

inline vf load_values(const float* p) { return load(p); }
inline vf load_values(const BFloat16* p) {
  vh half;
  memcpy(&half, p, sizeof half);
  return (vf)(__builtin_convertvector(half, vu) << 16);
}
inline vf load_values(const Float16* p) {
  vf values;
  for (int i = 0; i < kVector; ++i) values[i] = from_float16(p[i].bits);
  return values;
}

inline void store_values(float* p, vf values) { store(p, values); }
inline void store_values(BFloat16* p, vf values) {
  const vu bits = (vu)values;
  const vu rounded = bits + 0x7FFFu + ((bits >> 16) & 1u), quiet = bits | 0x400000u;
  store(p, __builtin_convertvector((values == values ? rounded : quiet) >> 16, vh));
}
inline void store_values(Float16* p, vf values) {
  for (int i = 0; i < kVector; ++i) p[i].bits = to_float16(values[i]);
}

// e^x for |x| <= 80: 2^n e^r with |r| <= ln 2 / 2; the polynomial (least-maximum fit of (e^r - 1 - r) / r^2) errs by
// 3e-9.
inline vf exponential(vf x) {
  const float magic = 0x1.8p23f;  // its last bit counts ones, so that adding it rounds to an integer
  const vf shifted = x * 0x1.715476p0f + magic;
  const vf n = shifted - magic;
  const vf r = (x - n * 0x1.62ep-1f) - n * 0x1.0bfbe8p-15f;
  const vf series =
      (((0x1.6db496p-10f * r + 0x1.123baap-7f) * r + 0x1.55545ep-5f) * r + 0x1.55548ep-3f) * r + 0x1p-1f;
  const vf value = (series * (r * r) + r) + 1.0f;
  return (vf)((vu)value + ((vu)shifted << 23));
}

// 1 + e^-x, at most 1 + e^80: its inverse is still a normal number.
inline vf one_plus_exp_minus(vf x) {
  const vf limit = splat(80.0f);
  vf y = x < limit ? x : limit;
  y = y > -limit ? y : -limit;
  return exponential(-y) + 1.0f;
}

inline void add_to(double* sum, vf values) {
  float lanes[kVector];
  store(lanes, values);
  for (int i = 0; i < kVector; ++i) sum[i] += (double)lanes[i];
}

// V registers of channels from `at` over a tile of pixels, `stride` values apart.
template <typename T, int V>
inline void sums_tile(const T* x, int64_t pixels, int64_t stride, const float* origin, double* sum, double* square) {
  vf first[V], s[V], q[V];
  for (int v = 0; v < V; ++v) first[v] = load(origin + v * kVector), s[v] = vf{}, q[v] = vf{};
  for (int64_t p = 0; p < pixels; ++p) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      const vf d = load_values(x + p * stride + v * kVector) - first[v];
      s[v] += d;
      q[v] += d * d;
    }
  }
  for (int v = 0; v < V; ++v) add_to(sum + v * kVector, s[v]), add_to(square + v * kVector, q[v]);
}

template <typename T, int V, bool Silu>
inline void apply_tile(const T* x, T* y, int64_t pixels, int64_t stride, const NormChannels& c, int64_t at) {
  vf mean[V], p[V], q[V];
  for (int v = 0; v < V; ++v) {
    const int64_t i = at + v * kVector;
    mean[v] = load(c.mean + i), p[v] = load(c.p + i), q[v] = load(c.q + i);
  }
  for (int64_t n = 0; n < pixels; ++n) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      const vf h = (load_values(x + n * stride + v * kVector) - mean[v]) * p[v] + q[v];
      store_values(y + n * stride + v * kVector, Silu ? h / one_plus_exp_minus(h) : h);
    }
  }
}

// Gradient of h from that of silu(h).
template <bool Silu>
inline vf through_silu(vf gradient, vf h) {
  if (!Silu) return gradient;
  const vf s = 1.0f / one_plus_exp_minus(h);
  return gradient * (s * (1.0f + h * (1.0f - s)));
}

template <typename T, int V, bool Silu, bool Keep>
inline void gradient_sums_tile(const T* x, const T* dy, float* kept, int64_t pixels, int64_t stride,
                               const NormChannels& c, int64_t at, double* sum, double* moment) {
  vf mean[V], p[V], q[V], s[V], m[V];
  for (int v = 0; v < V; ++v) {
    const int64_t i = at + v * kVector;
    mean[v] = load(c.mean + i), p[v] = load(c.p + i), q[v] = load(c.q + i), s[v] = vf{}, m[v] = vf{};
  }
  for (int64_t n = 0; n < pixels; ++n) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      const int64_t j = n * stride + v * kVector;
      const vf d = load_values(x + j) - mean[v];
      const vf dh = through_silu<Silu>(load_values(dy + j), d * p[v] + q[v]);
      if (Keep) store(kept + j, dh);
      s[v] += dh;
      m[v] += dh * d;
    }
  }
  for (int v = 0; v < V; ++v) add_to(sum + at + v * kVector, s[v]), add_to(moment + at + v * kVector, m[v]);
}

template <typename T, int V, bool Silu, bool Kept>
inline void gradient_tile(const T* x, const T* dy, const float* kept, T* dx, int64_t pixels, int64_t stride,
                          const NormChannels& c, int64_t at) {
  vf mean[V], p[V], q[V], e[V], f[V];
  for (int v = 0; v < V; ++v) {
    const int64_t i = at + v * kVector;
    mean[v] = load(c.mean + i), p[v] = load(c.p + i), q[v] = load(c.q + i), e[v] = load(c.e + i), f[v] = load(c.f + i);
  }
  for (int64_t n = 0; n < pixels; ++n) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      const int64_t j = n * stride + v * kVector;
      const vf d = load_values(x + j) - mean[v];
      const vf dh = Kept ? load(kept + j) : through_silu<Silu>(load_values(dy + j), d * p[v] + q[v]);
      store_values(dx + j, dh * p[v] + (d * e[v] + f[v]));
    }
  }
}

// Columns of the last, partial register, copied to a tile whose rows are whole registers, and back.
template <typename T>
struct Narrow {
  T data[kNormTile * kVector];
  int64_t width;
  Narrow(int64_t columns) : width(columns) { memset(data, 0, sizeof data); }
  T* take(const T* from, int64_t pixels, int64_t stride) {
    for (int64_t n = 0; n < pixels; ++n) memcpy(data + n * kVector, from + n * stride, (size_t)width * sizeof(T));
    return data;
  }
  void give(T* to, int64_t pixels, int64_t stride) const {
    for (int64_t n = 0; n < pixels; ++n) memcpy(to + n * stride, data + n * kVector, (size_t)width * sizeof(T));
  }
};

// Calls wide(first pixel, pixels, channel) for pairs of registers, single(...) for one, narrow(...) for what is left.
template <typename Wide, typename Single, typename Rest>
inline void each_tile(int64_t pixels, int64_t channels, Wide wide, Single single, Rest narrow) {
  for (int64_t first = 0; first < pixels; first += kNormTile) {
    const int64_t count = pixels - first < kNormTile ? pixels - first : kNormTile;
    int64_t at = 0;
    for (; at + 2 * kVector <= channels; at += 2 * kVector) wide(first, count, at);
    for (; at + kVector <= channels; at += kVector) single(first, count, at);
    if (at < channels) narrow(first, count, at);
  }
}

template <typename T>
void sums_of(const T* x, int64_t pixels, int64_t channels, const float* origin, double* sum, double* square) {
  each_tile(
      pixels, channels,
      [=](int64_t first, int64_t count, int64_t at) {
        sums_tile<T, 2>(x + first * channels + at, count, channels, origin + at, sum + at, square + at);
      },
      [=](int64_t first, int64_t count, int64_t at) {
        sums_tile<T, 1>(x + first * channels + at, count, channels, origin + at, sum + at, square + at);
      },
      [=](int64_t first, int64_t count, int64_t at) {
        Narrow<T> tile(channels - at);
        sums_tile<T, 1>(tile.take(x + first * channels + at, count, channels), count, kVector, origin + at, sum + at,
                        square + at);
      });
}

template <typename T, bool Silu>
void apply_of(const T* x, T* y, int64_t pixels, int64_t channels, const NormChannels& c) {
  each_tile(
      pixels, channels,
      [=](int64_t first, int64_t count, int64_t at) {
        const int64_t j = first * channels + at;
        apply_tile<T, 2, Silu>(x + j, y + j, count, channels, c, at);
      },
      [=](int64_t first, int64_t count, int64_t at) {
        const int64_t j = first * channels + at;
        apply_tile<T, 1, Silu>(x + j, y + j, count, channels, c, at);
      },
      [=](int64_t first, int64_t count, int64_t at) {
        const int64_t j = first * channels + at;
        Narrow<T> tile(channels - at);
        tile.take(x + j, count, channels);
        apply_tile<T, 1, Silu>(tile.data, tile.data, count, kVector, c, at);
        tile.give(y + j, count, channels);
      });
}

template <typename T, bool Silu, bool Keep>
void gradient_sums_of(const T* x, const T* dy, float* kept, int64_t pixels, int64_t channels, const NormChannels& c,
                      double* sum, double* moment) {
  each_tile(
      pixels, channels,
      [=](int64_t first, int64_t count, int64_t at) {
        const int64_t j = first * channels + at;
        gradient_sums_tile<T, 2, Silu, Keep>(x + j, dy + j, kept + (Keep ? j : 0), count, channels, c, at, sum, moment);
      },
      [=](int64_t first, int64_t count, int64_t at) {
        const int64_t j = first * channels + at;
        gradient_sums_tile<T, 1, Silu, Keep>(x + j, dy + j, kept + (Keep ? j : 0), count, channels, c, at, sum, moment);
      },
      [=](int64_t first, int64_t count, int64_t at) {
        const int64_t j = first * channels + at;
        Narrow<T> tile(channels - at), gradient(channels - at);
        Narrow<float> keep(channels - at);
        tile.take(x + j, count, channels), gradient.take(dy + j, count, channels);
        gradient_sums_tile<T, 1, Silu, Keep>(tile.data, gradient.data, keep.data, count, kVector, c, at, sum, moment);
        if (Keep) keep.give(kept + j, count, channels);
      });
}

template <typename T, bool Silu, bool Kept>
void gradient_of(const T* x, const T* dy, const float* kept, T* dx, int64_t pixels, int64_t channels,
                 const NormChannels& c) {
  each_tile(
      pixels, channels,
      [=](int64_t first, int64_t count, int64_t at) {
        const int64_t j = first * channels + at;
        gradient_tile<T, 2, Silu, Kept>(x + j, dy + j, kept + (Kept ? j : 0), dx + j, count, channels, c, at);
      },
      [=](int64_t first, int64_t count, int64_t at) {
        const int64_t j = first * channels + at;
        gradient_tile<T, 1, Silu, Kept>(x + j, dy + j, kept + (Kept ? j : 0), dx + j, count, channels, c, at);
      },
      [=](int64_t first, int64_t count, int64_t at) {
        const int64_t j = first * channels + at;
        Narrow<T> tile(channels - at), gradient(channels - at);
        Narrow<float> keep(channels - at);
        tile.take(x + j, count, channels), gradient.take(dy + j, count, channels);
        if (Kept) keep.take(kept + j, count, channels);
        gradient_tile<T, 1, Silu, Kept>(tile.data, gradient.data, keep.data, tile.data, count, kVector, c, at);
        tile.give(dx + j, count, channels);
      });
}

template <typename Call>
inline void with_dtype(int32_t dtype, Call call) {
  if (dtype == PRUNEFAST_FLOAT32) return call((float*)nullptr);
  if (dtype == PRUNEFAST_BFLOAT16) return call((BFloat16*)nullptr);
  call((Float16*)nullptr);
}

void norm_origin(int32_t dtype, const void* x, int64_t channels, float* origin) {
  const prunefast_image image = {const_cast<void*>(x), {0, 0, 0, 1}, dtype};
  load_tile(origin, &image, 0, 1, channels);
}

void norm_sums(int32_t dtype, const void* x, int64_t offset, int64_t pixels, int64_t channels, const float* origin,
               double* sum, double* square) {
  with_dtype(dtype, [=](auto* type) {
    sums_of(static_cast<decltype(type)>(const_cast<void*>(x)) + offset, pixels, channels, origin, sum, square);
  });
}

void norm_apply(int32_t dtype, bool silu, const void* x, void* y, int64_t offset, int64_t pixels, int64_t channels,
                const NormChannels* c) {
  with_dtype(dtype, [=](auto* type) {
    using T = decltype(type);
    T from = static_cast<T>(const_cast<void*>(x)) + offset, to = static_cast<T>(y) + offset;
    if (silu) return apply_of<std::remove_pointer_t<T>, true>(from, to, pixels, channels, *c);
    apply_of<std::remove_pointer_t<T>, false>(from, to, pixels, channels, *c);
  });
}

void norm_gradient_sums(int32_t dtype, bool silu, const void* x, const void* dy, float* kept, int64_t offset,
                        int64_t pixels, int64_t channels, const NormChannels* c, double* sum, double* moment) {
  with_dtype(dtype, [=](auto* type) {
    using T = decltype(type);
    using V = std::remove_pointer_t<T>;
    const V* from = static_cast<const V*>(x) + offset;
    const V* gradient = static_cast<const V*>(dy) + offset;
    if (!silu) return gradient_sums_of<V, false, false>(from, gradient, nullptr, pixels, channels, *c, sum, moment);
    if (!kept) return gradient_sums_of<V, true, false>(from, gradient, nullptr, pixels, channels, *c, sum, moment);
    gradient_sums_of<V, true, true>(from, gradient, kept, pixels, channels, *c, sum, moment);
  });
}

void norm_gradient(int32_t dtype, bool silu, const void* x, const void* dy, const float* kept, void* dx, int64_t offset,
                   int64_t pixels, int64_t channels, const NormChannels* c) {
  with_dtype(dtype, [=](auto* type) {
    using T = decltype(type);
    using V = std::remove_pointer_t<T>;
    const V* from = static_cast<const V*>(x) + offset;
    const V* gradient = static_cast<const V*>(dy) + offset;
    V* to = static_cast<V*>(dx) + offset;
    if (!silu) return gradient_of<V, false, false>(from, gradient, nullptr, to, pixels, channels, *c);
    if (!kept) return gradient_of<V, true, false>(from, gradient, nullptr, to, pixels, channels, *c);
    gradient_of<V, true, true>(from, gradient, kept, to, pixels, channels, *c);
  });
}

}  // namespace
}  // namespace prunefast
