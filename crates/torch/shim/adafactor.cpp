// Adafactor as transformers computes it, in few kernels and with few temporaries.

#include "guard.h"
#include "shim.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/mul.h>
#include <c10/core/GradMode.h>

namespace {

// Updates that exist at the same time, in elements: 64 Mi of them are 256 MiB.
constexpr int64_t kGroup = int64_t(64) << 20;

struct Entry {
  at::Tensor parameter, grad, row, column, first;
  double rate, decay;
};

// Mean of the squares over one dimension; the norm is one kernel without the squares in memory.
at::Tensor mean_square(const at::Tensor &x, int64_t dim) {
  return at::linalg_vector_norm(x, 2, {dim}).square_().div_(static_cast<double>(x.size(dim)));
}

void decay_to(const at::Tensor &moment, const at::Tensor &value, double decay, double eps) {
  moment.mul_(decay).add_(value.add_(eps), 1.0 - decay);
}

// The gradient over the root of its second moment.
at::Tensor update_of(const Entry &e, double eps) {
  if (!e.column.defined()) {
    decay_to(e.row, e.grad.square(), e.decay, eps);
    return e.row.rsqrt().mul_(e.grad);
  }
  decay_to(e.row, mean_square(e.grad, -1), e.decay, eps);
  decay_to(e.column, mean_square(e.grad, -2), e.decay, eps);
  auto rows = e.row.div(e.row.mean(-1, /*keepdim=*/true)).rsqrt_().unsqueeze(-1);
  return at::mul(rows, e.column.rsqrt().unsqueeze(-2)).mul_(e.grad);
}

// Root mean squares, as scalars on the device.
std::vector<at::Tensor> root_mean_squares(const std::vector<at::Tensor> &tensors) {
  auto norms = at::_foreach_norm(tensors, 2);
  for (size_t i = 0; i < norms.size(); ++i) {
    norms[i].div_(std::sqrt(static_cast<double>(std::max<int64_t>(tensors[i].numel(), 1))));
  }
  return norms;
}

void step_group(const std::vector<Entry> &group, double eps, double least_scale, double clip, double beta1,
                double weight_decay) {
  std::vector<at::Tensor> parameters, updates;
  for (const auto &e : group) {
    parameters.push_back(e.parameter);
    updates.push_back(update_of(e, eps));
  }
  auto sizes = root_mean_squares(updates);
  std::vector<at::Tensor> scales;
  if (least_scale >= 0) {
    scales = root_mean_squares(parameters);
  }
  for (size_t i = 0; i < group.size(); ++i) {
    const auto &e = group[i];
    auto rate = scales.empty() ? at::full_like(sizes[i], e.rate) : scales[i].clamp_min_(least_scale).mul_(e.rate);
    auto factor = rate.div(sizes[i].div_(clip).clamp_min_(1.0));
    // The parameter's own decay comes after the first moment took the update, and before the move.
    if (e.first.defined()) {
      e.first.mul_(beta1).addcmul_(updates[i], factor, 1.0 - beta1);
    }
    if (weight_decay != 0) {
      e.parameter.addcmul_(e.parameter, rate, -weight_decay);
    }
    if (e.first.defined()) {
      e.parameter.sub_(e.first);
    } else {
      e.parameter.addcmul_(updates[i], factor, -1.0);
    }
  }
}

at::Tensor at_place(at::Tensor *const *places, size_t i) { return places[i] ? *places[i] : at::Tensor(); }

} // namespace

extern "C" int ruminate_adafactor_step(at::Tensor *const *params, at::Tensor *const *states, size_t count,
                                       const double *rates, const double *decays, double eps, double least_scale,
                                       double clip, double beta1, double weight_decay, char **error) {
  return guarded(error, [&] {
    at::NoGradGuard no_grad;
    for (size_t i = 0; i < count;) {
      std::vector<Entry> group;
      std::vector<at::Tensor> originals;
      for (int64_t elements = 0; i < count && (group.empty() || elements + params[i]->numel() <= kGroup); ++i) {
        elements += params[i]->numel();
        originals.push_back(*params[i]);
        // Without a copy where it is float32 already.
        group.push_back({params[i]->detach().to(at::kFloat), params[i]->grad().to(at::kFloat), at_place(states, 3 * i),
                         at_place(states, 3 * i + 1), at_place(states, 3 * i + 2), rates[i], decays[i]});
      }
      step_group(group, eps, least_scale, clip, beta1, weight_decay);
      for (size_t k = 0; k < group.size(); ++k) {
        if (originals[k].scalar_type() != at::kFloat) {
          originals[k].copy_(group[k].parameter);
        }
      }
    }
  });
}
