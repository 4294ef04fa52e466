// Attention of single queries over keys and values that are there, as in decoding; a block takes a head of a query.

template <typename T> __device__ void score_keys(const Seen &seen, const T *query, i64 row, i64 head, i64 n, float *scores) {
  const T *keys = static_cast<const T *>(seen.keys) + row / seen.rows_each * seen.key_row + head / seen.heads_each * seen.key_head;
  for (i64 key = warp(); key < seen.count; key += warps()) {
    float sum = 0.0f;
    for (i64 i = lane(); i < n; i += 32) {
      sum += load(query[i]) * load(keys[key * seen.key_time + i]);
    }
    sum = reduce_warp(sum, Sum());
    if (lane() == 0) {
      scores[key] = sum;
    }
  }
}

template <typename T>
__device__ float blend(const Seen &seen, i64 row, i64 head, const float *probs, i64 at, i64 group, i64 groups) {
  const T *values = static_cast<const T *>(seen.values) + row / seen.rows_each * seen.value_row + head / seen.heads_each * seen.value_head;
  float sum = 0.0f;
  for (i64 key = group; key < seen.count; key += groups) {
    sum += probs[key] * load(values[key * seen.value_time + at]);
  }
  return sum;
}

template <typename T, typename B> __device__ void decode_attention(const DecodeAttention &all) {
  DYNAMIC_SHARED(float, scores);
  __shared__ float parts[1024];
  const i64 row = blockIdx.x / all.time / all.heads, t = blockIdx.x / all.heads % all.time, head = blockIdx.x % all.heads;
  const T *query = static_cast<const T *>(all.queries) + row * all.query_row + t * all.query_time + head * all.query_head;
  const i64 count = all.first.count + all.second.count;
  score_keys(all.first, query, row, head, all.n, scores);
  score_keys(all.second, query, row, head, all.n, scores + all.first.count);
  __syncthreads();

  const B *bias = static_cast<const B *>(all.bias);
  if (bias) {
    bias += row / all.bias_rows_each * all.bias_row + head * all.bias_head + t * all.bias_time;
  }
  float largest = -infinity();
  for (i64 key = threadIdx.x; key < count; key += blockDim.x) {
    scores[key] = scores[key] * all.scale + (bias ? load(bias[key]) : 0.0f);
    largest = Max()(largest, scores[key]);
  }
  largest = reduce_block(largest, Max());
  float sum = 0.0f;
  for (i64 key = threadIdx.x; key < count; key += blockDim.x) {
    scores[key] = expf(scores[key] - largest);
    sum += scores[key];
  }
  sum = reduce_block(sum, Sum());
  __syncthreads();

  // Several groups of threads share the keys, each thread for one element of the result.
  T *out = static_cast<T *>(all.out) + blockIdx.x * all.n;
  const i64 width = all.n < blockDim.x ? all.n : blockDim.x, groups = blockDim.x / width, group = threadIdx.x / width;
  for (i64 start = 0; start < all.n; start += width) {
    const i64 at = start + threadIdx.x % width;
    float mine = 0.0f;
    if (group < groups && at < all.n) {
      mine = blend<T>(all.first, row, head, scores, at, group, groups) +
             blend<T>(all.second, row, head, scores + all.first.count, at, group, groups);
    }
    parts[threadIdx.x] = mine;
    __syncthreads();
    if (group == 0 && at < all.n) {
      for (i64 other = 1; other < groups; ++other) {
        mine += parts[other * width + threadIdx.x];
      }
      store(out + at, mine / sum);
    }
    __syncthreads();
  }
}

KERNEL decode_attention_f32(DecodeAttention all) { decode_attention<float, float>(all); }
KERNEL decode_attention_bf16(DecodeAttention all) { decode_attention<bf16, float>(all); }
KERNEL decode_attention_bf16_bf16(DecodeAttention all) { decode_attention<bf16, bf16>(all); }
