// Loops over rows of float32 and bfloat16 on the CPU. Arithmetic is float32; bfloat16 rows are widened, and rounded once.
#pragma once
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

// Compiled for several vector units; the loader takes the best.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_VECTOR_UNIT __attribute__((target_clones("avx512f", "arch=haswell", "default")))
#else
#define FOR_EACH_VECTOR_UNIT
#endif

// What such a function calls, to be compiled for the same unit.
#if defined(__GNUC__)
#define INLINE __attribute__((always_inline)) inline
#else
#define INLINE inline
#endif

// Sums are kept in this many lanes. Element i belongs to lane i % LANES, so that zeros behind the last one change nothing,
// not even the rounding.
constexpr int LANES = 16;

INLINE float total(float *lanes) {
  for (int width = LANES / 2; width > 0; width /= 2) {
    for (int j = 0; j < width; ++j) {
      lanes[j] += lanes[j + width];
    }
  }
  return lanes[0];
}

// The sum of products.
INLINE float dot(const float *x, const float *y, int64_t n) {
  float lanes[LANES] = {0};
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) {
    for (int j = 0; j < LANES; ++j) {
      lanes[j] += x[i + j] * y[i + j];
    }
  }
  for (int j = 0; i + j < n; ++j) {
    lanes[j] += x[i + j] * y[i + j];
  }
  return total(lanes);
}

INLINE float bits_to_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

INLINE uint32_t float_to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

// e^x within two units in the last place; 0 below -87, infinite above 88. For loops, in which the C library's function would be
// called one by one.
INLINE float fast_exp(float x) {
  const float bounded = x < -87.0f ? -87.0f : (x > 89.0f ? 89.0f : x);
  // Rounds to the nearest integer: the sum has no bits behind the point.
  const float shifted = bounded * 1.44269504f + 12582912.0f;
  const float n = shifted - 12582912.0f;
  const float r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const float scale = bits_to_float((float_to_bits(shifted) + (127u - 0x4b400000u)) << 23);
  return x < -87.0f ? 0.0f : p * scale;
}

// What a backward pass begins with that records no graph of its own.
inline void once() {
  TORCH_CHECK(!at::GradMode::is_enabled(), "second derivatives are not supported");
}

inline bool has_rows(const at::Tensor &x) {
  return x.device().is_cpu() && x.layout() == at::kStrided &&
         (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16);
}

// x / sqrt(mean(x^2) + eps) * weight; gives the factor. In norm.cpp.
float normalize(const float *x, const float *weight, float *out, int64_t n, float eps);

// activation(gate) * up. In gate.cpp.
void silu_rows(const float *gate, const float *up, float *out, int64_t n);
void gelu_rows(const float *gate, const float *up, float *out, int64_t n);

void widen(const uint16_t *from, float *to, int64_t n);
void round_to_bfloat16(const float *from, uint16_t *to, int64_t n);

// Elements of a tensor of either kind, from an offset on, as float32.
class Reader {
public:
  explicit Reader(const at::Tensor &x)
      : data_(x.const_data_ptr()), wide_(x.scalar_type() == at::kFloat) {}

  // `buffer` is used where they are not float32 anyway.
  const float *row(int64_t offset, int64_t n, float *buffer) const {
    if (wide_) {
      return static_cast<const float *>(data_) + offset;
    }
    widen(static_cast<const uint16_t *>(data_) + offset, buffer, n);
    return buffer;
  }

private:
  const void *data_;
  bool wide_;
};

class Writer {
public:
  explicit Writer(const at::Tensor &x) : data_(x.mutable_data_ptr()), wide_(x.scalar_type() == at::kFloat) {}

  // Where to write a row: `buffer`, where it has to be rounded afterwards.
  float *row(int64_t offset, float *buffer) const { return wide_ ? static_cast<float *>(data_) + offset : buffer; }

  void finish(int64_t offset, int64_t n, const float *buffer) const {
    if (!wide_) {
      round_to_bfloat16(buffer, static_cast<uint16_t *>(data_) + offset, n);
    }
  }

  // Writes what lies elsewhere.
  void store(int64_t offset, int64_t n, const float *from) const {
    if (wide_) {
      std::memcpy(static_cast<float *>(data_) + offset, from, sizeof(float) * static_cast<size_t>(n));
    }
    finish(offset, n, from);
  }

private:
  void *data_;
  bool wide_;
};

// Calls work(row, buffers) for every row, with `buffers` times `width` floats of its own; a row is work for `each` times `width`
// elements.
template <typename F> void for_rows(int64_t rows, int64_t width, int buffers, F work, int64_t each = 1) {
  const int64_t grain = std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(1, width * each));
  at::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> space(static_cast<size_t>(buffers * width));
    for (int64_t row = begin; row < end; ++row) {
      work(row, space.data());
    }
  });
}
