// Log-probabilities and entropies of target tokens straight from hidden states, in chunks of rows: the
// [rows, vocabulary] logits never exist as a whole, neither forward nor backward.

#include "guard.h"
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

// float32 logits of a chunk, whatever the precision of the product.
at::Tensor chunk_logits(const at::Tensor &hidden, const at::Tensor &weight, double scale) {
  auto logits = product(hidden, weight.t()).to(at::kFloat);
  return scale == 1.0 ? logits : logits.mul_(scale);
}

struct ChunkedLogProbs : public Function<ChunkedLogProbs> {
  static variable_list forward(AutogradContext *ctx, const at::Tensor &hidden, const at::Tensor &weight,
                               const at::Tensor &targets, double scale, int64_t chunk, bool with_entropy) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto rows = hidden.size(0);
    const auto options = hidden.options().dtype(at::kFloat);
    auto log_probs = at::empty({rows}, options);
    auto log_sums = at::empty({rows}, options);
    auto entropy = at::empty({with_entropy ? rows : 0}, options);
    for (int64_t at_row = 0; at_row < rows; at_row += chunk) {
      const auto n = std::min(chunk, rows - at_row);
      auto logits = chunk_logits(hidden.narrow(0, at_row, n), weight, scale);
      auto log_sum = logits.logsumexp({1});
      log_sums.narrow(0, at_row, n).copy_(log_sum);
      auto chosen = logits.gather(1, targets.narrow(0, at_row, n).unsqueeze(1)).squeeze(1);
      log_probs.narrow(0, at_row, n).copy_(chosen.sub_(log_sum));
      if (with_entropy) {
        logits.sub_(log_sum.unsqueeze(1));
        entropy.narrow(0, at_row, n).copy_(logits.exp().mul_(logits).sum(1).neg_());
      }
    }
    ctx->save_for_backward({hidden, weight, targets, log_sums, entropy});
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["chunk"] = chunk;
    return {log_probs, entropy};
  }

  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    auto saved = ctx->get_saved_variables();
    const auto &hidden = saved[0], &weight = saved[1], &targets = saved[2], &log_sums = saved[3],
               &entropy = saved[4];
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
    for (int64_t at_row = 0; at_row < rows; at_row += chunk) {
      const auto n = std::min(chunk, rows - at_row);
      auto states = hidden.narrow(0, at_row, n);
      auto log_p = chunk_logits(states, weight, scale).sub_(log_sums.narrow(0, at_row, n).unsqueeze(1));
      auto p = log_p.exp();
      at::Tensor slope;
      if (for_entropy) {
        // d entropy / d logit_j = -p_j (log p_j + entropy)
        auto shift = log_p.add_(entropy.narrow(0, at_row, n).unsqueeze(1)).mul_(p);
        slope = shift.mul_(grads[1].narrow(0, at_row, n).unsqueeze(1)).neg_();
      }
      if (grads[0].defined()) {
        // d log p(target) / d logit_j = [j = target] - p_j
        auto grad = grads[0].narrow(0, at_row, n).to(at::kFloat).unsqueeze(1);
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
      slope = slope.to(weight.scalar_type());
      if (for_hidden) {
        grad_hidden.narrow(0, at_row, n).copy_(product(slope, weight));
      }
      if (for_weight) {
        add_product(grad_weight, slope.t(), states.to(weight.scalar_type()));
      }
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
