// The loops over rows of float32 and bfloat16 numbers on the CPU. They are compiled once for each vector unit (loops.cpp); which of
// them run, processor.cpp decides. This header stands in files that are compiled for newer processors than the one at hand, so it
// includes nothing that holds code.
#pragma once
#include <cstdint>

// Sums are kept in this many lanes. Element i belongs to lane i % LANES, on every unit, so that zeros behind the last one change
// nothing, not even the rounding.
constexpr int LANES = 16;

// Outputs of a block of a packed weight (packed.cpp): PACKED_OUTPUTS / LANES streams, in each of which the weights of LANES outputs lie input
// by input.
constexpr int64_t PACKED_OUTPUTS = 64;

// A row of logits times `scale`: the largest, the sum of exponentials of what lies below it, and the entropy where it is asked for.
struct LogSumExp {
  float largest, sum, log_sum, entropy;
};

struct Loops {
  void (*widen)(const uint16_t *from, float *to, int64_t n);
  void (*round_to_bfloat16)(const float *from, uint16_t *to, int64_t n);

  float (*square_sum)(const float *x, int64_t n);

  // out = x / sqrt(mean(x^2) + eps) * weight; gives the factor 1 / sqrt(...). Backward, with s that factor:
  // grad_x = s (g w - x s^2 mean(g w x)), and grad_weight += g x s.
  float (*rms_norm)(const float *x, const float *weight, float *out, int64_t n, float eps);
  void (*rms_norm_backward)(const float *grad, const float *x, const float *weight, float factor, float *grad_x,
                            float *grad_weight, int64_t n);

  // Softmax of scale * scores + bias, in place. Backward, from the gradient of the probabilities p to p (g - sum g p), in place.
  void (*softmax)(float *scores, const float *bias, float scale, int64_t n);
  void (*softmax_backward)(float *grad, const float *probs, int64_t n);

  // Attention of one query: its products with `count` keys at a distance of `stride`, and the sum of values times probabilities,
  // added to out.
  void (*query_key)(const float *query, const float *keys, int64_t stride, int64_t count, int64_t n, float *out);
  void (*weighted_values)(const float *probs, const float *values, int64_t stride, int64_t count, int64_t n, float *out);

  // activation(gate) * up, with silu(x) = x sigmoid(x) or the tanh form of gelu.
  void (*silu_mul)(const float *gate, const float *up, float *out, int64_t n);
  void (*gelu_mul)(const float *gate, const float *up, float *out, int64_t n);
  void (*silu_mul_backward)(const float *grad, const float *gate, const float *up, float *grad_gate, float *grad_up, int64_t n);
  void (*gelu_mul_backward)(const float *grad, const float *gate, const float *up, float *grad_gate, float *grad_up, int64_t n);

  // Rotary positions of a head of two halves. Backward: what element i gave to its partner comes back with the partner's sine.
  void (*rope)(const float *x, const float *cos, const float *sin, float *out, int64_t half);
  void (*rope_backward)(const float *x, const float *cos, const float *sin, float *out, int64_t half);

  LogSumExp (*log_sum_exp)(const float *logits, float scale, int64_t n, bool with_entropy);
  // From logits to their gradient but for the target's own part, in place: d log p(target) / d logit_j = [j = target] - p_j, and
  // d entropy / d logit_j = -p_j (log p_j + entropy). Both gradients are given times the scale.
  void (*log_sum_exp_backward)(float *logits, float scale, int64_t n, const LogSumExp *row, float grad_log_prob,
                               float grad_entropy);

  // out = x / (1 - rate) where the position's random number is not below `limit`, else 0; `first` is the position of x[0].
  void (*dropout)(const float *x, float *out, uint32_t count, uint32_t first, uint32_t low, uint32_t high, uint32_t limit,
                  float scale);

  // out = x / divisor; gives the first position of the largest. NaNs are passed over.
  int64_t (*divide_argmax)(const float *x, float divisor, float *out, int64_t n);
  int64_t (*argmax)(const float *x, int64_t n);
  // out = exp(x - largest), or 0 where x is below `least`; the sum of each `sum_width` of them goes to `sums`.
  void (*exp_sums)(const float *x, float largest, float least, float *out, int64_t n, int64_t sum_width, double *sums);
  void (*sums)(const float *x, int64_t n, int64_t sum_width, double *sums);

  // Rows of x [rows, k] times a block of a packed weight; out is [rows, PACKED_OUTPUTS]. Every output is summed in the order of its inputs,
  // whatever the number of rows, so that a row's numbers do not depend on the other rows.
  void (*packed_f32)(const float *x, int64_t rows, int64_t k, const float *block, float *out);
  void (*packed_bf16)(const float *x, int64_t rows, int64_t k, const uint16_t *block, float *out);
};

// Classes of processors by their vector units, from the least on. The last two matter to libtorch's libraries only: our loops are those
// of AVX-512.
enum class CpuLevel : int { Baseline, Avx2, Avx512, Avx512Bf16, Amx };

// One table for each compilation of loops.cpp.
extern const Loops LOOPS_BASELINE, LOOPS_AVX2, LOOPS_AVX512;
