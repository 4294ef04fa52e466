// Matrix products on the CPU. For float32 libtorch always calls MKL, which on processors with AVX-512 of other makers than Intel runs
// kernels of half the vector width; oneDNN, which libtorch holds too, generates code for the processor that it finds.

#include "matmul.h"

#include "cpu/processor.h"
#include "guard.h"
#include "shim.h"

#include <ATen/autocast_mode.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mm.h>
#include <torch/csrc/autograd/custom_function.h>

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// Multiplications from which on oneDNN is faster; below, its calls cost more than they save.
constexpr int64_t WORTHWHILE = 1 << 22;

bool plain_float(const at::Tensor &x) {
  return x.device().is_cpu() && x.scalar_type() == at::kFloat && x.layout() == at::kStrided;
}

bool needs_graph(const at::Tensor &a, const at::Tensor &b) {
  return at::GradMode::is_enabled() && (a.requires_grad() || b.requires_grad());
}

// Whether oneDNN multiplies.
bool worthwhile(const at::Tensor &a, const at::Tensor &b) {
  return plain_float(a) && plain_float(b) && !at::autocast::is_autocast_enabled(at::kCPU) &&
         a.numel() * b.size(-1) >= WORTHWHILE &&
         prefers_onednn(std::max<int64_t>(a.dim() < 2 ? 1 : a.size(-2), b.size(-1)));
}

// MKL sums the terms of a narrow result one after the other on some processors (all of them in AVX2 code). Of many terms that loses
// digits (2e-4 of the largest element for 50,000), and not the same ones for every shape, so that rows would depend on their batch. Such
// products are made in stretches.
constexpr int64_t LONG = 1 << 12, STRETCH = 1 << 10, NARROW = 32;

bool is_long(int64_t m, int64_t k, int64_t n) { return k > LONG && std::min(m, n) < NARROW; }

bool is_long(const at::Tensor &a, const at::Tensor &b) {
  return plain_float(a) && plain_float(b) && a.dim() == 2 && b.dim() == 2 && !at::autocast::is_autocast_enabled(at::kCPU) &&
         is_long(a.size(0), a.size(1), b.size(1));
}

// out += a b, or out = a b.
void multiply_in_stretches(at::Tensor &out, const at::Tensor &a, const at::Tensor &b, bool add) {
  const auto k = a.size(1), count = k / STRETCH, whole = count * STRETCH;
  // Stretches become a batch; what is left is not added by its product itself, which would go on with the sum so far.
  auto sum = at::bmm(a.narrow(1, 0, whole).unflatten(1, {count, STRETCH}).transpose(0, 1),
                     b.narrow(0, 0, whole).unflatten(0, {count, STRETCH}))
                 .sum(0);
  if (whole < k) {
    sum.add_(at::mm(a.narrow(1, whole, k - whole), b.narrow(0, whole, k - whole)));
  }
  if (add) {
    out.add_(sum);
  } else {
    out.copy_(sum);
  }
}

// Rows of the last dimension.
at::Tensor flat(const at::Tensor &x) { return x.reshape({-1, x.size(-1)}); }

at::Tensor linear_product(const at::Tensor &x, const at::Tensor &weight) {
  auto shape = x.sizes().vec();
  shape.back() = weight.size(0);
  return product(flat(x), weight.t()).view(shape);
}

struct Linear : public Function<Linear> {
  static at::Tensor forward(AutogradContext *ctx, const at::Tensor &x, const at::Tensor &weight) {
    ctx->save_for_backward({x, weight});
    return linear_product(x, weight);
  }

  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    auto saved = ctx->get_saved_variables();
    const auto &x = saved[0], &weight = saved[1];
    auto grad = flat(grads[0]);
    at::Tensor grad_x, grad_weight;
    if (ctx->needs_input_grad(0)) {
      grad_x = product(grad, weight).view_as(x);
    }
    if (ctx->needs_input_grad(1)) {
      grad_weight = product(grad.t(), flat(x));
    }
    return {grad_x, grad_weight};
  }
};

at::Tensor joined(at::TensorList weights) { return weights.size() == 1 ? weights[0] : at::cat(weights); }

struct Joined : public Function<Joined> {
  static at::Tensor forward(AutogradContext *ctx, const at::Tensor &x, at::TensorList weights) {
    variable_list saved(weights.begin(), weights.end());
    saved.push_back(x);
    ctx->save_for_backward(saved);
    return joined_product(x, weights);
  }

  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    auto weights = ctx->get_saved_variables();
    const auto x = weights.back();
    weights.pop_back();
    bool any = false;
    for (size_t i = 0; i < weights.size(); ++i) {
      any = any || ctx->needs_input_grad(i + 1);
    }
    return joined_slopes(grads[0], x, weights, ctx->needs_input_grad(0), any);
  }
};

struct Product : public Function<Product> {
  static at::Tensor forward(AutogradContext *ctx, const at::Tensor &a, const at::Tensor &b) {
    ctx->save_for_backward({a, b});
    return product(a, b);
  }

  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    auto saved = ctx->get_saved_variables();
    const auto &a = saved[0], &b = saved[1];
    at::Tensor grad_a, grad_b;
    if (ctx->needs_input_grad(0)) {
      grad_a = product(grads[0], b.transpose(-2, -1));
    }
    if (ctx->needs_input_grad(1)) {
      grad_b = product(a.transpose(-2, -1), grads[0]);
    }
    return {grad_a, grad_b};
  }
};

// Forward, or for one of the gradients.
bool has_long_product(const at::Tensor &x, const at::Tensor &weight) {
  if (!plain_float(x) || !plain_float(weight) || at::autocast::is_autocast_enabled(at::kCPU) || x.dim() == 0 || x.numel() == 0) {
    return false;
  }
  const auto k = x.size(-1), m = x.numel() / k, n = weight.size(0);
  return k == weight.size(1) && (is_long(m, k, n) || is_long(m, n, k) || is_long(n, m, k));
}

at::Tensor linear_of(const at::Tensor &x, const at::Tensor &weight) {
  if (weight.dim() != 2 || !(worthwhile(x, weight.t()) || has_long_product(x, weight))) {
    return at::linear(x, weight);
  }
  return needs_graph(x, weight) ? Linear::apply(x, weight) : linear_product(x, weight);
}

// [..., m, n] as [batch, m, n]; of a transposed matrix the original is folded, so that it is not copied in vain.
at::Tensor folded(const at::Tensor &x) {
  if (x.stride(-1) != 1 && x.stride(-2) == 1) {
    return folded(x.transpose(-2, -1)).transpose(-2, -1);
  }
  return x.reshape({-1, x.size(-2), x.size(-1)});
}

at::Tensor matmul_of(const at::Tensor &a, const at::Tensor &b) {
  const bool same = a.dim() == b.dim() && a.dim() >= 3 && a.sizes().slice(0, a.dim() - 2) == b.sizes().slice(0, b.dim() - 2);
  if (!same || !worthwhile(a, b)) {
    return at::matmul(a, b);
  }
  auto shape = a.sizes().vec();
  shape.back() = b.size(-1);
  auto x = folded(a), y = folded(b);
  return (needs_graph(a, b) ? Product::apply(x, y) : product(x, y)).view(shape);
}

} // namespace

at::Tensor product(const at::Tensor &a, const at::Tensor &b) {
  // With a graph to record (a second derivative), libtorch's own product records it.
  const bool stretches = is_long(a, b);
  if (!(worthwhile(a, b) || stretches) || needs_graph(a, b)) {
    return at::matmul(a, b);
  }
  auto shape = a.sizes().vec();
  shape.back() = b.size(-1);
  auto out = at::empty(shape, a.options());
  if (stretches) {
    multiply_in_stretches(out, a, b, false);
  } else {
    multiply_by_onednn(a, b, out, 0);
  }
  return out;
}

void set_product(at::Tensor &out, const at::Tensor &a, const at::Tensor &b) {
  if (is_long(a, b) && plain_float(out) && !needs_graph(a, b)) {
    multiply_in_stretches(out, a, b, false);
  } else if (worthwhile(a, b) && plain_float(out)) {
    multiply_by_onednn(a, b, out, 0);
  } else if (a.scalar_type() == out.scalar_type() && b.scalar_type() == out.scalar_type() &&
             !at::autocast::is_autocast_enabled(out.device().type()) && !needs_graph(a, b)) {
    at::mm_out(out, a, b);
  } else {
    out.copy_(at::matmul(a, b));
  }
}

void add_product(at::Tensor &out, const at::Tensor &a, const at::Tensor &b) {
  if (is_long(a, b) && plain_float(out)) {
    multiply_in_stretches(out, a, b, true);
  } else if (worthwhile(a, b) && plain_float(out)) {
    multiply_by_onednn(a, b, out, 1);
  } else {
    out.addmm_(a, b);
  }
}

at::Tensor as_autocast(const at::Tensor &x) {
  const auto device = x.device().type();
  return at::autocast::is_autocast_enabled(device)
             ? at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), x, device)
             : x;
}

at::Tensor joined_product(const at::Tensor &x, at::TensorList weights) { return linear_product(x, joined(weights)); }

std::vector<at::Tensor> joined_slopes(const at::Tensor &grad, const at::Tensor &x, at::TensorList weights, bool for_x,
                                      bool for_weights) {
  std::vector<at::Tensor> out(weights.size() + 1);
  if (for_x) {
    out[0] = product(flat(grad), joined(weights)).view_as(x);
  }
  if (for_weights) {
    const auto all = product(flat(grad).t(), flat(x));
    int64_t row = 0;
    for (size_t i = 0; i < weights.size(); ++i) {
      out[i + 1] = all.narrow(0, row, weights[i].size(0));
      row += weights[i].size(0);
    }
  }
  return out;
}

at::Tensor joined_linear(const at::Tensor &x, const std::vector<at::Tensor> &weights) {
  bool graph = x.requires_grad();
  for (const auto &weight : weights) {
    graph = graph || weight.requires_grad();
  }
  return graph && at::GradMode::is_enabled() ? Joined::apply(x, at::TensorList(weights)) : joined_product(x, weights);
}

extern "C" {

int ruminate_linear(at::Tensor *x, at::Tensor *weight, at::Tensor **out, char **error) {
  return guarded(error, [&] { *out = new at::Tensor(linear_of(*x, *weight)); });
}

int ruminate_matmul(at::Tensor *a, at::Tensor *b, at::Tensor **out, char **error) {
  return guarded(error, [&] { *out = new at::Tensor(matmul_of(*a, *b)); });
}
}
