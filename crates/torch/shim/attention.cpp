// Attention on the CPU: one pass over the scores between the two products, which the backward pass makes again, and in decoding no
// products at all, whose calls would cost more than their arithmetic.

#include "dropout.h"
#include "guard.h"
#include "kernels.h"
#include "kernels/arguments.h"
#include "matmul.h"
#include "shim.h"
#include "vector.h"

#include <ATen/autocast_mode.h>
#include <ATen/ops/dropout.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/softmax.h>
#include <torch/csrc/autograd/custom_function.h>

#include <memory>
#include <optional>

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// Queries of one head up to which nothing is gained by matrix products.
constexpr int64_t FEW = 8;

// What is added to scores [rows, heads, time, keys], wherever it is broadcast from; of consecutive rows several may share one.
class Bias {
public:
  Bias(const std::optional<at::Tensor> &bias, at::IntArrayRef sizes) : heads_(sizes[1]), time_(sizes[2]), keys_(sizes[3]) {
    if (bias) {
      const auto batch = bias->size(0);
      TORCH_CHECK(batch > 0 && sizes[0] % batch == 0, "offsets ", bias->sizes(), " do not fit scores ", sizes);
      each_ = sizes[0] / batch;
      view_ = bias->expand({batch, heads_, time_, keys_});
      if (view_.stride(3) != 1 && keys_ > 1) {
        view_ = view_.contiguous();
      }
      reader_.emplace(view_);
    } else {
      none_.resize(static_cast<size_t>(keys_));
    }
  }

  // Of a row of [rows * heads * time].
  const float *row(int64_t row, float *buffer) const {
    if (!reader_) {
      return none_.data();
    }
    const auto t = row % time_, head = row / time_ % heads_, b = row / time_ / heads_ / each_;
    return reader_->row(b * view_.stride(0) + head * view_.stride(1) + t * view_.stride(2), keys_, buffer);
  }

private:
  int64_t heads_, time_, keys_, each_ = 1;
  at::Tensor view_;
  std::optional<Reader> reader_;
  std::vector<float> none_;
};

// Probabilities [rows * heads, time, keys]; `sizes` says which is which.
at::Tensor probabilities(const at::Tensor &q, const at::Tensor &k, const std::optional<at::Tensor> &offsets,
                         at::IntArrayRef sizes, double scale) {
  const Bias bias(offsets, sizes);
  auto scores = product(q, k.transpose(1, 2));
  const auto n = scores.size(-1);
  const Reader from(scores);
  const Writer to(scores);
  for_rows(scores.numel() / n, n, 2, [&](int64_t row, float *buffer) {
    auto *probs = to.row(row * n, buffer);
    from.row(row * n, n, buffer);
    loops().softmax(probs, bias.row(row, buffer + n), static_cast<float>(scale), n);
    to.finish(row * n, n, probs);
  });
  return scores;
}

// [batch, heads, time, width] as [batch * heads, time, width].
at::Tensor folded(const at::Tensor &x) { return x.reshape({-1, x.size(2), x.size(3)}); }

struct Attention : public Function<Attention> {
  static at::Tensor forward(AutogradContext *ctx, const at::Tensor &q, const at::Tensor &k, const at::Tensor &v,
                            const std::optional<at::Tensor> &bias, at::IntArrayRef sizes, double scale, double rate) {
    const auto probs = probabilities(q, k, bias, sizes, scale);
    const auto seed = rate > 0.0 ? next_seed() : 0;
    auto out = product(rate > 0.0 ? dropped(probs, rate, seed) : probs, v);
    if (ctx) {
      ctx->save_for_backward({q, k, v, bias ? *bias : at::Tensor()});
      ctx->saved_data["sizes"] = sizes.vec();
      ctx->saved_data["scale"] = scale;
      ctx->saved_data["rate"] = rate;
      ctx->saved_data["seed"] = static_cast<int64_t>(seed);
    }
    return out;
  }

  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    once();
    auto saved = ctx->get_saved_variables();
    const auto &q = saved[0], &k = saved[1], &v = saved[2];
    const auto bias = saved[3].defined() ? std::make_optional(saved[3]) : std::nullopt;
    const auto sizes = ctx->saved_data["sizes"].toIntVector();
    const auto scale = ctx->saved_data["scale"].toDouble(), rate = ctx->saved_data["rate"].toDouble();
    const auto seed = static_cast<uint64_t>(ctx->saved_data["seed"].toInt());
    const auto probs = probabilities(q, k, bias, sizes, scale);
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
      loops().softmax_backward(target, kept.row(row * n, n, buffer + n), n);
      to.finish(row * n, n, target);
    });
    at::Tensor grad_bias;
    if (bias && ctx->needs_input_grad(3)) {
      const auto whole = slopes.view(sizes);
      // Summed in the bias's own precision.
      std::vector<int64_t> dims;
      for (int64_t dim = 0; dim < 4; ++dim) {
        if (bias->size(dim) == 1 && whole.size(dim) != 1) {
          dims.push_back(dim);
        }
      }
      grad_bias = dims.empty() ? whole.to(bias->scalar_type()) : whole.sum(dims, true, bias->scalar_type());
    }
    auto grad_q = product(slopes, k), grad_k = product(slopes.transpose(1, 2), q);
    if (scale != 1.0) {
      grad_q.mul_(scale);
      grad_k.mul_(scale);
    }
    return {grad_q, grad_k, grad_v, grad_bias, at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

// Keys and values [batch, heads, keys, width]; of consecutive rows of queries several may share one, and of heads.
struct Part {
  at::Tensor keys, values;
};

// A few queries [rows, time, heads, width] look at the keys of all parts, without gradients; [rows, time, heads * width].
at::Tensor decode_attention(const at::Tensor &q, const std::vector<Part> &parts, const std::optional<at::Tensor> &offsets,
                   double scale) {
  const auto rows = q.size(0), time = q.size(1), heads = q.size(2), n = q.size(3);
  int64_t count = 0;
  bool wide = true;
  std::vector<std::pair<Reader, Reader>> readers;
  for (const auto &[keys, values] : parts) {
    count += keys.size(2);
    wide = wide && keys.scalar_type() == at::kFloat;
    readers.emplace_back(keys, values);
  }
  const Bias bias(offsets, {rows, heads, time, count});
  auto out = at::empty({rows, time, heads * n}, q.options());
  const Reader queries(q);
  const Writer to(out);
  const int64_t grain = std::max<int64_t>(1, (1 << 14) / (time * count * n));
  at::parallel_for(0, rows * heads, grain, [&](int64_t begin, int64_t end) {
    // Scores, bias, query and result, and keys and values that have to be widened.
    const std::unique_ptr<float[]> space(new float[static_cast<size_t>(2 * count + 2 * n + (wide ? 0 : 2 * count * n))]);
    auto *scores = space.get(), *offset = scores + count, *query = offset + count, *result = query + n;
    struct Rows {
      const float *keys, *values;
      int64_t key_stride, value_stride, count;
    };
    std::vector<Rows> seen(parts.size());
    for (int64_t task = begin; task < end; ++task) {
      const auto row = task / heads, head = task % heads;
      auto *free = result + n;
      const auto block = [&](const Reader &reader, const at::Tensor &x) -> std::pair<const float *, int64_t> {
        const auto first = row / (rows / x.size(0)) * x.stride(0) + head / (heads / x.size(1)) * x.stride(1);
        if (x.scalar_type() == at::kFloat) {
          return {reader.row(first, 0, nullptr), x.stride(2)};
        }
        auto *start = free;
        for (int64_t key = 0; key < x.size(2); ++key, free += n) {
          reader.row(first + key * x.stride(2), n, free);
        }
        return {start, n};
      };
      for (size_t i = 0; i < parts.size(); ++i) {
        const auto [keys, key_stride] = block(readers[i].first, parts[i].keys);
        const auto [values, value_stride] = block(readers[i].second, parts[i].values);
        seen[i] = {keys, values, key_stride, value_stride, parts[i].keys.size(2)};
      }
      for (int64_t t = 0; t < time; ++t) {
        const auto *from = queries.row(row * q.stride(0) + t * q.stride(1) + head * q.stride(2), n, query);
        auto *score = scores;
        for (const auto &part : seen) {
          loops().query_key(from, part.keys, part.key_stride, part.count, n, score);
          score += part.count;
        }
        loops().softmax(scores, bias.row(task * time + t, offset), static_cast<float>(scale), count);
        std::fill(result, result + n, 0.0f);
        score = scores;
        for (const auto &part : seen) {
          loops().weighted_values(score, part.values, part.value_stride, part.count, n, result);
          score += part.count;
        }
        to.store((row * time + t) * heads * n + head * n, n, result);
      }
    }
  });
  return out;
}

// The most scores that fit into a block's memory.
constexpr int64_t MOST_SCORES = 8192;

// The same by a kernel: of one or two parts, all of one kind.
bool has_kernel(const at::Tensor &q, const std::vector<Part> &parts, const std::optional<at::Tensor> &bias) {
  const auto fits = [&](const at::Tensor &x) {
    return by_kernel(Kernel::DecodeAttention, x) && x.device() == q.device() && x.stride(-1) == 1;
  };
  int64_t count = 0;
  bool all = fits(q) && q.size(1) <= FEW && parts.size() <= 2;
  for (const auto &[keys, values] : parts) {
    count += keys.size(2);
    all = all && fits(keys) && fits(values) && keys.scalar_type() == q.scalar_type() && values.scalar_type() == q.scalar_type();
  }
  const auto kind = [&] { return bias->scalar_type() == at::kFloat || bias->scalar_type() == q.scalar_type(); };
  return all && count > 0 && count <= MOST_SCORES && (!bias || (by_kernel(Kernel::DecodeAttention, *bias) && kind()));
}

at::Tensor decode_attention_by_kernel(const at::Tensor &q, const std::vector<Part> &parts, const std::optional<at::Tensor> &bias,
                             double scale) {
  const auto rows = q.size(0), time = q.size(1), heads = q.size(2), n = q.size(3);
  auto out = at::empty({rows, time, heads * n}, q.options());
  DecodeAttention all{};
  all.queries = q.const_data_ptr(), all.out = out.mutable_data_ptr();
  all.time = time, all.heads = heads, all.n = n;
  all.query_row = q.stride(0), all.query_time = q.stride(1), all.query_head = q.stride(2);
  all.scale = static_cast<float>(scale);
  Seen *const seen[] = {&all.first, &all.second};
  int64_t count = 0;
  // A part that is not there has no keys.
  all.second.rows_each = all.second.heads_each = 1;
  for (size_t i = 0; i < parts.size(); ++i) {
    const auto &[k, v] = parts[i];
    *seen[i] = {k.const_data_ptr(), v.const_data_ptr(), k.size(2),   rows / k.size(0), heads / k.size(1), k.stride(0),
                k.stride(1),        k.stride(2),        v.stride(0), v.stride(1),      v.stride(2)};
    count += k.size(2);
  }
  std::string function = std::string("decode_attention") + kernel_suffix(q);
  at::Tensor view;
  if (bias) {
    const auto batch = bias->size(0);
    TORCH_CHECK(batch > 0 && rows % batch == 0, "offsets ", bias->sizes(), " do not fit queries ", q.sizes());
    view = bias->expand({batch, heads, time, count});
    view = view.stride(3) == 1 || count == 1 ? view : view.contiguous();
    all.bias = view.const_data_ptr(), all.bias_rows_each = rows / batch;
    all.bias_row = view.stride(0), all.bias_head = view.stride(1), all.bias_time = view.stride(2);
    function += view.scalar_type() == at::kBFloat16 ? "_bf16" : "";
  }
  run_kernel(Kernel::DecodeAttention, function, q, rows * time * heads, static_cast<size_t>(count) * sizeof(float), all);
  return out;
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
  if (by_kernel(Kernel::Attention, q)) {
    const auto offsets = bias ? std::make_optional(bias->to(q.scalar_type())) : std::nullopt;
    return at::scaled_dot_product_attention(q, k, v, offsets, rate, false, scale);
  }
  if (!ours) {
    return by_aten(q, k, v, bias, scale, rate);
  }
  const std::vector<int64_t> sizes = {q.size(0), q.size(1), q.size(2), k.size(2)};
  const bool graph = at::GradMode::is_enabled() && (q.requires_grad() || k.requires_grad() || v.requires_grad() ||
                                                    (bias && bias->requires_grad()));
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

extern "C" int ruminate_decode_attention(at::Tensor *q, at::Tensor *const *keys, at::Tensor *const *values, size_t count,
                                at::Tensor *bias, double scale, at::Tensor **out, char **error) {
  return guarded(error, [&] {
    std::vector<Part> parts;
    TORCH_CHECK(q->dim() == 4 && count > 0, "queries ", q->sizes(), " are not [rows, time, heads, width]");
    // Where this is not the way to do it, there is no result.
    const auto plain = [](const at::Tensor &x) {
      return x.numel() > 0 && !(at::GradMode::is_enabled() && x.requires_grad());
    };
    const auto good = [&](const at::Tensor &x) { return has_rows(x) && x.stride(-1) == 1 && plain(x); };
    bool graph = !plain(*q) || (bias && !plain(*bias));
    bool ours = good(*q) && q->size(1) <= FEW && (!bias || good(*bias));
    for (size_t i = 0; i < count; ++i) {
      const auto &k = *keys[i], &v = *values[i];
      TORCH_CHECK(k.dim() == 4 && k.sizes() == v.sizes() && k.size(3) == q->size(3) && k.size(0) > 0 && k.size(1) > 0 &&
                      q->size(0) % k.size(0) == 0 && q->size(2) % k.size(1) == 0,
                  "queries ", q->sizes(), ", keys ", k.sizes(), " and values ", v.sizes(), " do not fit");
      ours = ours && good(k) && good(v);
      graph = graph || !plain(k) || !plain(v);
      parts.push_back({k, v});
    }
    TORCH_CHECK(!bias || bias->dim() == 4, "offsets must be [rows, heads, time, keys], not ", bias ? bias->sizes() : q->sizes());
    const auto offsets = bias ? std::make_optional(*bias) : std::nullopt;
    if (!graph && has_kernel(*q, parts, offsets)) {
      *out = new at::Tensor(decode_attention_by_kernel(*q, parts, offsets, scale));
      return;
    }
    if (!ours) {
      return;
    }
    *out = new at::Tensor(decode_attention(*q, parts, offsets, scale));
  });
}
