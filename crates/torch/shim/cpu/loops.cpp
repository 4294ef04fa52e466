// One table of loops, compiled for the vector unit that the build names in RUMINATE_LOOPS. Functions of the C++ library must not be
// used here: the linker keeps one copy of each, and might keep one for a unit that the processor lacks.

#include "loops.h"

#include <math.h>

#define INLINE __attribute__((always_inline)) static inline

namespace {

// The width of a vector in floats.
#if defined(__AVX512F__)
constexpr int WIDTH = 16;
#elif defined(__AVX2__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif

typedef float Vector __attribute__((vector_size(4 * WIDTH)));
typedef float VectorInMemory __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef uint32_t Words __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t HalvesInMemory __attribute__((vector_size(2 * WIDTH), aligned(2), may_alias));

INLINE int64_t least_of(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE float bits_to_float(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

INLINE uint32_t float_to_bits(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}

INLINE float total(float *lanes) {
  for (int width = LANES / 2; width > 0; width /= 2) {
    for (int j = 0; j < width; ++j) {
      lanes[j] += lanes[j + width];
    }
  }
  return lanes[0];
}

// The sum of products.
INLINE float dot(const float *x, const float *y, int64_t n) {
  float lanes[LANES] = {0};
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) {
    for (int j = 0; j < LANES; ++j) {
      lanes[j] += x[i + j] * y[i + j];
    }
  }
  for (int j = 0; i + j < n; ++j) {
    lanes[j] += x[i + j] * y[i + j];
  }
  return total(lanes);
}

// e^x within two units in the last place; 0 below -87, infinite above 88. For loops, in which the C library's function would be
// called one by one.
INLINE float fast_exp(float x) {
  const float bounded = x < -87.0f ? -87.0f : (x > 89.0f ? 89.0f : x);
  // Rounds to the nearest integer: the sum has no bits behind the point.
  const float shifted = bounded * 1.44269504f + 12582912.0f;
  const float n = shifted - 12582912.0f;
  const float r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const float scale = bits_to_float((float_to_bits(shifted) + (127u - 0x4b400000u)) << 23);
  return x < -87.0f ? 0.0f : p * scale;
}

void widen(const uint16_t *__restrict from, float *__restrict to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    to[i] = bits_to_float(static_cast<uint32_t>(from[i]) << 16);
  }
}

void round_to_bfloat16(const float *__restrict from, uint16_t *__restrict to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = float_to_bits(from[i]);
    // To the nearest, ties to even; a NaN stays one.
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    to[i] = static_cast<uint16_t>(from[i] != from[i] ? 0x7fc0u : rounded);
  }
}

float square_sum(const float *x, int64_t n) { return dot(x, x, n); }

float rms_norm(const float *__restrict x, const float *__restrict weight, float *__restrict out, int64_t n, float eps) {
  const float sum = dot(x, x, n);
  const float factor = 1.0f / __builtin_sqrtf(sum / static_cast<float>(n) + eps);
  for (int64_t k = 0; k < n; ++k) {
    out[k] = x[k] * factor * weight[k];
  }
  return factor;
}

void rms_norm_backward(const float *__restrict grad, const float *__restrict x, const float *__restrict weight, float factor,
                       float *__restrict grad_x, float *__restrict grad_weight, int64_t n) {
  float lanes[LANES] = {0};
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) {
    for (int j = 0; j < LANES; ++j) {
      lanes[j] += grad[i + j] * weight[i + j] * x[i + j];
    }
  }
  for (int j = 0; i + j < n; ++j) {
    lanes[j] += grad[i + j] * weight[i + j] * x[i + j];
  }
  const float sum = total(lanes);
  const float along = factor * factor * sum / static_cast<float>(n);
  for (int64_t k = 0; k < n; ++k) {
    grad_x[k] = factor * (grad[k] * weight[k] - x[k] * along);
    grad_weight[k] += grad[k] * x[k] * factor;
  }
}

void softmax(float *__restrict scores, const float *__restrict bias, float scale, int64_t n) {
  float lanes[LANES];
  for (int j = 0; j < LANES; ++j) {
    lanes[j] = -INFINITY;
  }
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) {
    for (int j = 0; j < LANES; ++j) {
      const float score = scores[i + j] * scale + bias[i + j];
      scores[i + j] = score;
      lanes[j] = score > lanes[j] ? score : lanes[j];
    }
  }
  for (int j = 0; i + j < n; ++j) {
    const float score = scores[i + j] * scale + bias[i + j];
    scores[i + j] = score;
    lanes[j] = score > lanes[j] ? score : lanes[j];
  }
  float largest = -INFINITY;
  for (int j = 0; j < LANES; ++j) {
    largest = lanes[j] > largest ? lanes[j] : largest;
    lanes[j] = 0;
  }
  for (i = 0; i + LANES <= n; i += LANES) {
    for (int j = 0; j < LANES; ++j) {
      const float e = fast_exp(scores[i + j] - largest);
      scores[i + j] = e;
      lanes[j] += e;
    }
  }
  for (int j = 0; i + j < n; ++j) {
    const float e = fast_exp(scores[i + j] - largest);
    scores[i + j] = e;
    lanes[j] += e;
  }
  const float inverse = 1.0f / total(lanes);
  for (int64_t k = 0; k < n; ++k) {
    scores[k] *= inverse;
  }
}

void softmax_backward(float *__restrict grad, const float *__restrict probs, int64_t n) {
  const float sum = dot(grad, probs, n);
  for (int64_t k = 0; k < n; ++k) {
    grad[k] = probs[k] * (grad[k] - sum);
  }
}

// Four keys at a time.
void query_key(const float *__restrict query, const float *__restrict keys, int64_t stride, int64_t count, int64_t n,
               float *__restrict out) {
  int64_t key = 0;
  for (; key + 4 <= count; key += 4) {
    const float *__restrict a = keys + key * stride, *__restrict b = a + stride, *__restrict c = b + stride,
                            *__restrict d = c + stride;
    float lanes[4][LANES] = {{0}};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
      for (int j = 0; j < LANES; ++j) {
        lanes[0][j] += query[i + j] * a[i + j];
        lanes[1][j] += query[i + j] * b[i + j];
        lanes[2][j] += query[i + j] * c[i + j];
        lanes[3][j] += query[i + j] * d[i + j];
      }
    }
    for (int j = 0; i + j < n; ++j) {
      lanes[0][j] += query[i + j] * a[i + j];
      lanes[1][j] += query[i + j] * b[i + j];
      lanes[2][j] += query[i + j] * c[i + j];
      lanes[3][j] += query[i + j] * d[i + j];
    }
    for (int k = 0; k < 4; ++k) {
      out[key + k] = total(lanes[k]);
    }
  }
  for (; key < count; ++key) {
    out[key] = dot(query, keys + key * stride, n);
  }
}

void weighted_values(const float *__restrict probs, const float *__restrict values, int64_t stride, int64_t count, int64_t n,
                     float *__restrict out) {
  int64_t key = 0;
  for (; key + 4 <= count; key += 4) {
    const float *__restrict a = values + key * stride, *__restrict b = a + stride, *__restrict c = b + stride,
                            *__restrict d = c + stride;
    const float p = probs[key], q = probs[key + 1], r = probs[key + 2], s = probs[key + 3];
    for (int64_t i = 0; i < n; ++i) {
      out[i] = (((out[i] + p * a[i]) + q * b[i]) + r * c[i]) + s * d[i];
    }
  }
  for (; key < count; ++key) {
    const float p = probs[key], *v = values + key * stride;
    for (int64_t i = 0; i < n; ++i) {
      out[i] += p * v[i];
    }
  }
}

INLINE float sigmoid(float x) { return 1.0f / (1.0f + fast_exp(-x)); }

// gelu(x) = x sigmoid(GELU (x + CUBE x^3)), with GELU = 2 sqrt(2 / pi).
constexpr float GELU = 1.5957691216f, CUBE = 0.044715f;

void silu_mul(const float *__restrict gate, const float *__restrict up, float *__restrict out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    out[i] = gate[i] * sigmoid(gate[i]) * up[i];
  }
}

void gelu_mul(const float *__restrict gate, const float *__restrict up, float *__restrict out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float x = gate[i];
    out[i] = x * sigmoid(GELU * (x + CUBE * x * x * x)) * up[i];
  }
}

void silu_mul_backward(const float *__restrict grad, const float *__restrict gate, const float *__restrict up,
                       float *__restrict grad_gate, float *__restrict grad_up, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float x = gate[i], s = sigmoid(x);
    grad_gate[i] = grad[i] * up[i] * s * (1.0f + x * (1.0f - s));
    grad_up[i] = grad[i] * x * s;
  }
}

void gelu_mul_backward(const float *__restrict grad, const float *__restrict gate, const float *__restrict up,
                       float *__restrict grad_gate, float *__restrict grad_up, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float x = gate[i], s = sigmoid(GELU * (x + CUBE * x * x * x));
    const float inner = GELU * (1.0f + 3.0f * CUBE * x * x);
    grad_gate[i] = grad[i] * up[i] * s * (1.0f + x * (1.0f - s) * inner);
    grad_up[i] = grad[i] * x * s;
  }
}

void rope(const float *__restrict x, const float *__restrict cos, const float *__restrict sin, float *__restrict out,
          int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    out[i] = x[i] * cos[i] + x[i + half] * sin[i];
  }
  for (int64_t i = 0; i < half; ++i) {
    out[i + half] = x[i + half] * cos[i + half] + x[i] * sin[i + half];
  }
}

void rope_backward(const float *__restrict x, const float *__restrict cos, const float *__restrict sin, float *__restrict out,
                   int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    out[i] = x[i] * cos[i] + x[i + half] * sin[i + half];
  }
  for (int64_t i = 0; i < half; ++i) {
    out[i + half] = x[i + half] * cos[i + half] + x[i] * sin[i];
  }
}

LogSumExp log_sum_exp(const float *__restrict logits, float scale, int64_t n, bool with_entropy) {
  float lanes[LANES], weighted[LANES] = {0};
  for (int j = 0; j < LANES; ++j) {
    lanes[j] = -INFINITY;
  }
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) {
    for (int j = 0; j < LANES; ++j) {
      const float logit = logits[i + j] * scale;
      lanes[j] = logit > lanes[j] ? logit : lanes[j];
    }
  }
  for (int j = 0; i + j < n; ++j) {
    const float logit = logits[i + j] * scale;
    lanes[j] = logit > lanes[j] ? logit : lanes[j];
  }
  LogSumExp row{-INFINITY, 0, 0, 0};
  for (int j = 0; j < LANES; ++j) {
    row.largest = lanes[j] > row.largest ? lanes[j] : row.largest;
    lanes[j] = 0;
  }
  for (i = 0; i + LANES <= n; i += LANES) {
    for (int j = 0; j < LANES; ++j) {
      const float below = logits[i + j] * scale - row.largest, e = fast_exp(below);
      lanes[j] += e;
      weighted[j] += with_entropy ? e * below : 0.0f;
    }
  }
  for (int j = 0; i + j < n; ++j) {
    const float below = logits[i + j] * scale - row.largest, e = fast_exp(below);
    lanes[j] += e;
    weighted[j] += with_entropy ? e * below : 0.0f;
  }
  row.sum = total(lanes);
  row.log_sum = logf(row.sum);
  // -sum p log p, with log p = below - log_sum and p = e / sum
  row.entropy = row.log_sum - total(weighted) / row.sum;
  return row;
}

void log_sum_exp_backward(float *__restrict logits, float scale, int64_t n, const LogSumExp *row, float grad_log_prob,
                          float grad_entropy) {
  const float inverse = 1.0f / row->sum, largest = row->largest;
  if (grad_entropy == 0.0f) {
    const float factor = -grad_log_prob;
    for (int64_t i = 0; i < n; ++i) {
      logits[i] = fast_exp(logits[i] * scale - largest) * inverse * factor;
    }
    return;
  }
  const float shift = row->entropy - row->log_sum;
  for (int64_t i = 0; i < n; ++i) {
    const float below = logits[i] * scale - largest;
    logits[i] = -fast_exp(below) * inverse * (grad_log_prob + grad_entropy * (below + shift));
  }
}

// The finalizer of MurmurHash3: every bit of the result depends on every bit of x.
INLINE uint32_t mix(uint32_t x) {
  x ^= x >> 16;
  x *= 0x85ebca6bU;
  x ^= x >> 13;
  x *= 0xc2b2ae35U;
  return x ^ (x >> 16);
}

void dropout(const float *__restrict x, float *__restrict out, uint32_t count, uint32_t first, uint32_t low, uint32_t high,
             uint32_t limit, float scale) {
  for (uint32_t i = 0; i < count; ++i) {
    const uint32_t random = mix(mix((first + i) ^ low) ^ high);
    out[i] = random >= limit ? x[i] * scale : 0.0f;
  }
}

INLINE float largest_of(const float *x, int64_t n) {
  float lanes[LANES];
  for (int j = 0; j < LANES; ++j) {
    lanes[j] = -INFINITY;
  }
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) {
    for (int j = 0; j < LANES; ++j) {
      lanes[j] = x[i + j] > lanes[j] ? x[i + j] : lanes[j];
    }
  }
  for (int j = 0; i + j < n; ++j) {
    lanes[j] = x[i + j] > lanes[j] ? x[i + j] : lanes[j];
  }
  float largest = -INFINITY;
  for (int j = 0; j < LANES; ++j) {
    largest = lanes[j] > largest ? lanes[j] : largest;
  }
  return largest;
}

// Elements among which the largest is looked for one by one.
constexpr int64_t STRETCH = 512;

template <bool DIVIDE> INLINE int64_t position_of_largest(const float *x, float divisor, float *out, int64_t n) {
  float largest = -INFINITY;
  int64_t best = 0;
  for (int64_t start = 0; start < n; start += STRETCH) {
    const int64_t count = least_of(STRETCH, n - start);
    const float *from = x + start;
    if (DIVIDE) {
      for (int64_t i = 0; i < count; ++i) {
        out[start + i] = from[i] / divisor;
      }
      from = out + start;
    }
    const float here = largest_of(from, count);
    if (here > largest) {
      largest = here;
      best = start;
    }
  }
  const float *values = DIVIDE ? out : x;
  const int64_t end = least_of(n, best + STRETCH);
  for (int64_t i = best; i < end; ++i) {
    if (values[i] == largest) {
      return i;
    }
  }
  return best;
}

int64_t divide_argmax(const float *x, float divisor, float *out, int64_t n) {
  return position_of_largest<true>(x, divisor, out, n);
}

int64_t argmax(const float *x, int64_t n) { return position_of_largest<false>(x, 1.0f, nullptr, n); }

void exp_sums(const float *__restrict x, float largest, float least, float *__restrict out, int64_t n, int64_t sum_width,
              double *__restrict sums) {
  for (int64_t start = 0; start < n; start += sum_width) {
    const int64_t count = least_of(sum_width, n - start);
    const float *from = x + start;
    float *to = out + start;
    float lanes[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
      for (int j = 0; j < LANES; ++j) {
        const float e = from[i + j] < least ? 0.0f : fast_exp(from[i + j] - largest);
        to[i + j] = e;
        lanes[j] += e;
      }
    }
    for (int j = 0; i + j < count; ++j) {
      const float e = from[i + j] < least ? 0.0f : fast_exp(from[i + j] - largest);
      to[i + j] = e;
      lanes[j] += e;
    }
    *sums++ = total(lanes);
  }
}

void sums_of(const float *__restrict x, int64_t n, int64_t sum_width, double *__restrict sums) {
  for (int64_t start = 0; start < n; start += sum_width) {
    const int64_t count = least_of(sum_width, n - start);
    float lanes[LANES] = {0};
    int64_t i = start;
    for (; i + LANES <= start + count; i += LANES) {
      for (int j = 0; j < LANES; ++j) {
        lanes[j] += x[i + j];
      }
    }
    for (int j = 0; i + j < start + count; ++j) {
      lanes[j] += x[i + j];
    }
    *sums++ = total(lanes);
  }
}

INLINE Vector load(const float *from) { return *reinterpret_cast<const VectorInMemory *>(from); }

INLINE Vector load(const uint16_t *from) {
  const auto halves = *reinterpret_cast<const HalvesInMemory *>(from);
  return reinterpret_cast<Vector>(__builtin_convertvector(halves, Words) << 16);
}

INLINE void store(float *to, Vector x) { *reinterpret_cast<VectorInMemory *>(to) = x; }

// M rows of x times the weights of S streams, for inputs [from, to); what inputs before them gave lies in `out`. Memory from `ahead` on
// is fetched into the cache, `pace` bytes for each input.
template <int M, int S, typename T>
INLINE void tile(const float *x, int64_t k, const T *streams, int64_t from, int64_t to, float *out, const char *ahead = nullptr,
                 int64_t pace = 0) {
  constexpr int V = LANES / WIDTH;
  Vector sums[M][S * V];
  for (int m = 0; m < M; ++m) {
    for (int v = 0; v < S * V; ++v) {
      sums[m][v] = from > 0 ? load(out + m * PACKED_OUTPUTS + v * WIDTH) : Vector{};
    }
  }
  for (int64_t i = from; i < to; ++i) {
    if (ahead != nullptr) {
      __builtin_prefetch(ahead);
      ahead += pace;
    }
    Vector weights[S * V];
    for (int s = 0; s < S; ++s) {
      for (int v = 0; v < V; ++v) {
        weights[s * V + v] = load(streams + (s * k + i) * LANES + v * WIDTH);
      }
    }
    for (int m = 0; m < M; ++m) {
      for (int v = 0; v < S * V; ++v) {
        sums[m][v] += weights[v] * x[m * k + i];
      }
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int v = 0; v < S * V; ++v) {
      store(out + m * PACKED_OUTPUTS + v * WIDTH, sums[m][v]);
    }
  }
}

#if defined(__AVX512F__)
// The weights of a block stream through once for four rows: as four streams, because a core fetches four streams ahead faster than one.
template <typename T> INLINE void packed(const float *x, int64_t rows, int64_t k, const T *block, float *out) {
  constexpr int STREAMS = PACKED_OUTPUTS / LANES;
  int64_t row = 0;
  for (; row + 4 <= rows; row += 4) {
    tile<4, STREAMS>(x + row * k, k, block, 0, k, out + row * PACKED_OUTPUTS);
  }
  if (row + 2 <= rows) {
    tile<2, STREAMS>(x + row * k, k, block, 0, k, out + row * PACKED_OUTPUTS);
    row += 2;
  }
  if (row < rows) {
    tile<1, STREAMS>(x + row * k, k, block, 0, k, out + row * PACKED_OUTPUTS);
  }
}
#else
// A few sums fill the registers, so that several rows go through one stream only: some inputs at a time, which all rows find in the cache,
// because the rows before have fetched them.
constexpr int64_t INPUTS = 128;

#if defined(__AVX2__)
constexpr int64_t MOST_ROWS = 6;
#else
constexpr int64_t MOST_ROWS = 3;
#endif

template <int S, typename T>
INLINE void some_rows(int64_t count, const float *x, int64_t k, const T *streams, int64_t from, int64_t to, float *out, const char *ahead,
                      int64_t pace) {
  switch (count) {
#if defined(__AVX2__)
  case 6:
    return tile<6, S>(x, k, streams, from, to, out, ahead, pace);
  case 5:
    return tile<5, S>(x, k, streams, from, to, out, ahead, pace);
  case 4:
    return tile<4, S>(x, k, streams, from, to, out, ahead, pace);
#endif
  case 3:
    return tile<3, S>(x, k, streams, from, to, out, ahead, pace);
  case 2:
    return tile<2, S>(x, k, streams, from, to, out, ahead, pace);
  default:
    return tile<1, S>(x, k, streams, from, to, out, ahead, pace);
  }
}

template <typename T> INLINE void packed(const float *x, int64_t rows, int64_t k, const T *block, float *out) {
  constexpr int STREAMS = PACKED_OUTPUTS / LANES;
  // Streams that one or two rows take at once, so that there are eight sums.
  constexpr int ONE = 2 * WIDTH / 4, TWO = WIDTH / 4;
  if (rows == 1) {
    for (int s = 0; s < STREAMS; s += ONE) {
      tile<1, ONE>(x, k, block + s * k * LANES, 0, k, out + s * LANES);
    }
    return;
  }
  if (rows == 2) {
    for (int s = 0; s < STREAMS; s += TWO) {
      tile<2, TWO>(x, k, block + s * k * LANES, 0, k, out + s * LANES);
    }
    return;
  }
  const int64_t groups = (rows + MOST_ROWS - 1) / MOST_ROWS;
  // Streams lie one behind the other, so that what comes next is what lies behind. Behind the last block it is nothing that is needed,
  // and fetching memory that is not there does no harm.
  const int64_t bytes = LANES * static_cast<int64_t>(sizeof(T)), pace = groups < bytes ? bytes / groups : 1;
  for (int s = 0; s < STREAMS; ++s) {
    for (int64_t from = 0; from < k; from += INPUTS) {
      const int64_t to = least_of(k, from + INPUTS);
      const char *next = reinterpret_cast<const char *>(block + (s * k + to) * LANES);
      for (int64_t group = 0; group < groups; ++group) {
        const int64_t first = rows * group / groups, count = rows * (group + 1) / groups - first;
        some_rows<1>(count, x + first * k, k, block + s * k * LANES, from, to, out + first * PACKED_OUTPUTS + s * LANES,
                     next + group * pace * (to - from), pace);
      }
    }
  }
}
#endif

void packed_f32(const float *x, int64_t rows, int64_t k, const float *block, float *out) { packed(x, rows, k, block, out); }

void packed_bf16(const float *x, int64_t rows, int64_t k, const uint16_t *block, float *out) { packed(x, rows, k, block, out); }

} // namespace

extern const Loops RUMINATE_LOOPS = {widen,
                                     round_to_bfloat16,
                                     square_sum,
                                     rms_norm,
                                     rms_norm_backward,
                                     softmax,
                                     softmax_backward,
                                     query_key,
                                     weighted_values,
                                     silu_mul,
                                     gelu_mul,
                                     silu_mul_backward,
                                     gelu_mul_backward,
                                     rope,
                                     rope_backward,
                                     log_sum_exp,
                                     log_sum_exp_backward,
                                     dropout,
                                     divide_argmax,
                                     argmax,
                                     exp_sums,
                                     sums_of,
                                     packed_f32,
                                     packed_bf16};
