// Root-mean-square norm in one pass forward and one backward, where libtorch on the CPU makes a dozen.

#include "guard.h"
#include "matmul.h"
#include "shim.h"
#include "vector.h"

#include <ATen/autocast_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/rms_norm.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// Rows whose gradients for the weight are summed before others.
constexpr int64_t BLOCK = 64;

struct RmsNorm : public Function<RmsNorm> {
  static at::Tensor run(const at::Tensor &x, const at::Tensor &weight, double eps, at::Tensor &scales) {
    const auto n = x.size(-1), rows = x.numel() / n;
    auto out = at::empty_like(x);
    const Reader from(x);
    const Writer to(out);
    const auto wide = weight.to(at::kFloat);
    const auto *weights = wide.const_data_ptr<float>();
    auto *kept = scales.defined() ? scales.mutable_data_ptr<float>() : nullptr;
    for_rows(rows, n, 2, [&](int64_t row, float *buffer) {
      auto *target = to.row(row * n, buffer + n);
      const auto scale = loops().rms_norm(from.row(row * n, n, buffer), weights, target, n, static_cast<float>(eps));
      to.finish(row * n, n, target);
      if (kept) {
        kept[row] = scale;
      }
    });
    return out;
  }

  static at::Tensor forward(AutogradContext *ctx, const at::Tensor &x, const at::Tensor &weight, double eps) {
    auto scales = at::empty({x.numel() / x.size(-1)}, x.options().dtype(at::kFloat));
    auto out = run(x, weight, eps, scales);
    ctx->save_for_backward({x, weight, scales});
    return out;
  }

  // Gradients of x and of the weight.
  static std::pair<at::Tensor, at::Tensor> slopes(const at::Tensor &out_grad, const at::Tensor &x, const at::Tensor &weight,
                                                  const at::Tensor &scales) {
    const auto grad = out_grad.to(x.scalar_type()).contiguous();
    const auto n = x.size(-1), rows = x.numel() / n, blocks = (rows + BLOCK - 1) / BLOCK;
    auto grad_x = at::empty_like(x);
    auto sums = at::zeros({blocks, n}, scales.options());
    const auto wide = weight.to(at::kFloat);
    const Reader given(grad), from(x);
    const Writer to(grad_x);
    const auto *weights = wide.const_data_ptr<float>(), *scale = scales.const_data_ptr<float>();
    auto *sum = sums.mutable_data_ptr<float>();
    const auto work = [&](int64_t block, float *buffer) {
      for (int64_t row = block * BLOCK; row < std::min(rows, (block + 1) * BLOCK); ++row) {
        auto *target = to.row(row * n, buffer + 2 * n);
        loops().rms_norm_backward(given.row(row * n, n, buffer), from.row(row * n, n, buffer + n), weights, scale[row], target,
              sum + block * n, n);
        to.finish(row * n, n, target);
      }
    };
    for_rows(blocks, n, 3, work, BLOCK);
    return {grad_x, sums.sum(0).to(weight.scalar_type())};
  }

  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    once();
    auto saved = ctx->get_saved_variables();
    const auto [grad_x, grad_weight] = slopes(grads[0], saved[0], saved[1], saved[2]);
    return {grad_x, grad_weight, at::Tensor()};
  }
};

// The product of what is normed, which is not kept for the backward pass, but made again.
struct NormedLinear : public Function<NormedLinear> {
  static at::Tensor forward(AutogradContext *ctx, const at::Tensor &x, const at::Tensor &norm, at::TensorList weights,
                            double eps) {
    auto scales = at::empty({x.numel() / x.size(-1)}, x.options().dtype(at::kFloat));
    const auto normed = RmsNorm::run(x, norm, eps, scales).to(weights[0].scalar_type());
    variable_list saved(weights.begin(), weights.end());
    saved.insert(saved.end(), {x, norm, scales});
    ctx->save_for_backward(saved);
    ctx->saved_data["eps"] = eps;
    return joined_product(normed, weights);
  }

  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    once();
    auto weights = ctx->get_saved_variables();
    const auto scales = weights.back(), norm = weights[weights.size() - 2], x = weights[weights.size() - 3];
    weights.resize(weights.size() - 3);
    const bool for_x = ctx->needs_input_grad(0), for_norm = ctx->needs_input_grad(1);
    bool any = false;
    for (size_t i = 0; i < weights.size(); ++i) {
      any = any || ctx->needs_input_grad(i + 2);
    }
    at::Tensor none;
    const auto normed = RmsNorm::run(x, norm, ctx->saved_data["eps"].toDouble(), none).to(weights[0].scalar_type());
    auto out = joined_slopes(grads[0], normed, weights, for_x || for_norm, any);
    at::Tensor grad_norm;
    if (for_x || for_norm) {
      std::tie(out[0], grad_norm) = RmsNorm::slopes(out[0], x, norm, scales);
    }
    out.insert(out.begin() + 1, grad_norm);
    out.emplace_back(); // eps
    return out;
  }
};

bool takes(const at::Tensor &x, const at::Tensor &weight) {
  return has_rows(x) && has_rows(weight) && x.dim() > 0 && x.numel() > 0 && weight.dim() == 1 && weight.size(0) == x.size(-1);
}

at::Tensor rms_norm(const at::Tensor &x, const at::Tensor &weight, double eps) {
  if (!takes(x, weight)) {
    return at::rms_norm(x, weight.sizes(), weight, eps);
  }
  const auto input = x.contiguous();
  at::Tensor none;
  const bool graph = at::GradMode::is_enabled() && (x.requires_grad() || weight.requires_grad());
  return graph ? RmsNorm::apply(input, weight, eps) : RmsNorm::run(input, weight, eps, none);
}

} // namespace

extern "C" int ruminate_rms_norm(at::Tensor *x, at::Tensor *weight, double eps, at::Tensor **out, char **error) {
  return guarded(error, [&] { *out = new at::Tensor(rms_norm(*x, *weight, eps)); });
}

extern "C" int ruminate_fused_linear(at::Tensor *x, at::Tensor *norm, double eps, at::Tensor *const *weights, size_t count,
                                     at::Tensor **out, char **error) {
  return guarded(error, [&] {
    TORCH_CHECK(count > 0, "there is no weight");
    std::vector<at::Tensor> all;
    bool graph = x->requires_grad() || (norm && norm->requires_grad());
    for (size_t i = 0; i < count; ++i) {
      all.push_back(as_autocast(*weights[i]));
      TORCH_CHECK(all[i].dim() == 2 && x->dim() > 0 && all[i].size(1) == x->size(-1), "x ", x->sizes(), " and weight ",
                  all[i].sizes(), " do not fit; they should be [..., k] and [n, k]");
      TORCH_CHECK(all[i].scalar_type() == all[0].scalar_type(), "weights of kinds ", all[0].scalar_type(), " and ",
                  all[i].scalar_type(), " do not go together");
      graph = graph || all[i].requires_grad();
    }
    // Only autocast changes the kind of what is normed.
    const bool fits = all[0].scalar_type() == x->scalar_type() || at::autocast::is_autocast_enabled(x->device().type());
    if (norm && fits && takes(*x, *norm) && graph && at::GradMode::is_enabled()) {
      *out = new at::Tensor(NormedLinear::apply(x->contiguous(), *norm, at::TensorList(all), eps));
      return;
    }
    *out = new at::Tensor(joined_linear(as_autocast(norm ? rms_norm(*x, *norm, eps) : *x), all));
  });
}
