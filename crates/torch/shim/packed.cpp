// Products with few rows, as in decoding, where reading the weights is most of the work. Weights lie in blocks of 64 outputs, as the loops
// want them (cpu/loops.cpp).

#include "guard.h"
#include "shim.h"
#include "vector.h"

#include <ATen/autocast_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>

#include <memory>

namespace {

// Rows of weights, one tensor below the other, into blocks [blocks, 4, k, 16]; outputs that fill the last one are 0.
template <typename T> void lay_out(const std::vector<const T *> &rows, int64_t k, T *to) {
  const auto count = static_cast<int64_t>(rows.size());
  // Inputs that are turned at once, so that what is written stays in the cache.
  constexpr int64_t SOME = 16;
  at::parallel_for(0, (count + PACKED_OUTPUTS - 1) / PACKED_OUTPUTS, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      auto *out = to + block * PACKED_OUTPUTS * k;
      for (int64_t first = 0; first < k; first += SOME) {
        const auto last = std::min(k, first + SOME);
        for (int64_t r = 0; r < PACKED_OUTPUTS; ++r) {
          const auto row = block * PACKED_OUTPUTS + r;
          for (int64_t i = first; i < last; ++i) {
            out[(r / LANES * k + i) * LANES + r % LANES] = row < count ? rows[row][i] : T(0);
          }
        }
      }
    }
  });
}

at::Tensor blocks_of(const std::vector<at::Tensor> &weights) {
  const auto k = weights[0].size(1);
  int64_t count = 0;
  for (const auto &weight : weights) {
    count += weight.size(0);
  }
  auto out = at::empty({(count + PACKED_OUTPUTS - 1) / PACKED_OUTPUTS, PACKED_OUTPUTS / LANES, k, LANES}, weights[0].options());
  const auto fill = [&](auto *to) {
    using T = std::remove_pointer_t<decltype(to)>;
    std::vector<const T *> rows;
    for (const auto &weight : weights) {
      for (int64_t r = 0; r < weight.size(0); ++r) {
        rows.push_back(static_cast<const T *>(weight.const_data_ptr()) + r * k);
      }
    }
    lay_out<T>(rows, k, to);
  };
  if (out.scalar_type() == at::kFloat) {
    fill(out.mutable_data_ptr<float>());
  } else {
    fill(static_cast<uint16_t *>(out.mutable_data_ptr()));
  }
  return out;
}

// What comes before the product; the values are those of the Rust side.
enum Prologue { NONE, NORM, RELU, SILU, GELU };

// Rows [rows, k] of what the product takes, from x [rows, k], or [rows, 2 k] before a gate.
void prepare(const at::Tensor &x, int before, const at::Tensor *weight, float eps, int64_t k, float *out) {
  const Reader from(x);
  const auto n = x.size(1);
  const at::Tensor wide = before == NORM ? weight->to(at::kFloat).contiguous() : at::Tensor();
  for_rows(x.size(0), n, 1, [&](int64_t row, float *buffer) {
    const auto *in = from.row(row * x.stride(0), n, buffer);
    auto *to = out + row * k;
    switch (before) {
    case NORM:
      loops().rms_norm(in, wide.const_data_ptr<float>(), to, n, eps);
      break;
    case RELU:
      for (int64_t i = 0; i < n; ++i) {
        to[i] = in[i] > 0.0f || in[i] != in[i] ? in[i] : 0.0f;
      }
      break;
    case SILU:
      loops().silu_mul(in, in + k, to, k);
      break;
    case GELU:
      loops().gelu_mul(in, in + k, to, k);
      break;
    default:
      std::memcpy(to, in, sizeof(float) * static_cast<size_t>(k));
    }
  });
}

// Rows that go through a block before the next one is read.
constexpr int64_t SOME_ROWS = 48;

// residual + x W^T, x [rows, k]; out has the kind of the residual, or of the weights without one.
template <typename T>
void multiply(const float *x, int64_t rows, const at::Tensor &blocks, const std::optional<at::Tensor> &residual,
              const at::Tensor &out) {
  const auto k = blocks.size(2), n = out.size(1);
  const auto *weights = static_cast<const T *>(blocks.const_data_ptr());
  const Writer to(out);
  const Reader added(residual ? *residual : out);
  const auto multiply_block = [&] {
    if constexpr (std::is_same_v<T, float>) {
      return loops().packed_f32;
    } else {
      return loops().packed_bf16;
    }
  }();
  at::parallel_for(0, blocks.size(0), 1, [&](int64_t begin, int64_t end) {
    float sums[SOME_ROWS * PACKED_OUTPUTS], wide[PACKED_OUTPUTS];
    for (int64_t block = begin; block < end; ++block) {
      const auto from = block * PACKED_OUTPUTS, count = std::min(PACKED_OUTPUTS, n - from);
      for (int64_t first = 0; first < rows; first += SOME_ROWS) {
        const auto some = std::min(SOME_ROWS, rows - first);
        multiply_block(x + first * k, some, k, weights + from * k, sums);
        for (int64_t m = 0; m < some; ++m) {
          auto *sum = sums + m * PACKED_OUTPUTS;
          if (residual) {
            const auto *more = added.row((first + m) * residual->stride(0) + from, count, wide);
            for (int64_t i = 0; i < count; ++i) {
              sum[i] += more[i];
            }
          }
          to.store((first + m) * n + from, count, sum);
        }
      }
    }
  });
}

// [rows, n], where rows lie at equal distances.
at::Tensor rows_of(const at::Tensor &x) {
  const auto n = x.size(-1);
  auto rows = x.dim() == 2 ? x : x.reshape({-1, n});
  return rows.stride(1) == 1 ? rows : rows.contiguous();
}

} // namespace

extern "C" {

int ruminate_pack(at::Tensor *const *weights, size_t count, at::Tensor **out, int *blocks, char **error) {
  return guarded(error, [&] {
    at::NoGradGuard no_grad;
    std::vector<at::Tensor> parts;
    bool ours = true;
    for (size_t i = 0; i < count; ++i) {
      auto part = weights[i]->detach();
      TORCH_CHECK(part.dim() == 2 && part.size(1) == weights[0]->size(1), "weights ", weights[0]->sizes(), " and ",
                  part.sizes(), " do not lie below one another");
      if (part.device().is_cpu() && at::autocast::is_autocast_enabled(at::kCPU)) {
        part = part.to(at::autocast::get_autocast_dtype(at::kCPU));
      }
      parts.push_back(part.contiguous());
      ours = ours && has_rows(part) && part.scalar_type() == parts[0].scalar_type() && part.size(1) > 0;
    }
    *blocks = ours;
    *out = new at::Tensor(ours ? blocks_of(parts) : at::cat(parts));
  });
}

int ruminate_packed_linear(at::Tensor *x, at::Tensor *blocks, int64_t outputs, int before, at::Tensor *norm, double eps,
                      at::Tensor *residual, at::Tensor **out, char **error) {
  return guarded(error, [&] {
    at::NoGradGuard no_grad;
    const auto k = blocks->size(2), width = before >= SILU ? 2 * k : k;
    TORCH_CHECK(has_rows(*x) && x->dim() > 0 && x->size(-1) == width, "rows of ", width,
                " numbers in float32 or bfloat16 are needed on the CPU, not ", x->sizes());
    TORCH_CHECK(!norm || (norm->device().is_cpu() && norm->dim() == 1 && norm->size(0) == k), "the norm needs ", k,
                " weights on the CPU, not ", norm ? norm->sizes() : x->sizes());
    auto shape = x->sizes().vec();
    shape.back() = outputs;
    TORCH_CHECK(!residual || (has_rows(*residual) && residual->sizes() == at::IntArrayRef(shape)), "to ", shape,
                " cannot be added ", residual ? residual->sizes() : x->sizes());
    const auto rows = rows_of(*x);
    const auto added = residual ? std::make_optional(rows_of(*residual)) : std::nullopt;
    auto result = at::empty({rows.size(0), outputs}, (added ? *added : *blocks).options());
    std::unique_ptr<float[]> space;
    const float *in = nullptr;
    if (before == NONE && rows.scalar_type() == at::kFloat && rows.is_contiguous()) {
      in = rows.const_data_ptr<float>();
    } else {
      space.reset(new float[static_cast<size_t>(rows.size(0) * k)]);
      prepare(rows, before, norm, static_cast<float>(eps), k, space.get());
      in = space.get();
    }
    if (blocks->scalar_type() == at::kFloat) {
      multiply<float>(in, rows.size(0), *blocks, added, result);
    } else {
      multiply<uint16_t>(in, rows.size(0), *blocks, added, result);
    }
    *out = new at::Tensor(result.view(shape));
  });
}
}
