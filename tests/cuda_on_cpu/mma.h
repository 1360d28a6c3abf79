// Products of 16 x 16 x 16, sums in float32. For tests.
#pragma once

#include "cuda_fp16.h"

namespace nvcuda::wmma {
struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
enum layout_t { mem_row_major };

template <class Use, int M, int N, int K, class Type, class Layout = void>
struct fragment {
  static constexpr int num_elements = 256;
  float x[256];
};

template <class Fragment>
void fill_fragment(Fragment& fragment, float value) {
  for (float& each : fragment.x) each = value;
}
inline float as_float(float value) { return value; }
inline float as_float(half value) { return __half2float(value); }

template <class Fragment, class Type>
void load_matrix_sync(Fragment& fragment, const Type* from, unsigned stride, layout_t = mem_row_major) {
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 16; ++column) fragment.x[16 * row + column] = as_float(from[stride * row + column]);
}

template <class Fragment>
void store_matrix_sync(float* to, const Fragment& fragment, unsigned stride, layout_t) {
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 16; ++column) to[stride * row + column] = fragment.x[16 * row + column];
}

template <class Sum, class Left, class Right>
void mma_sync(Sum& made, const Left& left, const Right& right, const Sum& added) {
  float sums[256];
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 16; ++column) {
      float sum = added.x[16 * row + column];
      for (int at = 0; at < 16; ++at) sum += left.x[16 * row + at] * right.x[16 * at + column];
      sums[16 * row + column] = sum;
    }
  std::memcpy(made.x, sums, sizeof(sums));
}
}  // namespace nvcuda::wmma
