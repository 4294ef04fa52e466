#include "vector.h"

FOR_EACH_VECTOR_UNIT
void widen(const uint16_t *__restrict from, float *__restrict to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    to[i] = bits_to_float(static_cast<uint32_t>(from[i]) << 16);
  }
}

FOR_EACH_VECTOR_UNIT
void round_to_bfloat16(const float *__restrict from, uint16_t *__restrict to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = float_to_bits(from[i]);
    // To the nearest, ties to even; a NaN stays one.
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    to[i] = static_cast<uint16_t>(from[i] != from[i] ? 0x7fc0u : rounded);
  }
}
