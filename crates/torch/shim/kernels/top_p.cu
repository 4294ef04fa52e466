// Top-p without sorting; a block takes a row. Probabilities are whole numbers, so that their sums do not depend on the order in which
// threads add, and what is kept is the same in every run.

// In the order of the numbers.
__device__ inline unsigned key_of(float x) {
  const unsigned bits = __float_as_uint(x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ inline u64 mass_of(float x, float largest) { return static_cast<u64>(4294967296.0f * expf(x - largest)); }

constexpr int BUCKETS = 2048;

// Keeps what comes, in increasing order, after the sum of probabilities has passed 1 - p; of equal ones the first are dropped first, and
// the last of the largest stays.
KERNEL top_p(const float *logits, i64 vocab, double dropped, float *out) {
  __shared__ u64 mass[BUCKETS];
  __shared__ u64 parts[1024];
  __shared__ u64 below;
  __shared__ unsigned border;
  __shared__ unsigned counts[32];
  logits += blockIdx.x * vocab, out += blockIdx.x * vocab;

  float largest = -infinity();
  for (i64 i = threadIdx.x; i < vocab; i += blockDim.x) {
    largest = Max()(largest, logits[i]);
  }
  largest = reduce_block(largest, Max());
  u64 total = 0;
  for (i64 i = threadIdx.x; i < vocab; i += blockDim.x) {
    total += mass_of(logits[i], largest);
  }
  total = reduce_block(total, Sum());
  const u64 limit = static_cast<u64>(dropped * static_cast<double>(total));
  if (threadIdx.x == 0) {
    below = 0;
    border = 0;
  }

  // The key at which the sum passes the limit: its first 11 bits, the next 11 and the last 10.
  for (int shift = 21; shift >= 0; shift = shift == 21 ? 10 : (shift == 10 ? 0 : -1)) {
    const int width = shift == 0 ? 10 : 11, above = shift + width;
    for (int i = threadIdx.x; i < BUCKETS; i += blockDim.x) {
      mass[i] = 0;
    }
    __syncthreads();
    const unsigned known = border;
    for (i64 i = threadIdx.x; i < vocab; i += blockDim.x) {
      const unsigned key = key_of(logits[i]);
      if (above == 32 || key >> above == known) {
        atomicAdd(&mass[(key >> shift) & ((1u << width) - 1u)], mass_of(logits[i], largest));
      }
    }
    __syncthreads();
    const int each = BUCKETS / blockDim.x;
    u64 own = 0;
    for (int i = 0; i < each; ++i) {
      own += mass[threadIdx.x * each + i];
    }
    parts[threadIdx.x] = own;
    __syncthreads();
    if (threadIdx.x == 0) {
      // Where nothing passes the limit, the last bucket that has some.
      unsigned last = 0;
      u64 sum = below, before = below;
      bool found = false;
      for (unsigned part = 0; part < blockDim.x && !found; ++part) {
        if (parts[part] == 0) {
          continue;
        }
        for (int i = 0; i < each && !found; ++i) {
          const u64 here = mass[part * each + i];
          if (here > 0) {
            last = part * each + i;
            before = sum;
            sum += here;
            found = sum > limit;
          }
        }
      }
      below = before;
      border = known << width | last;
    }
    __syncthreads();
  }

  const unsigned key = border;
  u64 equal = 0;
  for (i64 i = threadIdx.x; i < vocab; i += blockDim.x) {
    equal += key_of(logits[i]) == key;
  }
  equal = reduce_block(equal, Sum());
  const u64 weight = mass_of(__uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key), largest);
  u64 gone = weight > 0 && limit >= below ? (limit - below) / weight : 0;
  const bool greatest = key == key_of(largest);
  if (gone >= equal) {
    gone = greatest ? equal - 1 : equal;
  }
  u64 seen = 0;
  for (i64 start = 0; start < vocab; start += blockDim.x) {
    const i64 i = start + threadIdx.x;
    const bool same = i < vocab && key_of(logits[i]) == key;
    bool dropped_here = i < vocab && key_of(logits[i]) < key;
    // Only where some of them go, they are counted in their order.
    if (gone > 0) {
      const unsigned lanes = __ballot_sync(ALL_LANES, same);
      if (lane() == 0) {
        counts[warp()] = __popc(lanes);
      }
      __syncthreads();
      u64 rank = seen + __popc(lanes & ((1u << lane()) - 1u));
      for (unsigned other = 0; other < warps(); ++other) {
        rank += other < warp() ? counts[other] : 0;
        seen += counts[other];
      }
      dropped_here = dropped_here || (same && rank < gone);
      __syncthreads();
    }
    if (i < vocab) {
      out[i] = dropped_here ? -infinity() : logits[i];
    }
  }
}
