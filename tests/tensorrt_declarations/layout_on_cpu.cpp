// packed_layout.h on the CPU, for ctypes: compiled by g++, and by nvcc where it is there.
#include "packed_layout.h"
#ifdef __CUDACC__
#include <cuda_fp16.h>
#endif

namespace {
template <class Layout>
void pack_all(const int8_t* codes, int n, int k, uint32_t* words) {
  for (int row = 0; row < n; ++row)
    for (int column = 0; column < Layout::padded(k); ++column) {
      const int code = column < k ? codes[int64_t(row) * k + column] : 0;
      Layout::put(words, n, row, column, code + (1 << (Layout::kBits - 1)));
    }
}

template <class Layout>
void value_all(const uint32_t* words, const float* scale, int n, int k, int group, float* values) {
  const int groups = group ? k / group : 1;
  for (int row = 0; row < n; ++row)
    for (int column = 0; column < k; ++column) {
      const float factor = scale[row * groups + (group ? column / group : 0)];
      values[int64_t(row) * k + column] = qvec::value_of<Layout::kBits>(Layout::field(words, n, row, column), factor);
    }
}

// As the fused kernel reads a weight: tile by tile, step by step, every thread with its share.
template <class Layout>
void decode_all(const uint32_t* words, int n, int k, int8_t* codes) {
  for (int first = 0; first < n; first += qvec::kTileRows)
    for (int thread = 0; thread < qvec::kThreads; ++thread) {
      typename Layout::Kept kept;
      for (int step = 0; step < Layout::steps(k); ++step)
        Layout::decode(words, n, first, step, thread, kept, [&](int place, int row, uint32_t field) {
          const int column = Layout::first_column(step) + place;
          if (place < Layout::slots(step) * qvec::kSlotColumns && first + row < n && column < k)
            codes[int64_t(first + row) * k + column] += qvec::code_of<Layout::kBits>(field) + 100;
        });
    }
}

template <class Call>
void with_layout(bool p32, int bits, Call call) {
  if (p32 && bits == 2) call(qvec::P32<2>());
  if (p32 && bits == 3) call(qvec::P32<3>());
  if (p32 && bits == 4) call(qvec::P32<4>());
  if (!p32 && bits == 2) call(qvec::Rows<2>());
  if (!p32 && bits == 3) call(qvec::Rows<3>());
  if (!p32 && bits == 4) call(qvec::Rows<4>());
}
}  // namespace

extern "C" {
int64_t word_count(bool p32, int bits, int n, int k) {
  int64_t count = 0;
  with_layout(p32, bits, [&](auto layout) { count = layout.words(n, k); });
  return count;
}
void pack_codes(bool p32, int bits, const int8_t* codes, int n, int k, uint32_t* words) {
  with_layout(p32, bits, [&](auto layout) { pack_all<decltype(layout)>(codes, n, k, words); });
}
void values_of(bool p32, int bits, const uint32_t* words, const float* scale, int n, int k, int group, float* values) {
  with_layout(p32, bits, [&](auto layout) { value_all<decltype(layout)>(words, scale, n, k, group, values); });
}
void decode_codes(bool p32, int bits, const uint32_t* words, int n, int k, int8_t* codes) {
  with_layout(p32, bits, [&](auto layout) { decode_all<decltype(layout)>(words, n, k, codes); });
}
#ifdef __CUDACC__
void halves_of(const float* values, int64_t count, uint16_t* halves) {
  for (int64_t at = 0; at < count; ++at) halves[at] = __half_as_ushort(__float2half_rn(values[at]));
}
#endif
}
