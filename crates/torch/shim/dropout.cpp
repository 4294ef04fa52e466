// Dropout whose mask is a function of a seed and the position: nothing has to be kept for the backward pass, and the mask
// does not depend on the number of threads.

#include "dropout.h"

#include "guard.h"
#include "shim.h"
#include "vector.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/dropout.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/custom_function.h>

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// The finalizer of MurmurHash3: every bit of the result depends on every bit of x.
inline uint32_t mix(uint32_t x) {
  x ^= x >> 16;
  x *= 0x85ebca6bU;
  x ^= x >> 13;
  x *= 0xc2b2ae35U;
  return x ^ (x >> 16);
}

} // namespace

at::Tensor dropped(const at::Tensor &input, double rate, uint64_t seed) {
  auto x = input.contiguous();
  auto out = at::empty_like(x);
  const auto limit = static_cast<uint32_t>(rate * 4294967296.0);
  const auto scale = static_cast<float>(1.0 / (1.0 - rate));
  const Reader from(x);
  const Writer to(out);
  constexpr int64_t BLOCK = 1 << 12;
  for_rows((x.numel() + BLOCK - 1) / BLOCK, BLOCK, 2, [&](int64_t block, float *buffer) {
    const int64_t start = block * BLOCK;
    const auto count = std::min(BLOCK, x.numel() - start);
    // Beyond 2^32 elements the upper half of the position changes the seed.
    const auto high = mix(static_cast<uint32_t>(seed >> 32) ^ static_cast<uint32_t>(start >> 32));
    auto *target = to.row(start, buffer + BLOCK);
    loops().dropout(from.row(start, count, buffer), target, static_cast<uint32_t>(count), static_cast<uint32_t>(start),
         static_cast<uint32_t>(seed), high, limit, scale);
    to.finish(start, count, target);
  });
  return out;
}

uint64_t next_seed() {
  auto generator = at::detail::getDefaultCPUGenerator();
  std::lock_guard<std::mutex> lock(generator.mutex());
  return at::check_generator<at::CPUGeneratorImpl>(generator)->random64();
}

namespace {

struct Dropout : public Function<Dropout> {
  static at::Tensor forward(AutogradContext *ctx, const at::Tensor &x, double rate, int64_t seed) {
    ctx->saved_data["rate"] = rate;
    ctx->saved_data["seed"] = seed;
    return dropped(x, rate, static_cast<uint64_t>(seed));
  }

  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    const auto rate = ctx->saved_data["rate"].toDouble();
    const auto seed = ctx->saved_data["seed"].toInt();
    // Through the function itself, so that a second derivative is right, too.
    return {Dropout::apply(grads[0], rate, seed), at::Tensor(), at::Tensor()};
  }
};

} // namespace

extern "C" int ruminate_dropout(at::Tensor *x, double rate, at::Tensor **out, char **error) {
  return guarded(error, [&] {
    if (!has_rows(*x) || !(rate > 0.0 && rate < 1.0)) {
      *out = new at::Tensor(at::dropout(*x, rate, true));
      return;
    }
    *out = new at::Tensor(Dropout::apply(*x, rate, static_cast<int64_t>(next_seed())));
  });
}
