// Rotary positions of x [rows, time, heads, n] by tables [1 or rows, time, 1, n], whose strides over rows are 0 where all share one;
// `back` turns the other way. A thread takes an element and its partner half a width away.

template <typename T>
__device__ void rope(const T *x, const T *cos, const T *sin, T *out, i64 pairs, i64 time, i64 heads, i64 n, i64 row_stride,
                       i64 time_stride, i64 head_stride, i64 cos_row, i64 cos_time, i64 sin_row, i64 sin_time, int back) {
  const i64 half = n / 2;
  for (i64 i = blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x; i < pairs; i += gridDim.x * static_cast<i64>(blockDim.x)) {
    const i64 at = i % half, head = i / half % heads, t = i / half / heads % time, row = i / half / heads / time;
    const T *from = x + row * row_stride + t * time_stride + head * head_stride + at;
    const T *c = cos + row * cos_row + t * cos_time + at, *s = sin + row * sin_row + t * sin_time + at;
    T *to = out + i / half * n + at;
    const float a = load(from[0]), b = load(from[half]), first = load(s[back ? half : 0]), second = load(s[back ? 0 : half]);
    store(to, a * load(c[0]) + b * first);
    store(to + half, b * load(c[half]) + a * second);
  }
}

#define ROTATE(T, NAME)                                                                                                        \
  KERNEL rope_##NAME(const T *x, const T *cos, const T *sin, T *out, i64 pairs, i64 time, i64 heads,                         \
                                           i64 n, i64 row_stride, i64 time_stride, i64 head_stride, i64 cos_row, i64 cos_time, \
                                           i64 sin_row, i64 sin_time, int back) {                                              \
    rope(x, cos, sin, out, pairs, time, heads, n, row_stride, time_stride, head_stride, cos_row, cos_time, sin_row,          \
           sin_time, back);                                                                                                    \
  }
ROTATE(float, f32)
ROTATE(bf16, bf16)
