#include "shim.h"

#include "guard.h"
#include "vector.h"

#include <cstdlib>
#include <limits>
#include <mutex>
#include <vector>

#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_fused_adam.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>

namespace {

std::vector<at::Tensor> grads_of(at::Tensor *const *params, size_t count) {
  std::vector<at::Tensor> grads;
  for (size_t i = 0; i < count; ++i) {
    if (params[i]->grad().defined()) {
      grads.push_back(params[i]->grad());
    }
  }
  return grads;
}

// The norm of all gradients together. On the CPU libtorch takes it on one thread.
at::Tensor norm_of(const std::vector<at::Tensor> &grads) {
  const auto plain = [](const at::Tensor &grad) { return has_rows(grad) && grad.is_contiguous(); };
  if (!std::all_of(grads.begin(), grads.end(), plain)) {
    return at::linalg_vector_norm(at::stack(at::_foreach_norm(grads, 2)));
  }
  constexpr int64_t BLOCK = 1 << 14;
  struct Block {
    Reader reader;
    int64_t start, count;
  };
  std::vector<Block> blocks;
  for (const auto &grad : grads) {
    for (int64_t start = 0; start < grad.numel(); start += BLOCK) {
      blocks.push_back({Reader(grad), start, std::min(BLOCK, grad.numel() - start)});
    }
  }
  // In blocks of the same size for any number of threads, so that the sum is the same.
  std::vector<double> squares(blocks.size());
  for_rows(static_cast<int64_t>(blocks.size()), BLOCK, 1, [&](int64_t i, float *buffer) {
    const auto &[reader, start, count] = blocks[static_cast<size_t>(i)];
    squares[static_cast<size_t>(i)] = loops().square_sum(reader.row(start, count, buffer), count);
  });
  double sum = 0.0;
  for (const double square : squares) {
    sum += square;
  }
  // As libtorch does: of several kinds, the wider.
  const auto kind = grads[0].scalar_type();
  const bool one = std::all_of(grads.begin(), grads.end(), [kind](const at::Tensor &grad) { return grad.scalar_type() == kind; });
  return at::full({}, std::sqrt(sum), grads[0].options().dtype(one ? kind : at::kFloat));
}

// PyTorch's rule: multiply by max_norm / (norm + 1e-6) where that is below 1. It stays on the device.
void scale(std::vector<at::Tensor> &grads, const at::Tensor &norm, double max_norm) {
  if (max_norm == std::numeric_limits<double>::infinity()) {
    return;
  }
  const auto factor = (norm + 1e-6).reciprocal_().mul_(max_norm).clamp_max_(1.0);
  if (!norm.is_cpu() || factor.item<double>() != 1.0) {
    at::_foreach_mul_(grads, factor);
  }
}

at::Generator generator(int device_index) {
  return at::globalContext().defaultGenerator(
      device_index < 0 ? at::Device(at::kCPU) : at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(device_index)));
}

} // namespace

extern "C" {

void ruminate_free_message(char *message) { free(message); }

int ruminate_adam_step(at::Tensor *const *params, at::Tensor *const *exp_avgs, at::Tensor *const *exp_avg_sqs,
                       at::Tensor *const *steps, size_t count, double lr, double beta1, double beta2,
                       double weight_decay, double eps, int decoupled, char **error) {
  return guarded(error, [&] {
    at::NoGradGuard no_grad;
    std::vector<at::Tensor> p, g, m, v, s;
    for (size_t i = 0; i < count; ++i) {
      if (params[i]->grad().defined()) {
        p.push_back(*params[i]);
        g.push_back(params[i]->grad());
        m.push_back(*exp_avgs[i]);
        v.push_back(*exp_avg_sqs[i]);
        s.push_back(*steps[i]);
      }
    }
    if (p.empty()) {
      return;
    }
    at::_foreach_add_(s, 1);
    if (decoupled) {
      at::_fused_adamw_(p, g, m, v, {}, s, lr, beta1, beta2, weight_decay, eps, false, false);
    } else {
      at::_fused_adam_(p, g, m, v, {}, s, lr, beta1, beta2, weight_decay, eps, false, false);
    }
  });
}

int ruminate_clear_grads(at::Tensor *const *params, size_t count, char **error) {
  return guarded(error, [&] {
    for (size_t i = 0; i < count; ++i) {
      params[i]->mutable_grad() = at::Tensor();
    }
  });
}

int ruminate_clip_grad_norm(at::Tensor *const *params, size_t count, double max_norm, at::Tensor **out,
                            char **error) {
  return guarded(error, [&] {
    at::NoGradGuard no_grad;
    auto grads = grads_of(params, count);
    if (grads.empty()) {
      *out = new at::Tensor(at::zeros({}));
      return;
    }
    auto norm = norm_of(grads);
    scale(grads, norm, max_norm);
    *out = new at::Tensor(norm);
  });
}

int ruminate_scale_grads(at::Tensor *const *params, size_t count, at::Tensor *norm, double max_norm, char **error) {
  return guarded(error, [&] {
    at::NoGradGuard no_grad;
    auto grads = grads_of(params, count);
    if (!grads.empty()) {
      scale(grads, *norm, max_norm);
    }
  });
}

int ruminate_generator_state(int device_index, at::Tensor **out, char **error) {
  return guarded(error, [&] {
    auto gen = generator(device_index);
    std::lock_guard<std::mutex> lock(gen.mutex());
    *out = new at::Tensor(gen.get_state());
  });
}

int ruminate_set_generator_state(int device_index, at::Tensor *state, char **error) {
  return guarded(error, [&] {
    auto gen = generator(device_index);
    std::lock_guard<std::mutex> lock(gen.mutex());
    gen.set_state(*state);
  });
}

int ruminate_seed_generator(int device_index, uint64_t seed, char **error) {
  return guarded(error, [&] {
    auto gen = generator(device_index);
    std::lock_guard<std::mutex> lock(gen.mutex());
    gen.set_current_seed(seed);
  });
}

int ruminate_swap_autocast(int cuda, int *enabled, int *kind, char **error) {
  return guarded(error, [&] {
    auto device = cuda ? at::kCUDA : at::kCPU;
    const bool was_enabled = at::autocast::is_autocast_enabled(device);
    const auto was_kind = at::autocast::get_autocast_dtype(device);
    if (!*enabled) {
      // The cache holds low-precision copies of weights, which an optimizer step makes stale.
      at::autocast::clear_cache();
    }
    at::autocast::set_autocast_dtype(device, *kind < 0 ? at::kBFloat16 : static_cast<at::ScalarType>(*kind));
    at::autocast::set_autocast_enabled(device, *enabled);
    *enabled = was_enabled;
    *kind = static_cast<int>(was_kind);
  });
}
}
