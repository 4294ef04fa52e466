// Dropout whose mask is a function of a seed and the position.
#pragma once
#include <ATen/core/Tensor.h>

// float32 or bfloat16 on the CPU, with the mask of this seed.
at::Tensor dropped(const at::Tensor &x, double rate, uint64_t seed);

// The next seed of libtorch's generator.
uint64_t next_seed();
