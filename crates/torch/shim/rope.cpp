// Rotary positions in one pass.

#include "guard.h"
#include "kernels.h"
#include "shim.h"
#include "vector.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/roll.h>
#include <torch/csrc/autograd/custom_function.h>

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

struct Rotate : public Function<Rotate> {
  static at::Tensor run(const at::Tensor &x, const at::Tensor &cos, const at::Tensor &sin, bool back) {
    const auto rows = x.size(0), time = x.size(1), heads = x.size(2), n = x.size(3);
    auto out = at::empty(x.sizes(), x.options());
    const auto cos_stride = cos.size(0) > 1 ? cos.stride(0) : 0, sin_stride = sin.size(0) > 1 ? sin.stride(0) : 0;
    // What is not on the CPU came here because its kernel was on, whatever has been turned off since.
    if (!x.is_cpu() || by_kernel(Kernel::Rope, x)) {
      run_kernel(Kernel::Rope, std::string("rope") + kernel_suffix(x), x, blocks_for(x.numel() / 2), 0, x.const_data_ptr(),
                 cos.const_data_ptr(), sin.const_data_ptr(), out.mutable_data_ptr(), x.numel() / 2, time, heads, n, x.stride(0),
                 x.stride(1), x.stride(2), cos_stride, cos.stride(1), sin_stride, sin.stride(1), static_cast<int>(back));
      return out;
    }
    const Reader from(x), cosines(cos), sines(sin);
    const Writer to(out);
    for_rows(rows * time, heads * n, 4, [&](int64_t place, float *buffer) {
      const auto row = place / time, t = place % time;
      const auto *c = cosines.row(row * cos_stride + t * cos.stride(1), n, buffer);
      const auto *s = sines.row(row * sin_stride + t * sin.stride(1), n, buffer + n);
      for (int64_t head = 0; head < heads; ++head) {
        const auto at = (place * heads + head) * n;
        auto *target = to.row(at, buffer + 3 * n);
        (back ? loops().rope_backward : loops().rope)(
            from.row(row * x.stride(0) + t * x.stride(1) + head * x.stride(2), n, buffer + 2 * n), c, s, target, n / 2);
        to.finish(at, n, target);
      }
    });
    return out;
  }

  static at::Tensor forward(AutogradContext *ctx, const at::Tensor &x, const at::Tensor &cos, const at::Tensor &sin) {
    ctx->save_for_backward({cos, sin});
    return run(x, cos, sin, false);
  }

  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    once();
    auto saved = ctx->get_saved_variables();
    return {run(grads[0].contiguous(), saved[0], saved[1], true), at::Tensor(), at::Tensor()};
  }
};

bool fits(const at::Tensor &x, const at::Tensor &table) {
  const bool good = by_kernel(Kernel::Rope, x) ? table.scalar_type() == x.scalar_type() : has_rows(table);
  return good && table.device() == x.device() && table.dim() == 4 && table.stride(3) == 1 && table.size(2) == 1 && table.size(3) == x.size(3) &&
         table.size(1) == x.size(1) && (table.size(0) == 1 || table.size(0) == x.size(0));
}

} // namespace

extern "C" int ruminate_rope(at::Tensor *x, at::Tensor *cos, at::Tensor *sin, at::Tensor **out, char **error) {
  return guarded(error, [&] {
    const auto half = x->size(-1) / 2;
    if (!(has_rows(*x) || by_kernel(Kernel::Rope, *x)) || x->dim() != 4 || x->stride(3) != 1 || x->size(3) % 2 != 0 || x->numel() == 0 ||
        !fits(*x, *cos) || !fits(*x, *sin)) {
      *out = new at::Tensor(x->mul(*cos).addcmul(x->roll({half}, {-1}), *sin).to(x->scalar_type()));
      return;
    }
    const bool graph = at::GradMode::is_enabled() && x->requires_grad();
    *out = new at::Tensor(graph ? Rotate::apply(*x, *cos, *sin) : Rotate::run(*x, *cos, *sin, false));
  });
}

extern "C" int ruminate_append_kv(at::Tensor *states, at::Tensor *cos, at::Tensor *sin, at::Tensor *keys, at::Tensor *values,
                                 int64_t at, char **error) {
  return guarded(error, [&] {
    at::NoGradGuard no_grad;
    const auto &x = *states, &k = *keys, &v = *values;
    const bool good = has_rows(x) && x.dim() == 3 && x.is_contiguous() && has_rows(k) && has_rows(v) && k.dim() == 4 &&
                      k.stride(3) == 1 && v.stride(3) == 1 && k.sizes() == v.sizes() && k.size(0) == x.size(0) &&
                      k.size(3) == x.size(2) && x.size(1) > 2 * k.size(1) && at >= 0 && at < k.size(2);
    TORCH_CHECK(good, "queries, keys and values ", x.sizes(), " of position ", at, " do not fit a cache ", k.sizes());
    TORCH_CHECK(!cos || (fits(x.unsqueeze(1), *cos) && fits(x.unsqueeze(1), *sin)), "they cannot turn by ",
                cos ? cos->sizes() : x.sizes());
    const auto rows = x.size(0), n = x.size(2), shared = k.size(1), heads = x.size(1) - 2 * shared;
    const Reader from(x), cosines(cos ? *cos : x), sines(sin ? *sin : x);
    const Writer back(x), to_keys(k), to_values(v);
    const auto stride = [](const at::Tensor *table) { return table && table->size(0) > 1 ? table->stride(0) : 0; };
    for_rows(rows, x.size(1) * n, 1, [&](int64_t row, float *buffer) {
      const auto start = row * x.size(1) * n;
      const auto *all = from.row(start, x.size(1) * n, buffer);
      std::vector<float> space(static_cast<size_t>(3 * n));
      const auto *c = cos ? cosines.row(row * stride(cos), n, space.data()) : nullptr;
      const auto *s = sin ? sines.row(row * stride(sin), n, space.data() + n) : nullptr;
      auto *turned = space.data() + 2 * n;
      for (int64_t head = 0; head < heads + shared; ++head) {
        const auto *own = all + head * n;
        if (cos) {
          loops().rope(own, c, s, turned, n / 2);
          own = turned;
        }
        if (head >= heads) {
          to_keys.store(row * k.stride(0) + (head - heads) * k.stride(1) + at * k.stride(2), n, own);
        } else if (cos) {
          back.store(start + head * n, n, own);
        }
      }
      for (int64_t head = 0; head < shared; ++head) {
        to_values.store(row * v.stride(0) + head * v.stride(1) + at * v.stride(2), n, all + (heads + shared + head) * n);
      }
    });
  });
}
