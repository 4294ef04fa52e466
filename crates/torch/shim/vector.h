// Loops over rows of float32 and bfloat16 on the CPU. Arithmetic is float32; bfloat16 rows are widened, and rounded once.
#pragma once
#include "cpu/processor.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

// What a backward pass begins with that records no graph of its own.
inline void once() {
  TORCH_CHECK(!at::GradMode::is_enabled(), "second derivatives are not supported");
}

inline bool has_rows(const at::Tensor &x) {
  return x.device().is_cpu() && x.layout() == at::kStrided &&
         (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16);
}

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
    loops().widen(static_cast<const uint16_t *>(data_) + offset, buffer, n);
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
      loops().round_to_bfloat16(buffer, static_cast<uint16_t *>(data_) + offset, n);
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
