// Attention on the CPU: one pass over the scores between the two products, and in decoding no products at all, whose calls
// would cost more than their arithmetic.

#include "dropout.h"
#include "guard.h"
#include "matmul.h"
#include "shim.h"
#include "vector.h"

#include <ATen/autocast_mode.h>
#include <ATen/ops/dropout.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/softmax.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// Queries of one head up to which nothing is gained by matrix products.
constexpr int64_t FEW = 8;

// Softmax of scale * scores + bias, in place.
FOR_EACH_VECTOR_UNIT
void soften(float *__restrict scores, const float *__restrict bias, float scale, int64_t n) {
  float lanes[LANES];
  for (int j = 0; j < LANES; ++j) {
    lanes[j] = -INFINITY;
  }
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) {
    for (int j = 0; j < LANES; ++j) {
      const float score = scores[i + j] * scale + bias[i + j];
      scores[i + j] = score;
      lanes[j] = score > lanes[j] ? score : lanes[j];
    }
  }
  for (int j = 0; i + j < n; ++j) {
    const float score = scores[i + j] * scale + bias[i + j];
    scores[i + j] = score;
    lanes[j] = score > lanes[j] ? score : lanes[j];
  }
  float largest = -INFINITY;
  for (int j = 0; j < LANES; ++j) {
    largest = lanes[j] > largest ? lanes[j] : largest;
    lanes[j] = 0;
  }
  for (i = 0; i + LANES <= n; i += LANES) {
    for (int j = 0; j < LANES; ++j) {
      const float e = fast_exp(scores[i + j] - largest);
      scores[i + j] = e;
      lanes[j] += e;
    }
  }
  for (int j = 0; i + j < n; ++j) {
    const float e = fast_exp(scores[i + j] - largest);
    scores[i + j] = e;
    lanes[j] += e;
  }
  const float inverse = 1.0f / total(lanes);
  for (int64_t k = 0; k < n; ++k) {
    scores[k] *= inverse;
  }
}

// From the gradient of the probabilities to that of the biased scores, p (g - sum g p), in place.
FOR_EACH_VECTOR_UNIT
void slope(float *__restrict grad, const float *__restrict probs, int64_t n) {
  float lanes[LANES] = {0};
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) {
    for (int j = 0; j < LANES; ++j) {
      lanes[j] += grad[i + j] * probs[i + j];
    }
  }
  for (int j = 0; i + j < n; ++j) {
    lanes[j] += grad[i + j] * probs[i + j];
  }
  const float sum = total(lanes);
  for (int64_t k = 0; k < n; ++k) {
    grad[k] = probs[k] * (grad[k] - sum);
  }
}

// Products of a query with keys.
FOR_EACH_VECTOR_UNIT
void dots(const float *__restrict query, const float *__restrict keys, int64_t stride, int64_t count, int64_t n,
          float *__restrict out) {
  for (int64_t key = 0; key < count; ++key) {
    const float *k = keys + key * stride;
    float lanes[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
      for (int j = 0; j < LANES; ++j) {
        lanes[j] += query[i + j] * k[i + j];
      }
    }
    for (int j = 0; i + j < n; ++j) {
      lanes[j] += query[i + j] * k[i + j];
    }
    out[key] = total(lanes);
  }
}

// The mean of values under probabilities.
FOR_EACH_VECTOR_UNIT
void blend(const float *__restrict probs, const float *__restrict values, int64_t stride, int64_t count, int64_t n,
           float *__restrict out) {
  for (int64_t i = 0; i < n; ++i) {
    out[i] = 0;
  }
  for (int64_t key = 0; key < count; ++key) {
    const float p = probs[key], *v = values + key * stride;
    for (int64_t i = 0; i < n; ++i) {
      out[i] += p * v[i];
    }
  }
}

// What is added to scores [batch, heads, time, keys], wherever it is broadcast from.
class Bias {
public:
  Bias(const std::optional<at::Tensor> &bias, at::IntArrayRef sizes) : keys_(sizes[3]), heads_(sizes[1]), time_(sizes[2]) {
    if (bias) {
      view_ = bias->expand(sizes);
      if (view_.stride(3) != 1 && keys_ > 1) {
        view_ = view_.contiguous();
      }
      reader_.emplace(view_);
    } else {
      none_.resize(static_cast<size_t>(keys_));
    }
  }

  // Of a row of [batch * heads * time].
  const float *row(int64_t row, float *buffer) const {
    if (!reader_) {
      return none_.data();
    }
    const auto t = row % time_, head = row / time_ % heads_, b = row / time_ / heads_;
    return reader_->row(b * view_.stride(0) + head * view_.stride(1) + t * view_.stride(2), keys_, buffer);
  }

private:
  int64_t keys_, heads_, time_;
  at::Tensor view_;
  std::optional<Reader> reader_;
  std::vector<float> none_;
};

void soften_all(const at::Tensor &scores, const Bias &bias, double scale) {
  const auto n = scores.size(-1);
  const Reader from(scores);
  const Writer to(scores);
  for_rows(scores.numel() / n, n, 2, [&](int64_t row, float *buffer) {
    auto *probs = to.row(row * n, buffer);
    from.row(row * n, n, buffer);
    soften(probs, bias.row(row, buffer + n), static_cast<float>(scale), n);
    to.finish(row * n, n, probs);
  });
}

// [batch, heads, time, width] as [batch * heads, time, width].
at::Tensor folded(const at::Tensor &x) { return x.reshape({-1, x.size(2), x.size(3)}); }

struct Attention : public Function<Attention> {
  static at::Tensor forward(AutogradContext *ctx, const at::Tensor &q, const at::Tensor &k, const at::Tensor &v,
                            const std::optional<at::Tensor> &bias, at::IntArrayRef sizes, double scale, double rate) {
    auto probs = product(q, k.transpose(1, 2));
    soften_all(probs, Bias(bias, sizes), scale);
    const auto seed = rate > 0.0 ? next_seed() : 0;
    auto out = product(rate > 0.0 ? dropped(probs, rate, seed) : probs, v);
    if (ctx) {
      ctx->save_for_backward({q, k, v, probs});
      ctx->saved_data["sizes"] = sizes.vec();
      ctx->saved_data["bias"] = bias ? bias->sizes().vec() : std::vector<int64_t>();
      ctx->saved_data["kind"] = static_cast<int64_t>(bias ? bias->scalar_type() : at::kFloat);
      ctx->saved_data["scale"] = scale;
      ctx->saved_data["rate"] = rate;
      ctx->saved_data["seed"] = static_cast<int64_t>(seed);
    }
    return out;
  }

  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    once();
    auto saved = ctx->get_saved_variables();
    const auto &q = saved[0], &k = saved[1], &v = saved[2], &probs = saved[3];
    const auto scale = ctx->saved_data["scale"].toDouble(), rate = ctx->saved_data["rate"].toDouble();
    const auto seed = static_cast<uint64_t>(ctx->saved_data["seed"].toInt());
    const auto grad = grads[0].to(v.scalar_type());
    auto slopes = product(grad, v.transpose(1, 2));
    at::Tensor grad_v;
    if (rate > 0.0) {
      grad_v = product(dropped(probs, rate, seed).transpose(1, 2), grad);
      slopes = dropped(slopes, rate, seed);
    } else {
      grad_v = product(probs.transpose(1, 2), grad);
    }
    const auto n = probs.size(-1);
    const Reader from(slopes), kept(probs);
    const Writer to(slopes);
    for_rows(probs.numel() / n, n, 2, [&](int64_t row, float *buffer) {
      auto *target = to.row(row * n, buffer);
      from.row(row * n, n, buffer);
      slope(target, kept.row(row * n, n, buffer + n), n);
      to.finish(row * n, n, target);
    });
    at::Tensor grad_bias;
    if (!ctx->saved_data["bias"].toIntVector().empty() && ctx->needs_input_grad(3)) {
      const auto whole = slopes.view(ctx->saved_data["sizes"].toIntVector());
      const auto kind = static_cast<at::ScalarType>(ctx->saved_data["kind"].toInt());
      // Summed in the bias's own precision.
      std::vector<int64_t> dims;
      const auto target = ctx->saved_data["bias"].toIntVector();
      for (int64_t dim = 0; dim < 4; ++dim) {
        if (target[dim] == 1 && whole.size(dim) != 1) {
          dims.push_back(dim);
        }
      }
      grad_bias = dims.empty() ? whole.to(kind) : whole.sum(dims, true, kind);
    }
    auto grad_q = product(slopes, k), grad_k = product(slopes.transpose(1, 2), q);
    if (scale != 1.0) {
      grad_q.mul_(scale);
      grad_k.mul_(scale);
    }
    return {grad_q, grad_k, grad_v, grad_bias, at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

// A few queries of each head, without gradients.
at::Tensor look_up(const at::Tensor &q, const at::Tensor &k, const at::Tensor &v, const Bias &bias, double scale) {
  const auto batch = q.size(0), heads = q.size(1), time = q.size(2), n = q.size(3), count = k.size(2);
  auto out = at::empty({batch, time, heads, n}, q.options());
  const Reader queries(q), keys(k), values(v);
  const Writer to(out);
  const bool wide = k.scalar_type() == at::kFloat;
  const int64_t grain = std::max<int64_t>(1, (1 << 14) / (time * count * n));
  at::parallel_for(0, batch * heads, grain, [&](int64_t begin, int64_t end) {
    // Keys and values that have to be widened, scores, bias, query and result.
    std::vector<float> space(static_cast<size_t>((wide ? 0 : 2 * count * n) + 2 * count + 2 * n));
    auto *scores = space.data() + (wide ? 0 : 2 * count * n), *offsets = scores + count;
    auto *query = offsets + count, *result = query + n;
    for (int64_t task = begin; task < end; ++task) {
      const auto b = task / heads, head = task % heads;
      const auto block = [&](const Reader &reader, const at::Tensor &x, float *buffer) -> std::pair<const float *, int64_t> {
        const auto first = b * x.stride(0) + head * x.stride(1);
        if (wide) {
          return {reader.row(first, 0, nullptr), x.stride(2)};
        }
        for (int64_t key = 0; key < count; ++key) {
          reader.row(first + key * x.stride(2), n, buffer + key * n);
        }
        return {buffer, n};
      };
      const auto [k_rows, k_stride] = block(keys, k, space.data());
      const auto [v_rows, v_stride] = block(values, v, space.data() + count * n);
      for (int64_t t = 0; t < time; ++t) {
        const auto *row = queries.row(b * q.stride(0) + head * q.stride(1) + t * q.stride(2), n, query);
        dots(row, k_rows, k_stride, count, n, scores);
        soften(scores, bias.row((b * heads + head) * time + t, offsets), static_cast<float>(scale), count);
        const auto at = ((b * time + t) * heads + head) * n;
        auto *target = to.row(at, result);
        blend(scores, v_rows, v_stride, count, n, target);
        to.finish(at, n, target);
      }
    }
  });
  return out.transpose(1, 2);
}

at::Tensor by_aten(const at::Tensor &q, const at::Tensor &k, const at::Tensor &v, const std::optional<at::Tensor> &bias,
                   double scale, double rate) {
  auto scores = at::matmul(scale == 1.0 ? q : q.mul(scale), k.transpose(2, 3));
  auto probs = at::softmax(bias ? scores.add(*bias) : scores, -1, at::kFloat).to(v.scalar_type());
  return at::matmul(rate > 0.0 ? at::dropout(probs, rate, true) : probs, v);
}

at::Tensor attention(at::Tensor q, at::Tensor k, at::Tensor v, const std::optional<at::Tensor> &bias, double scale,
                     double rate) {
  if (q.device().is_cpu() && at::autocast::is_autocast_enabled(at::kCPU)) {
    const auto kind = at::autocast::get_autocast_dtype(at::kCPU);
    q = q.to(kind), k = k.to(kind), v = v.to(kind);
  }
  const bool ours = has_rows(q) && q.scalar_type() == k.scalar_type() && q.scalar_type() == v.scalar_type() &&
                    (!bias || (has_rows(*bias) && bias->dim() == 4)) && q.numel() > 0 && k.numel() > 0;
  if (!ours) {
    return by_aten(q, k, v, bias, scale, rate);
  }
  const std::vector<int64_t> sizes = {q.size(0), q.size(1), q.size(2), k.size(2)};
  const bool graph = at::GradMode::is_enabled() && (q.requires_grad() || k.requires_grad() || v.requires_grad() ||
                                                    (bias && bias->requires_grad()));
  const bool rows = q.stride(3) == 1 && k.stride(3) == 1 && v.stride(3) == 1;
  if (!graph && rate == 0.0 && q.size(2) <= FEW && rows) {
    return look_up(q, k, v, Bias(bias, sizes), scale);
  }
  const auto x = folded(q), y = folded(k), z = folded(v);
  auto out = graph ? Attention::apply(x, y, z, bias, at::IntArrayRef(sizes), scale, rate)
                   : Attention::forward(nullptr, x, y, z, bias, sizes, scale, rate);
  return out.view(q.sizes());
}

} // namespace

extern "C" int ruminate_attention(at::Tensor *q, at::Tensor *k, at::Tensor *v, at::Tensor *bias, double scale,
                                  double rate, at::Tensor **out, char **error) {
  return guarded(error, [&] {
    TORCH_CHECK(q->dim() == 4 && k->dim() == 4 && v->dim() == 4 && q->size(0) == k->size(0) && q->size(1) == k->size(1) &&
                    k->sizes() == v->sizes() && q->size(3) == k->size(3),
                "queries ", q->sizes(), ", keys ", k->sizes(), " and values ", v->sizes(), " do not fit");
    TORCH_CHECK(rate >= 0.0 && rate < 1.0, "the dropout rate is ", rate, ", but must be in [0, 1)");
    *out = new at::Tensor(attention(*q, *k, *v, bias ? std::make_optional(*bias) : std::nullopt, scale, rate));
  });
}
