// Top-p without sorting the vocabulary.

#include "guard.h"
#include "kernels.h"
#include "shim.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <vector>

#include <ATen/Parallel.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/softmax.h>
#include <c10/core/GradMode.h>

namespace {

// The bits of a float that is not negative grow with it; sign, exponent and the first bits of the mantissa make 4096
// buckets in increasing order.
constexpr int SHIFT = 20;

uint32_t bucket(float p) {
  uint32_t bits;
  std::memcpy(&bits, &p, sizeof bits);
  return bits >> SHIFT;
}

// Copies a row and replaces by -inf what may not be drawn: in increasing order, as a stable sort has it, what comes before
// the sum of probabilities passes `dropped_mass`; the last token always stays.
void filter_row(const float *logits, const float *probs, float *out, int64_t vocab, float dropped_mass) {
  std::array<double, 1 << (32 - SHIFT)> mass{};
  for (int64_t i = 0; i < vocab; ++i) {
    mass[bucket(probs[i])] += probs[i];
  }
  double below = 0;
  uint32_t border = 0;
  while (border + 1 < mass.size() && static_cast<float>(below + mass[border]) <= dropped_mass) {
    below += mass[border++];
  }
  // Only the bucket in which the sum passes has to be sorted.
  std::vector<std::pair<float, int64_t>> candidates;
  std::pair<float, int64_t> largest{-std::numeric_limits<float>::infinity(), -1};
  for (int64_t i = 0; i < vocab; ++i) {
    const auto here = bucket(probs[i]);
    if (here == border) {
      candidates.emplace_back(logits[i], i);
    }
    largest = std::max(largest, std::pair(logits[i], i));
    out[i] = here < border ? -std::numeric_limits<float>::infinity() : logits[i];
  }
  std::sort(candidates.begin(), candidates.end());
  for (const auto &[logit, i] : candidates) {
    below += probs[i];
    if (static_cast<float>(below) > dropped_mass) {
      break;
    }
    out[i] = -std::numeric_limits<float>::infinity();
  }
  if (largest.second >= 0) {
    out[largest.second] = largest.first;
  }
}

} // namespace

extern "C" int ruminate_top_p(at::Tensor *logits, double p, at::Tensor **out, char **error) {
  return guarded(error, [&] {
    at::NoGradGuard no_grad;
    const bool kernel = by_kernel(Kernel::TopP, *logits);
    TORCH_CHECK(logits->dim() == 2 && (logits->device().is_cpu() || kernel) && logits->scalar_type() == at::kFloat,
                "top-p by buckets needs float32 logits [rows, vocab] on the CPU, or on a GPU with its kernel turned on");
    auto from = logits->contiguous();
    if (kernel && from.numel() > 0) {
      auto to = at::empty_like(from);
      run_kernel(Kernel::TopP, "top_p", from, from.size(0), 0, from.const_data_ptr(), from.size(1), 1.0 - p, to.mutable_data_ptr());
      *out = new at::Tensor(to);
      return;
    }
    auto probs = at::softmax(from, -1);
    auto to = at::empty_like(from);
    const auto vocab = from.size(1);
    const auto *logits_data = from.const_data_ptr<float>();
    const auto *probs_data = probs.const_data_ptr<float>();
    auto *out_data = to.mutable_data_ptr<float>();
    at::parallel_for(0, from.size(0), 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        filter_row(logits_data + row * vocab, probs_data + row * vocab, out_data + row * vocab, vocab,
                   static_cast<float>(1.0 - p));
      }
    });
    *out = new at::Tensor(to);
  });
}
