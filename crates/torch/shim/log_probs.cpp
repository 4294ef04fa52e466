// Log-probabilities and entropies of target tokens straight from hidden states, in chunks of rows: the
// [rows, vocabulary] logits never exist as a whole, neither forward nor backward.

#include "guard.h"
#include "kernels.h"
#include "matmul.h"
#include "shim.h"
#include "vector.h"

#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// float32 logits of a chunk, before they are scaled, whatever the precision of the product. One buffer serves all chunks: many large
// allocations in turn would tear holes into the heap, and the memory saved would be lost again.
at::Tensor chunk_logits(at::Tensor &buffer, const at::Tensor &hidden, const at::Tensor &weight) {
  auto logits = buffer.narrow(0, 0, hidden.size(0));
  set_product(logits, hidden, weight.t());
  return logits;
}

at::Tensor chunk_buffer(const at::Tensor &hidden, const at::Tensor &weight, int64_t chunk) {
  return at::empty({std::min(chunk, hidden.size(0)), weight.size(0)}, hidden.options().dtype(at::kFloat));
}

// The part of a vector that belongs to a chunk; null where there is none.
template <typename T> T *from_row(const at::Tensor &x, int64_t row) {
  return x.defined() && x.numel() > 0 ? x.mutable_data_ptr<T>() + row : nullptr;
}

void scaled(at::Tensor &logits, double scale) {
  if (scale != 1.0) {
    logits.mul_(scale);
  }
}

void check_devices(const at::Tensor &hidden, const at::Tensor &weight, const at::Tensor &targets) {
  TORCH_CHECK(targets.device() == hidden.device() && weight.device() == hidden.device(), "hidden, weight and targets are on ",
              hidden.device(), ", ", weight.device(), " and ", targets.device());
}

void check_targets(const int64_t *ids, int64_t n, int64_t vocab) {
  const auto outside = std::find_if(ids, ids + n, [vocab](int64_t id) { return id < 0 || id >= vocab; });
  TORCH_CHECK(outside == ids + n, "target ", *outside, " is outside the vocabulary of ", vocab);
}

// Gradients of states and weight, from those of logits, a chunk after the other.
struct Slopes {
  const at::Tensor &hidden, &weight;
  at::Tensor of_hidden, of_weight;

  Slopes(const at::Tensor &states, const at::Tensor &matrix, bool for_hidden, bool for_weight) : hidden(states), weight(matrix) {
    if (for_hidden) {
      of_hidden = at::empty_like(hidden);
    }
    if (for_weight) {
      of_weight = hidden.size(0) > 0 ? at::empty_like(weight) : at::zeros_like(weight);
    }
  }

  void add(const at::Tensor &logits, int64_t at_row) {
    const auto n = logits.size(0);
    const auto slope = logits.to(weight.scalar_type());
    if (of_hidden.defined()) {
      of_hidden.narrow(0, at_row, n).copy_(product(slope, weight));
    }
    if (of_weight.defined()) {
      // The first chunk sets what the others add to.
      const auto states = hidden.narrow(0, at_row, n).to(weight.scalar_type());
      (at_row == 0 ? set_product : add_product)(of_weight, slope.t(), states);
    }
  }
};

struct ChunkedLogProbs : public Function<ChunkedLogProbs> {
  static variable_list forward(AutogradContext *ctx, const at::Tensor &hidden, const at::Tensor &weight,
                               const at::Tensor &all_targets, double scale, int64_t chunk, bool with_entropy) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto targets = all_targets.contiguous();
    check_devices(hidden, weight, targets);
    const auto rows = hidden.size(0), vocab = weight.size(0);
    const auto options = hidden.options().dtype(at::kFloat);
    auto log_probs = at::empty({rows}, options);
    auto entropy = at::empty({with_entropy ? rows : 0}, options);
    auto buffer = chunk_buffer(hidden, weight, chunk);
    for (int64_t at_row = 0; at_row < rows; at_row += chunk) {
      const auto n = std::min(chunk, rows - at_row);
      auto logits = chunk_logits(buffer, hidden.narrow(0, at_row, n), weight);
      const auto *ids = from_row<int64_t>(targets, at_row);
      auto *chosen_log_probs = from_row<float>(log_probs, at_row), *entropies = from_row<float>(entropy, at_row);
      if (by_kernel(Kernel::LogProbs, logits)) {
        scaled(logits, scale);
        run_kernel(Kernel::LogProbs, "log_probs", logits, n, 0, logits.mutable_data_ptr(), ids, vocab, chosen_log_probs,
                   entropies);
        continue;
      }
      if (logits.is_cpu()) {
        check_targets(ids, n, vocab);
        const auto *from = logits.const_data_ptr<float>();
        const auto factor = static_cast<float>(scale);
        for_rows(n, vocab, 0, [&](int64_t row, float *) {
          const auto *own = from + row * vocab;
          const auto all = loops().log_sum_exp(own, factor, vocab, with_entropy);
          chosen_log_probs[row] = own[ids[row]] * factor - all.largest - all.log_sum;
          if (with_entropy) {
            entropies[row] = all.entropy;
          }
        });
        continue;
      }
      scaled(logits, scale);
      // The largest logit becomes 0, so that no exponential overflows.
      logits.sub_(logits.amax({1}, true));
      auto chosen = logits.gather(1, targets.narrow(0, at_row, n).unsqueeze(1)).squeeze(1);
      auto weighted = with_entropy ? logits.clone() : at::Tensor();
      auto sum = logits.exp_().sum(1);
      auto log_sum = sum.log();
      log_probs.narrow(0, at_row, n).copy_(chosen.sub_(log_sum));
      if (with_entropy) {
        // -sum p log p, with log p = logit - log_sum and p = exp(logit) / sum
        entropy.narrow(0, at_row, n).copy_(log_sum.sub_(weighted.mul_(logits).sum(1).div_(sum)));
      }
    }
    ctx->save_for_backward({hidden, weight, targets, entropy});
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["chunk"] = chunk;
    return {log_probs, entropy};
  }

  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    auto saved = ctx->get_saved_variables();
    const auto &hidden = saved[0], &weight = saved[1], &targets = saved[2], &entropy = saved[3];
    const auto scale = ctx->saved_data["scale"].toDouble();
    const auto chunk = ctx->saved_data["chunk"].toInt();
    const auto rows = hidden.size(0), vocab = weight.size(0);
    const bool for_entropy = entropy.numel() > 0 && grads[1].defined();
    Slopes all(hidden, weight, ctx->needs_input_grad(0), ctx->needs_input_grad(1));
    auto buffer = chunk_buffer(hidden, weight, chunk);
    // Where loops of our own run, autograd would see none of what they do.
    if (buffer.is_cpu()) {
      once();
    }
    const bool kernel = by_kernel(Kernel::LogProbs, buffer) && by_kernel(Kernel::LogProbs, weight);
    const auto vector = [](const at::Tensor &grad) { return grad.defined() ? grad.to(at::kFloat).contiguous() : grad; };
    const auto grad_log_probs = vector(grads[0]), grad_entropy = vector(for_entropy ? grads[1] : at::Tensor());
    for (int64_t at_row = 0; at_row < rows; at_row += chunk) {
      const auto n = std::min(chunk, rows - at_row);
      auto states = hidden.narrow(0, at_row, n);
      auto p = chunk_logits(buffer, states, weight);
      const auto *ids = from_row<int64_t>(targets, at_row);
      const auto *own_grads = from_row<float>(grad_log_probs, at_row), *entropy_grads = from_row<float>(grad_entropy, at_row);
      if (p.is_cpu() && !kernel) {
        auto *to = p.mutable_data_ptr<float>();
        const auto factor = static_cast<float>(scale);
        for_rows(n, vocab, 0, [&](int64_t row, float *) {
          auto *own = to + row * vocab;
          const float grad = own_grads ? own_grads[row] * factor : 0.0f;
          const auto all = loops().log_sum_exp(own, factor, vocab, for_entropy);
          loops().log_sum_exp_backward(own, factor, vocab, &all, grad, entropy_grads ? entropy_grads[row] * factor : 0.0f);
          own[ids[row]] += grad;
        });
        all.add(p, at_row);
        continue;
      }
      scaled(p, scale);
      at::Tensor slope;
      if (kernel) {
        slope = weight.scalar_type() == at::kFloat ? p : at::empty(p.sizes(), weight.options());
        run_kernel(Kernel::LogProbs, std::string("log_probs_slopes") + kernel_suffix(slope), p, n, 0, p.mutable_data_ptr(), ids, vocab,
                   own_grads, entropy_grads, from_row<float>(entropy, at_row), static_cast<float>(scale), slope.mutable_data_ptr());
        all.add(slope, at_row);
        continue;
      }
      if (!for_entropy) {
        p.sub_(p.amax({1}, true)).exp_();
        p.div_(p.sum(1, true));
      } else {
        auto log_p = p.log_softmax(1);
        p.copy_(log_p).exp_();
        // d entropy / d logit_j = -p_j (log p_j + entropy)
        auto shift = log_p.add_(entropy.narrow(0, at_row, n).unsqueeze(1)).mul_(p);
        slope = shift.mul_(grad_entropy.narrow(0, at_row, n).unsqueeze(1)).neg_();
      }
      if (grad_log_probs.defined()) {
        // d log p(target) / d logit_j = [j = target] - p_j
        auto grad = grad_log_probs.narrow(0, at_row, n).unsqueeze(1);
        p.mul_(grad.neg());
        p.scatter_add_(1, targets.narrow(0, at_row, n).unsqueeze(1), grad);
        slope = slope.defined() ? slope.add_(p) : p;
      }
      if (!slope.defined()) {
        slope = at::zeros_like(p);
      }
      if (scale != 1.0) {
        slope.mul_(scale);
      }
      all.add(slope, at_row);
    }
    return {all.of_hidden, all.of_weight, at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

// Autocast rounds the products of a forward pass, but not those of gradients.
class WithoutAutocast {
public:
  explicit WithoutAutocast(at::DeviceType device) : device_(device), was_(at::autocast::is_autocast_enabled(device)) {
    at::autocast::set_autocast_enabled(device_, false);
  }
  ~WithoutAutocast() { at::autocast::set_autocast_enabled(device_, was_); }
  WithoutAutocast(const WithoutAutocast &) = delete;

private:
  at::DeviceType device_;
  bool was_;
};

// The sum of -log p(target). All targets count the same, so gradients are known up to a factor while the logits exist, which then need not
// be made again.
struct CrossEntropy : public Function<CrossEntropy> {
  static at::Tensor forward(AutogradContext *ctx, const at::Tensor &hidden, const at::Tensor &weight, const at::Tensor &all_targets,
                            double scale, int64_t chunk, bool for_hidden, bool for_weight) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto targets = all_targets.contiguous();
    check_devices(hidden, weight, targets);
    const auto rows = hidden.size(0), vocab = weight.size(0);
    const bool learns = for_hidden || for_weight;
    const auto options = hidden.options().dtype(at::kFloat);
    auto losses = at::empty({rows}, options);
    Slopes all(hidden, weight, for_hidden, for_weight);
    auto buffer = chunk_buffer(hidden, weight, chunk);
    const bool kernel = by_kernel(Kernel::LogProbs, buffer) && by_kernel(Kernel::LogProbs, weight);
    for (int64_t at_row = 0; at_row < rows; at_row += chunk) {
      const auto n = std::min(chunk, rows - at_row);
      auto logits = chunk_logits(buffer, hidden.narrow(0, at_row, n), weight);
      const WithoutAutocast plain(hidden.device().type());
      auto own_losses = losses.narrow(0, at_row, n);
      const auto own_targets = targets.narrow(0, at_row, n);
      const auto *ids = own_targets.const_data_ptr<int64_t>();
      auto *loss = own_losses.mutable_data_ptr<float>();
      if (kernel) {
        scaled(logits, scale);
        run_kernel(Kernel::LogProbs, "log_probs", logits, n, 0, logits.mutable_data_ptr(), ids, vocab, loss,
                   static_cast<float *>(nullptr));
        if (learns) {
          const auto minus = at::full({n}, -1.0, options);
          auto slope = weight.scalar_type() == at::kFloat ? logits : at::empty(logits.sizes(), weight.options());
          run_kernel(Kernel::LogProbs, std::string("log_probs_slopes") + kernel_suffix(slope), logits, n, 0, logits.mutable_data_ptr(),
                     ids, vocab, minus.mutable_data_ptr<float>(), static_cast<float *>(nullptr), static_cast<float *>(nullptr),
                     static_cast<float>(scale), slope.mutable_data_ptr());
          all.add(slope, at_row);
        }
        own_losses.neg_();
        continue;
      }
      if (logits.is_cpu()) {
        check_targets(ids, n, vocab);
        auto *to = logits.mutable_data_ptr<float>();
        const auto factor = static_cast<float>(scale);
        for_rows(n, vocab, 0, [&](int64_t row, float *) {
          auto *own = to + row * vocab;
          const auto found = loops().log_sum_exp(own, factor, vocab, false);
          loss[row] = found.largest + found.log_sum - own[ids[row]] * factor;
          if (learns) {
            loops().log_sum_exp_backward(own, factor, vocab, &found, -factor, 0.0f);
            own[ids[row]] -= factor;
          }
        });
      } else {
        scaled(logits, scale);
        const auto column = own_targets.unsqueeze(1);
        const auto log_sum = logits.logsumexp({1}, true);
        own_losses.copy_(log_sum.sub(logits.gather(1, column)).squeeze(1));
        if (learns) {
          logits.sub_(log_sum).exp_();
          logits.scatter_add_(1, column, at::full({n, 1}, -1.0, options));
          scaled(logits, scale);
        }
      }
      if (learns) {
        all.add(logits, at_row);
      }
    }
    if (ctx) {
      ctx->save_for_backward({all.of_hidden, all.of_weight});
    }
    return losses.sum();
  }

  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    once();
    auto saved = ctx->get_saved_variables();
    for (auto &grad : saved) {
      if (grad.defined()) {
        // In place: a second backward pass is refused, because these have changed.
        grad.mul_(grads[0]);
      }
    }
    saved.resize(7);
    return saved;
  }
};

} // namespace

extern "C" int ruminate_log_probs(at::Tensor *hidden, at::Tensor *weight, at::Tensor *targets, double scale,
                                  int64_t chunk, int with_entropy, at::Tensor **log_probs, at::Tensor **entropy,
                                  char **error) {
  return guarded(error, [&] {
    auto out = ChunkedLogProbs::apply(*hidden, *weight, *targets, scale, chunk, with_entropy != 0);
    *log_probs = new at::Tensor(out[0]);
    *entropy = new at::Tensor(out[1]);
  });
}

extern "C" int ruminate_cross_entropy(at::Tensor *hidden, at::Tensor *weight, at::Tensor *targets, double scale, int64_t chunk,
                                      at::Tensor **out, char **error) {
  return guarded(error, [&] {
    const bool graph = at::GradMode::is_enabled();
    const bool for_hidden = graph && hidden->requires_grad(), for_weight = graph && weight->requires_grad();
    *out = new at::Tensor(for_hidden || for_weight
                              ? CrossEntropy::apply(*hidden, *weight, *targets, scale, chunk, for_hidden, for_weight)
                              : CrossEntropy::forward(nullptr, *hidden, *weight, *targets, scale, chunk, false, false));
  });
}
