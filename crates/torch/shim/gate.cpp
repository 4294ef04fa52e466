// Gated feed-forward layers: activation(gate) * up in one pass, keeping nothing but its inputs.

#include "guard.h"
#include "kernels.h"
#include "shim.h"
#include "vector.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/silu.h>
#include <torch/csrc/autograd/custom_function.h>

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// Rows one after the other, at equal distances.
int64_t stride_of(const at::Tensor &x) { return x.size(0) > 1 ? x.stride(0) : x.size(1); }

// What is not on the CPU came here because its kernel was on, whatever has been turned off since.
bool runs_kernel(const at::Tensor &gate) { return !gate.is_cpu() || by_kernel(Kernel::Gate, gate); }

struct Gate : public Function<Gate> {
  static at::Tensor run(const at::Tensor &gate, const at::Tensor &up, bool gelu) {
    auto out = at::empty(gate.sizes(), gate.options());
    const auto n = gate.size(1), gate_stride = stride_of(gate), up_stride = stride_of(up);
    if (runs_kernel(gate)) {
      run_kernel(Kernel::Gate, std::string("gate") + kernel_suffix(gate), gate, blocks_for(out.numel()), 0,
                 gate.const_data_ptr(), up.const_data_ptr(), out.mutable_data_ptr(), out.numel(), n, gate_stride, up_stride,
                 static_cast<int>(gelu));
      return out;
    }
    const Reader gates(gate), ups(up);
    const Writer to(out);
    for_rows(gate.size(0), n, 3, [&](int64_t row, float *buffer) {
      auto *target = to.row(row * n, buffer + 2 * n);
      (gelu ? loops().gelu_mul : loops().silu_mul)(gates.row(row * gate_stride, n, buffer), ups.row(row * up_stride, n, buffer + n),
                                     target, n);
      to.finish(row * n, n, target);
    });
    return out;
  }

  static at::Tensor forward(AutogradContext *ctx, const at::Tensor &gate, const at::Tensor &up, bool gelu) {
    ctx->save_for_backward({gate, up});
    ctx->saved_data["gelu"] = gelu;
    return run(gate, up, gelu);
  }

  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    once();
    auto saved = ctx->get_saved_variables();
    const auto &gate = saved[0], &up = saved[1];
    const bool gelu = ctx->saved_data["gelu"].toBool();
    const auto grad = grads[0].to(gate.scalar_type()).contiguous();
    auto grad_gate = at::empty(gate.sizes(), gate.options()), grad_up = at::empty(up.sizes(), up.options());
    const auto n = gate.size(1), gate_stride = stride_of(gate), up_stride = stride_of(up);
    if (runs_kernel(gate)) {
      run_kernel(Kernel::Gate, std::string("gate_slopes") + kernel_suffix(gate), gate, blocks_for(grad.numel()), 0,
                 grad.const_data_ptr(), gate.const_data_ptr(), up.const_data_ptr(), grad_gate.mutable_data_ptr(),
                 grad_up.mutable_data_ptr(), grad.numel(), n, gate_stride, up_stride, static_cast<int>(gelu));
      return {grad_gate, grad_up, at::Tensor()};
    }
    const Reader slopes(grad), gates(gate), ups(up);
    const Writer to_gate(grad_gate), to_up(grad_up);
    for_rows(gate.size(0), n, 5, [&](int64_t row, float *buffer) {
      auto *first = to_gate.row(row * n, buffer + 3 * n), *second = to_up.row(row * n, buffer + 4 * n);
      (gelu ? loops().gelu_mul_backward : loops().silu_mul_backward)(slopes.row(row * n, n, buffer), gates.row(row * gate_stride, n, buffer + n),
                                         ups.row(row * up_stride, n, buffer + 2 * n), first, second, n);
      to_gate.finish(row * n, n, first);
      to_up.finish(row * n, n, second);
    });
    return {grad_gate, grad_up, at::Tensor()};
  }
};

// [rows, n] without a copy where the tensor lies so.
at::Tensor as_rows(const at::Tensor &x) {
  const auto n = x.size(-1);
  return x.stride(-1) == 1 ? x.reshape({-1, n}) : x.contiguous().view({-1, n});
}

} // namespace

extern "C" int ruminate_gate(at::Tensor *gate, at::Tensor *up, int gelu, at::Tensor **out, char **error) {
  return guarded(error, [&] {
    const auto ours = [](const at::Tensor &x) { return has_rows(x) || by_kernel(Kernel::Gate, x); };
    if (!ours(*gate) || !ours(*up) || gate->device() != up->device() || gate->scalar_type() != up->scalar_type() || gate->dim() == 0 ||
        gate->numel() == 0 || gate->sizes() != up->sizes()) {
      *out = new at::Tensor((gelu ? at::gelu(*gate, "tanh") : at::silu(*gate)).mul(*up));
      return;
    }
    const bool graph = at::GradMode::is_enabled() && (gate->requires_grad() || up->requires_grad());
    const auto x = as_rows(*gate), y = as_rows(*up);
    *out = new at::Tensor((graph ? Gate::apply(x, y, gelu != 0) : Gate::run(x, y, gelu != 0)).view(gate->sizes()));
  });
}
