// What the processor can do, and so which loops run and which library multiplies. Decided here once, and nowhere else.
#pragma once
#include "loops.h"

#include <cstdint>
#include <string>

namespace at {
class Tensor;
}

// The best level of this processor, and the one in use: RUMINATE_CPU, or set_cpu_level, may name a lesser one.
CpuLevel detected_cpu_level();
CpuLevel cpu_level();

// The loops of the level in use.
const Loops &loops();

// Whether oneDNN, which libtorch holds beside MKL, takes products of float32 here and is the faster of the two for results of so many
// rows or columns, whichever are more. Without AVX-512 it takes none, and MKL leaves nothing to be gained.
bool prefers_onednn(int64_t widest);

// out = beta out + a b in float32 by oneDNN, where it takes such products.
void multiply_by_onednn(const at::Tensor &a, const at::Tensor &b, const at::Tensor &out, float beta);
