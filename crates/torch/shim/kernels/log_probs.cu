// Log-probabilities, entropies and their gradients from a chunk of float32 logits; a block takes a row.

struct Softmax {
  // The largest logit, the sum of e^(x - largest), and that of e^(x - largest) (x - largest).
  float largest, sum, weighted;
};

__device__ inline Softmax softmax_of(const float *logits, i64 vocab) {
  // Finite, so that no difference to it is undefined.
  Softmax own = {-3.0e38f, 0.0f, 0.0f};
  for (i64 i = threadIdx.x; i < vocab; i += blockDim.x) {
    const float x = logits[i];
    if (x > own.largest) {
      const float step = own.largest - x, factor = expf(step);
      own.weighted = factor * (own.weighted + own.sum * step);
      own.sum *= factor;
      own.largest = x;
    }
    const float e = expf(x - own.largest);
    own.sum += e;
    // Nothing, and not nothing times infinity.
    own.weighted += e > 0.0f ? e * (x - own.largest) : 0.0f;
  }
  const float largest = reduce_block(own.largest, Max()), step = own.largest - largest, factor = expf(step);
  const float weighted = factor > 0.0f ? factor * (own.weighted + own.sum * step) : 0.0f;
  return {largest, reduce_block(own.sum * factor, Sum()), reduce_block(weighted, Sum())};
}

// `entropy` may be null.
KERNEL log_probs(const float *logits, const i64 *targets, i64 vocab, float *log_probs, float *entropy) {
  const i64 row = blockIdx.x;
  const auto all = softmax_of(logits + row * vocab, vocab);
  if (threadIdx.x == 0) {
    const float log_sum = logf(all.sum);
    const i64 target = targets[row];
    // What is no target has no probability, rather than some that lies elsewhere in memory.
    const bool there = target >= 0 && target < vocab;
    log_probs[row] = there ? logits[row * vocab + target] - all.largest - log_sum : __uint_as_float(0x7fc00000u);
    if (entropy) {
      entropy[row] = log_sum - all.weighted / all.sum;
    }
  }
}

// scale * d(grad log p(target) + grad_entropy entropy) / d logit. `out` may be the logits. Either gradient may be null.
template <typename T>
__device__ void log_probs_slopes(const float *logits, const i64 *targets, i64 vocab, const float *grad, const float *grad_entropy,
                                 const float *entropy, float scale, T *out) {
  const i64 row = blockIdx.x, target = targets[row];
  logits += row * vocab, out += row * vocab;
  const auto all = softmax_of(logits, vocab);
  const float log_sum = logf(all.sum), g = grad ? grad[row] : 0.0f, h = grad_entropy ? grad_entropy[row] : 0.0f;
  const float own = grad_entropy ? entropy[row] : 0.0f;
  for (i64 i = threadIdx.x; i < vocab; i += blockDim.x) {
    const float log_p = logits[i] - all.largest - log_sum, p = expf(log_p);
    float slope = (i == target ? g : 0.0f) - g * p;
    if (grad_entropy && p > 0.0f) {
      slope -= h * p * (log_p + own);
    }
    store(out + i, scale * slope);
  }
}

KERNEL log_probs_slopes_f32(const float *logits, const i64 *targets, i64 vocab, const float *grad,
                                                const float *grad_entropy, const float *entropy, float scale, float *out) {
  log_probs_slopes(logits, targets, vocab, grad, grad_entropy, entropy, scale, out);
}

KERNEL log_probs_slopes_bf16(const float *logits, const i64 *targets, i64 vocab, const float *grad,
                                                 const float *grad_entropy, const float *entropy, float scale, bf16 *out) {
  log_probs_slopes(logits, targets, vocab, grad, grad_entropy, entropy, scale, out);
}
