// The choice of tokens: filters without sorting the vocabulary, and one function for everything between logits and token.

#include "guard.h"
#include "kernels.h"
#include "shim.h"
#include "vector.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <vector>

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/softmax.h>
#include <c10/core/GradMode.h>

namespace {

constexpr float NEVER = -std::numeric_limits<float>::infinity();

// Sign, exponent and the first bits of the mantissa make 4096 buckets.
constexpr int SHIFT = 20;
constexpr size_t BUCKETS = size_t{1} << (32 - SHIFT);

uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

// Of numbers that are not negative, in increasing order: their bits grow with them.
uint32_t bucket(float p) { return bits_of(p) >> SHIFT; }

// Of any numbers, in increasing order.
uint32_t signed_bucket(float x) {
  const auto bits = bits_of(x);
  return (bits & 0x80000000u ? ~bits : bits | 0x80000000u) >> SHIFT;
}

// Calls drop(i) for what top-p leaves out: in increasing order, as a stable sort has it, what comes before the sum of probabilities,
// `factor` times `weights`, passes `dropped_mass`; the last token always stays.
template <typename F>
void drop_least(const float *logits, const float *weights, float factor, int64_t vocab, float dropped_mass, F drop) {
  std::array<double, BUCKETS> mass{};
  for (int64_t i = 0; i < vocab; ++i) {
    const float p = weights[i] * factor;
    mass[bucket(p)] += p;
  }
  double below = 0;
  uint32_t border = 0;
  while (border + 1 < mass.size() && static_cast<float>(below + mass[border]) <= dropped_mass) {
    below += mass[border++];
  }
  // Only the bucket in which the sum passes has to be sorted.
  std::vector<std::pair<float, int64_t>> candidates;
  std::pair<float, int64_t> largest{NEVER, -1};
  for (int64_t i = 0; i < vocab; ++i) {
    largest = std::max(largest, std::pair(logits[i], i));
    const auto here = bucket(weights[i] * factor);
    if (here == border) {
      candidates.emplace_back(logits[i], i);
    }
  }
  for (int64_t i = 0; i < vocab; ++i) {
    if (bucket(weights[i] * factor) < border && i != largest.second) {
      drop(i);
    }
  }
  std::sort(candidates.begin(), candidates.end());
  for (const auto &[logit, i] : candidates) {
    below += weights[i] * factor;
    if (static_cast<float>(below) > dropped_mass) {
      break;
    }
    if (i != largest.second) {
      drop(i);
    }
  }
}

// The k-th largest of x, 0 < k <= n.
float kth_largest(const float *x, int64_t n, int64_t k) {
  std::array<int64_t, BUCKETS> counts{};
  for (int64_t i = 0; i < n; ++i) {
    ++counts[signed_bucket(x[i])];
  }
  auto border = static_cast<uint32_t>(BUCKETS - 1);
  while (counts[border] < k) {
    k -= counts[border--];
  }
  std::vector<float> candidates;
  for (int64_t i = 0; i < n; ++i) {
    if (signed_bucket(x[i]) == border) {
      candidates.push_back(x[i]);
    }
  }
  std::nth_element(candidates.begin(), candidates.begin() + (k - 1), candidates.end(), std::greater<>());
  return candidates[static_cast<size_t>(k - 1)];
}

struct Sampler {
  float temperature;
  int64_t top_k;
  double top_p;
};

struct Chosen {
  int64_t token;
  // Under what was drawn from.
  float log_prob;
};

// Numbers whose sums are known, so that only one stretch of them has to be gone through one by one.
constexpr int64_t STRETCH = 1024;

// Draws by a number in [0, 1): the first token up to which the probabilities sum up to more. `space` holds 2 n floats.
Chosen draw(const float *logits, int64_t n, const Sampler &sampler, float uniform, float *space, std::vector<double> &sums) {
  auto *scaled = space, *weights = space + n;
  const auto &run = loops();
  const auto largest = scaled[run.divide_argmax(logits, sampler.temperature, scaled, n)];
  const auto least = sampler.top_k > 0 && sampler.top_k < n ? kth_largest(scaled, n, sampler.top_k) : NEVER;
  sums.assign(static_cast<size_t>((n + STRETCH - 1) / STRETCH), 0.0);
  const auto all = [&] {
    double total = 0;
    for (const double sum : sums) {
      total += sum;
    }
    return total;
  };
  run.exp_sums(scaled, largest, least, weights, n, STRETCH, sums.data());
  auto total = all();
  if (sampler.top_p < 1.0) {
    drop_least(scaled, weights, static_cast<float>(1.0 / total), n, static_cast<float>(1.0 - sampler.top_p),
               [&](int64_t i) { weights[i] = 0.0f; });
    run.sums(weights, n, STRETCH, sums.data());
    total = all();
  }
  const double wanted = uniform * total;
  double below = 0;
  size_t stretch = 0;
  while (stretch + 1 < sums.size() && below + sums[stretch] <= wanted) {
    below += sums[stretch++];
  }
  // A sum in another order may end a little lower: then it is the last token that can be drawn.
  int64_t token = -1;
  const auto start = static_cast<int64_t>(stretch) * STRETCH;
  for (int64_t i = start; i < std::min(n, start + STRETCH); ++i) {
    if (weights[i] > 0.0f) {
      token = i;
      below += weights[i];
      if (below > wanted) {
        break;
      }
    }
  }
  if (token < 0) {
    token = std::max_element(weights, weights + n) - weights;
  }
  return {token, static_cast<float>(static_cast<double>(scaled[token] - largest) - std::log(total))};
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
    auto to = from.clone();
    const auto vocab = from.size(1);
    const auto *logits_data = from.const_data_ptr<float>();
    const auto *probs_data = probs.const_data_ptr<float>();
    auto *out_data = to.mutable_data_ptr<float>();
    at::parallel_for(0, from.size(0), 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        auto *target = out_data + row * vocab;
        drop_least(logits_data + row * vocab, probs_data + row * vocab, 1.0f, vocab, static_cast<float>(1.0 - p),
                   [&](int64_t i) { target[i] = NEVER; });
      }
    });
    *out = new at::Tensor(to);
  });
}

extern "C" int ruminate_choose(at::Tensor *logits, at::Tensor *allowed, at::Tensor *uniform, double temperature, int64_t top_k,
                               double top_p, at::Tensor **tokens, at::Tensor **log_probs, at::Tensor **sampling_log_probs,
                               char **error) {
  return guarded(error, [&] {
    at::NoGradGuard no_grad;
    const auto good = [](const at::Tensor &x) { return x.device().is_cpu() && x.scalar_type() == at::kFloat && x.dim() == 2; };
    TORCH_CHECK(good(*logits) && good(*allowed) && logits->sizes() == allowed->sizes() && logits->size(1) > 0,
                "tokens are chosen from float32 logits [rows, vocab] on the CPU, not from ", logits->sizes(), " and ",
                allowed->sizes());
    const auto rows = logits->size(0), vocab = logits->size(1);
    TORCH_CHECK(!uniform || (good(*uniform) && uniform->size(0) == rows && uniform->size(1) == 1), "each row needs a number, not ",
                uniform ? uniform->sizes() : logits->sizes());
    TORCH_CHECK(temperature > 0.0 && top_k >= 0 && top_p > 0.0, "temperature ", temperature, ", top-k ", top_k, " and top-p ",
                top_p, " leave nothing to draw from");
    const auto raw = logits->contiguous(), from = allowed->contiguous();
    const auto numbers = uniform ? uniform->contiguous() : at::Tensor();
    auto ids = at::empty({rows, 1}, raw.options().dtype(at::kLong));
    auto scores = at::empty({rows, 1}, raw.options()), drawn = uniform ? at::empty({rows, 1}, raw.options()) : scores;
    const Sampler sampler{static_cast<float>(temperature), top_k, top_p};
    const auto *raw_data = raw.const_data_ptr<float>(), *from_data = from.const_data_ptr<float>();
    const auto *number = uniform ? numbers.const_data_ptr<float>() : nullptr;
    auto *id = ids.mutable_data_ptr<int64_t>();
    auto *score = scores.mutable_data_ptr<float>(), *drawn_score = drawn.mutable_data_ptr<float>();
    at::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
      // Kept by each thread for its next tokens.
      static thread_local std::vector<float> space;
      static thread_local std::vector<double> sums;
      if (number) {
        space.resize(static_cast<size_t>(2 * vocab));
      }
      for (int64_t row = begin; row < end; ++row) {
        const auto *own = raw_data + row * vocab, *choice = from_data + row * vocab;
        if (number) {
          const auto chosen = draw(choice, vocab, sampler, number[row], space.data(), sums);
          id[row] = chosen.token;
          drawn_score[row] = chosen.log_prob;
        } else {
          id[row] = loops().argmax(choice, vocab);
        }
        const auto all = loops().log_sum_exp(own, 1.0f, vocab, false);
        score[row] = own[id[row]] - all.largest - all.log_sum;
      }
    });
    *tokens = new at::Tensor(ids);
    *log_probs = new at::Tensor(scores);
    *sampling_log_probs = new at::Tensor(drawn);
  });
}
