// Log-probabilities and entropies of target tokens straight from hidden states, in chunks of rows: the
// [rows, vocabulary] logits never exist as a whole, neither forward nor backward.

#include "guard.h"
#include "kernels.h"
#include "matmul.h"
#include "shim.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// float32 logits of a chunk, whatever the precision of the product. One buffer serves all chunks: many large
// allocations in turn would tear holes into the heap, and the memory saved would be lost again.
at::Tensor chunk_logits(at::Tensor &buffer, const at::Tensor &hidden, const at::Tensor &weight, double scale) {
  auto logits = buffer.narrow(0, 0, hidden.size(0));
  set_product(logits, hidden, weight.t());
  return scale == 1.0 ? logits : logits.mul_(scale);
}

at::Tensor chunk_buffer(const at::Tensor &hidden, const at::Tensor &weight, int64_t chunk) {
  return at::empty({std::min(chunk, hidden.size(0)), weight.size(0)}, hidden.options().dtype(at::kFloat));
}

// The part of a vector that belongs to a chunk; null where there is none.
template <typename T> T *from_row(const at::Tensor &x, int64_t row) {
  return x.defined() && x.numel() > 0 ? x.mutable_data_ptr<T>() + row : nullptr;
}

struct ChunkedLogProbs : public Function<ChunkedLogProbs> {
  static variable_list forward(AutogradContext *ctx, const at::Tensor &hidden, const at::Tensor &weight,
                               const at::Tensor &all_targets, double scale, int64_t chunk, bool with_entropy) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto targets = all_targets.contiguous();
    const auto rows = hidden.size(0);
    const auto options = hidden.options().dtype(at::kFloat);
    auto log_probs = at::empty({rows}, options);
    auto entropy = at::empty({with_entropy ? rows : 0}, options);
    auto buffer = chunk_buffer(hidden, weight, chunk);
    for (int64_t at_row = 0; at_row < rows; at_row += chunk) {
      const auto n = std::min(chunk, rows - at_row);
      auto logits = chunk_logits(buffer, hidden.narrow(0, at_row, n), weight, scale);
      if (by_kernel(Kernel::LogProbs, logits)) {
        run_kernel(Kernel::LogProbs, "log_probs", logits, n, 0, logits.mutable_data_ptr(), from_row<int64_t>(targets, at_row),
                   logits.size(1), from_row<float>(log_probs, at_row), from_row<float>(entropy, at_row));
        continue;
      }
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
    const auto rows = hidden.size(0);
    const bool for_entropy = entropy.numel() > 0 && grads[1].defined();
    const bool for_hidden = ctx->needs_input_grad(0), for_weight = ctx->needs_input_grad(1);
    at::Tensor grad_hidden, grad_weight;
    if (for_hidden) {
      grad_hidden = at::empty_like(hidden);
    }
    if (for_weight) {
      grad_weight = at::zeros_like(weight);
    }
    auto buffer = chunk_buffer(hidden, weight, chunk);
    // From the gradient of a chunk's logits to those of states and weight.
    const auto add_slopes = [&](const at::Tensor &slope, int64_t at_row) {
      const auto n = slope.size(0);
      if (for_hidden) {
        grad_hidden.narrow(0, at_row, n).copy_(product(slope, weight));
      }
      if (for_weight) {
        add_product(grad_weight, slope.t(), hidden.narrow(0, at_row, n).to(weight.scalar_type()));
      }
    };
    const bool kernel = by_kernel(Kernel::LogProbs, buffer) && by_kernel(Kernel::LogProbs, weight);
    const auto vector = [](const at::Tensor &grad) { return grad.defined() ? grad.to(at::kFloat).contiguous() : grad; };
    const auto grad_log_probs = vector(grads[0]), grad_entropy = vector(for_entropy ? grads[1] : at::Tensor());
    for (int64_t at_row = 0; at_row < rows; at_row += chunk) {
      const auto n = std::min(chunk, rows - at_row);
      auto states = hidden.narrow(0, at_row, n);
      auto p = chunk_logits(buffer, states, weight, scale);
      at::Tensor slope;
      if (kernel) {
        slope = weight.scalar_type() == at::kFloat ? p : at::empty(p.sizes(), weight.options());
        run_kernel(Kernel::LogProbs, std::string("log_probs_slopes") + kernel_suffix(slope), p, n, 0, p.mutable_data_ptr(),
                   from_row<int64_t>(targets, at_row), p.size(1), from_row<float>(grad_log_probs, at_row),
                   from_row<float>(grad_entropy, at_row), from_row<float>(entropy, at_row), static_cast<float>(scale),
                   slope.mutable_data_ptr());
        add_slopes(slope, at_row);
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
      add_slopes(slope.to(weight.scalar_type()), at_row);
    }
    return {grad_hidden, grad_weight, at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
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
