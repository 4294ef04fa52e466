// activation(gate) * up and its gradients, element by element. Rows lie at equal distances.

constexpr float GELU = 1.5957691216f, CUBE = 0.044715f;

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

__device__ inline float inner(float x, int gelu) { return gelu ? GELU * (x + CUBE * x * x * x) : x; }

template <typename T> __device__ void gate(const T *gate, const T *up, T *out, i64 count, i64 n, i64 gate_stride, i64 up_stride, int gelu) {
  for (i64 i = blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x; i < count; i += gridDim.x * static_cast<i64>(blockDim.x)) {
    const float x = load(gate[i / n * gate_stride + i % n]);
    store(out + i, x * sigmoid(inner(x, gelu)) * load(up[i / n * up_stride + i % n]));
  }
}

template <typename T>
__device__ void gate_slopes(const T *grad, const T *gate, const T *up, T *grad_gate, T *grad_up, i64 count, i64 n, i64 gate_stride,
                            i64 up_stride, int gelu) {
  for (i64 i = blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x; i < count; i += gridDim.x * static_cast<i64>(blockDim.x)) {
    const float x = load(gate[i / n * gate_stride + i % n]), y = load(up[i / n * up_stride + i % n]), g = load(grad[i]);
    const float s = sigmoid(inner(x, gelu)), slope = gelu ? GELU * (1.0f + 3.0f * CUBE * x * x) : 1.0f;
    store(grad_gate + i, g * y * s * (1.0f + x * (1.0f - s) * slope));
    store(grad_up + i, g * x * s);
  }
}

#define GATES(T, NAME)                                                                                                         \
  KERNEL gate_##NAME(const T *x, const T *up, T *out, i64 count, i64 n, i64 gate_stride, i64 up_stride,                        \
                                         int gelu) {                                                                           \
    gate(x, up, out, count, n, gate_stride, up_stride, gelu);                                                                  \
  }                                                                                                                            \
  KERNEL gate_slopes_##NAME(const T *grad, const T *x, const T *up, T *grad_gate, T *grad_up, i64 count,                       \
                                                i64 n, i64 gate_stride, i64 up_stride, int gelu) {                             \
    gate_slopes(grad, x, up, grad_gate, grad_up, count, n, gate_stride, up_stride, gelu);                                      \
  }
GATES(float, f32)
GATES(bf16, bf16)
