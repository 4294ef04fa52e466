// Kernels for CUDA that are compiled when they are first needed (shim/kernels/*.cu). All are off until they are turned on.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>

// The last two are libtorch's own.
enum class Kernel : int { LogProbs, TopP, DecodeAttention, Rope, Gate, Attention, Graphs };

// Whether the kernel is on and takes such a tensor: float32 or bfloat16 on CUDA, in tests on the CPU.
bool by_kernel(Kernel kernel, const at::Tensor &x);

// Threads of a block.
int64_t block_size();

// Blocks for so many elements, of which a thread takes every so many-th.
int64_t blocks_for(int64_t elements);

// Starts a function of a kernel on the current stream of x's device. `arguments` point at what its parameters are to be;
// `shared` are bytes of shared memory beyond what it declares.
void start_kernel(Kernel kernel, const std::string &function, const at::Tensor &x, int64_t blocks, size_t shared, void **arguments);

template <typename... Arguments>
void run_kernel(Kernel kernel, const std::string &function, const at::Tensor &x, int64_t blocks, size_t shared,
                Arguments... arguments) {
  void *pointers[] = {&arguments...};
  start_kernel(kernel, function, x, blocks, shared, pointers);
}

inline const char *kernel_suffix(const at::Tensor &x) { return x.scalar_type() == at::kFloat ? "_f32" : "_bf16"; }

// What runs kernels on the CPU, in tests; for the thread that sets it.
using Emulator = void (*)(const std::string &function, int64_t blocks, size_t shared, void **arguments);
void emulate(Emulator emulator);
