// What all kernels share. They know no header of CUDA's, so that NVRTC needs none, and tests run them on a CPU (emulation.cpp).
// Blocks have whole warps, and at most 1024 threads.

#ifndef KERNEL
#define KERNEL extern "C" __global__ void
#define DYNAMIC_SHARED(T, name) extern __shared__ T name[]
#endif

typedef long long i64;
typedef unsigned long long u64;

struct bf16 {
  unsigned short bits;
};

__device__ inline float load(float x) { return x; }
__device__ inline float load(bf16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }

__device__ inline void store(float *to, float x) { *to = x; }
__device__ inline void store(bf16 *to, float x) {
  const unsigned bits = __float_as_uint(x);
  const bool number = (bits & 0x7fffffffu) <= 0x7f800000u;
  // To the nearest, to the even one of two.
  to->bits = static_cast<unsigned short>(number ? (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16 : (bits >> 16) | 64u);
}

constexpr unsigned ALL_LANES = 0xffffffffu;

__device__ inline float infinity() { return __uint_as_float(0x7f800000u); }

__device__ inline unsigned lane() { return threadIdx.x % 32; }
__device__ inline unsigned warp() { return threadIdx.x / 32; }
__device__ inline unsigned warps() { return blockDim.x / 32; }

struct Sum {
  template <typename T> __device__ T operator()(T a, T b) const { return a + b; }
};

struct Max {
  template <typename T> __device__ T operator()(T a, T b) const { return a > b ? a : b; }
};

template <typename T, typename F> __device__ T reduce_warp(T x, F f) {
  for (int other = 16; other > 0; other /= 2) {
    x = f(x, __shfl_xor_sync(ALL_LANES, x, other));
  }
  return x;
}

// Of all threads of a block, for all of them.
template <typename T, typename F> __device__ T reduce_block(T x, F f) {
  __shared__ T parts[32];
  x = reduce_warp(x, f);
  // Others may still read what was here before.
  __syncthreads();
  if (lane() == 0) {
    parts[warp()] = x;
  }
  __syncthreads();
  x = parts[0];
  for (unsigned i = 1; i < warps(); ++i) {
    x = f(x, parts[i]);
  }
  return x;
}
