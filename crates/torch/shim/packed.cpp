// Products with few rows, as in decoding, where reading the weights is most of the work. They lie in blocks of 64 outputs, so that
// they stream through once for four rows: as four streams of 16 outputs, input by input, because a core fetches four streams
// ahead faster than one. Each output is summed in the order of the inputs, however many rows there are: a row's numbers do not
// depend on its company.

#include "guard.h"
#include "matmul.h"
#include "shim.h"
#include "vector.h"

#include <ATen/autocast_mode.h>
#include <ATen/ops/empty.h>

#include <memory>

namespace {

// Outputs of a block.
constexpr int64_t BLOCK = 64;

#if defined(__x86_64__) && defined(__GNUC__)
#define WIDE __attribute__((target("avx512f")))

// On narrower units the registers do not hold a tile; there oneDNN multiplies.
bool has_wide_unit() {
  static const bool wide = __builtin_cpu_supports("avx512f");
  return wide;
}

typedef float Lanes __attribute__((vector_size(64)));
typedef float LanesInMemory __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t Bits __attribute__((vector_size(64)));
typedef uint16_t HalvesInMemory __attribute__((vector_size(32), aligned(2), may_alias));

WIDE __attribute__((always_inline)) inline Lanes load(const float *from) {
  return *reinterpret_cast<const LanesInMemory *>(from);
}

WIDE __attribute__((always_inline)) inline Lanes load(const uint16_t *from) {
  const auto halves = *reinterpret_cast<const HalvesInMemory *>(from);
  return reinterpret_cast<Lanes>(__builtin_convertvector(halves, Bits) << 16);
}

// M rows of x times a block.
template <int M, typename T>
WIDE __attribute__((always_inline)) inline void tile(const float *x, int64_t k, const T *block, float *out) {
  constexpr int V = BLOCK / LANES;
  Lanes sums[M][V];
  for (int m = 0; m < M; ++m) {
    for (int v = 0; v < V; ++v) {
      sums[m][v] = Lanes{};
    }
  }
  for (int64_t i = 0; i < k; ++i) {
    Lanes weights[V];
    for (int v = 0; v < V; ++v) {
      weights[v] = load(block + (v * k + i) * LANES);
    }
    for (int m = 0; m < M; ++m) {
      for (int v = 0; v < V; ++v) {
        sums[m][v] += weights[v] * x[m * k + i];
      }
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int v = 0; v < V; ++v) {
      *reinterpret_cast<LanesInMemory *>(out + m * BLOCK + v * LANES) = sums[m][v];
    }
  }
}

// Some rows of x times a block: at most four, as many as are done; out is [rows, 64].
template <typename T> WIDE int64_t tiles(const float *x, int64_t rows, int64_t k, const T *block, float *out) {
  if (rows >= 4) {
    tile<4>(x, k, block, out);
    return 4;
  }
  if (rows >= 2) {
    tile<2>(x, k, block, out);
    return 2;
  }
  tile<1>(x, k, block, out);
  return 1;
}
#else
bool has_wide_unit() { return false; }
template <typename T> int64_t tiles(const float *, int64_t, int64_t, const T *, float *) {
  TORCH_CHECK(false, "there is no wide vector unit");
}
#endif

// Rows of weights, one tensor below the other, into blocks [blocks, 4, k, 16]; outputs that fill the last one are 0.
template <typename T> void lay_out(const std::vector<const T *> &rows, int64_t k, T *to) {
  const auto count = static_cast<int64_t>(rows.size());
  // Inputs that are turned at once, so that what is written stays in the cache.
  constexpr int64_t SOME = 16;
  at::parallel_for(0, (count + BLOCK - 1) / BLOCK, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      auto *out = to + block * BLOCK * k;
      for (int64_t first = 0; first < k; first += SOME) {
        const auto last = std::min(k, first + SOME);
        for (int64_t r = 0; r < BLOCK; ++r) {
          const auto row = block * BLOCK + r;
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
  auto out = at::empty({(count + BLOCK - 1) / BLOCK, BLOCK / LANES, k, LANES}, weights[0].options());
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
enum Before { NOTHING, NORM, RELU, SILU, GELU };

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
      normalize(in, wide.const_data_ptr<float>(), to, n, eps);
      break;
    case RELU:
      for (int64_t i = 0; i < n; ++i) {
        to[i] = in[i] > 0.0f || in[i] != in[i] ? in[i] : 0.0f;
      }
      break;
    case SILU:
      silu_rows(in, in + k, to, k);
      break;
    case GELU:
      gelu_rows(in, in + k, to, k);
      break;
    default:
      std::memcpy(to, in, sizeof(float) * static_cast<size_t>(k));
    }
  });
}

// residual + x W^T, x [rows, k]; out has the kind of the residual, or of the weights without one.
template <typename T>
void multiply(const float *x, int64_t rows, const at::Tensor &blocks, const std::optional<at::Tensor> &residual,
              const at::Tensor &out) {
  const auto k = blocks.size(2), n = out.size(1);
  const auto *weights = static_cast<const T *>(blocks.const_data_ptr());
  const Writer to(out);
  const Reader added(residual ? *residual : out);
  at::parallel_for(0, blocks.size(0), 1, [&](int64_t begin, int64_t end) {
    float sums[4 * BLOCK], wide[BLOCK];
    for (int64_t block = begin; block < end; ++block) {
      const auto from = block * BLOCK, count = std::min(BLOCK, n - from);
      for (int64_t row = 0; row < rows;) {
        const auto done = tiles(x + row * k, rows - row, k, weights + from * k, sums);
        for (int64_t m = 0; m < done; ++m, ++row) {
          auto *sum = sums + m * BLOCK;
          if (residual) {
            const auto *more = added.row(row * residual->stride(0) + from, count, wide);
            for (int64_t i = 0; i < count; ++i) {
              sum[i] += more[i];
            }
          }
          to.store(row * n + from, count, sum);
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
    bool ours = has_wide_unit();
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
    *out = new at::Tensor(ours ? blocks_of(parts) : reordered(parts));
  });
}

int ruminate_packed_linear(at::Tensor *x, at::Tensor *weight, at::Tensor **out, char **error) {
  return guarded(error, [&] { *out = new at::Tensor(reordered_linear(*x, *weight)); });
}

int ruminate_multiply(at::Tensor *x, at::Tensor *blocks, int64_t outputs, int before, at::Tensor *norm, double eps,
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
    if (before == NOTHING && rows.scalar_type() == at::kFloat && rows.is_contiguous()) {
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
