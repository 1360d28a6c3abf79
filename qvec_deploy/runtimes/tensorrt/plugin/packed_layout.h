// Codes of a weight (n rows, k columns) in the words that the kernels read, as runtimes/kernels/layouts.py defines them.
// Everything here runs on the host and on the GPU, and is compared with numpy bit for bit.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define QVEC_BOTH __host__ __device__ __forceinline__
#define QVEC_UNROLL _Pragma("unroll")
#else
#define QVEC_BOTH inline
#define QVEC_UNROLL
#endif

namespace qvec {

constexpr int kTileRows = 64;      // rows of a weight that a block of threads decodes
constexpr int kThreads = 128;      // threads of a block
constexpr int kSlotColumns = 16;   // columns that one tensor core instruction takes

template <int BITS>
constexpr uint32_t kMask = (1u << BITS) - 1;

// The number that an unsigned code stands for.
template <int BITS>
QVEC_BOTH int code_of(uint32_t field) {
  return static_cast<int>(field) - (1 << (BITS - 1));
}

// The weight that an unsigned code stands for, as a float32.
template <int BITS>
QVEC_BOTH float value_of(uint32_t field, float scale) {
  return static_cast<float>(code_of<BITS>(field)) * scale;
}

// Layout `p32`: n is a multiple of 64 and k of 256; a word has the codes of rows n and n + 32.
template <int BITS>
struct P32 {
  static constexpr int kBits = BITS;
  static constexpr bool kAligned = true;                  // every step begins at a multiple of 16 columns
  static constexpr int kFields = 16 / BITS;               // codes in half a word
  static constexpr bool kRest = kFields * BITS < 16;      // at 3 bits, slot 15 is spread over the top bits of three words
  static constexpr int kSlots = kFields + (kRest ? 1 : 0);  // most slots of a step
  struct Kept {
    uint32_t rest[4] = {0, 0, 0, 0};
  };

  QVEC_BOTH static int padded(int k) { return k; }
  QVEC_BOTH static int64_t words(int n, int k) { return static_cast<int64_t>(k / 256) * BITS * 16 * (n / 2); }

  QVEC_BOTH static uint32_t field(const uint32_t* words, int n, int row, int column) {
    const int slot = column % 256 / kSlotColumns, half = row % 64 / 32 * 16;
    if (slot < kFields * BITS) {
      return words[word_at(n, row, column, slot / kFields)] >> (half + BITS * (slot % kFields)) & kMask<BITS>;
    }
    uint32_t found = 0;
    for (int word = 0; word < BITS; ++word) {
      found |= (words[word_at(n, row, column, word)] >> (half + 15) & 1) << word;
    }
    return found;
  }

  // Put an unsigned code into words that are zero.
  QVEC_BOTH static void put(uint32_t* words, int n, int row, int column, uint32_t field) {
    const int slot = column % 256 / kSlotColumns, half = row % 64 / 32 * 16;
    if (slot < kFields * BITS) {
      words[word_at(n, row, column, slot / kFields)] |= field << (half + BITS * (slot % kFields));
      return;
    }
    for (int word = 0; word < BITS; ++word) {
      words[word_at(n, row, column, word)] |= (field >> word & 1) << (half + 15);
    }
  }

  // A step is a row of words of a block of 256 columns.
  QVEC_BOTH static int steps(int k) { return k / 256 * BITS; }
  QVEC_BOTH static int first_column(int step) { return step / BITS * 256 + step % BITS * kFields * kSlotColumns; }
  QVEC_BOTH static int slots(int step) { return kFields + (kRest && step % BITS == BITS - 1 ? 1 : 0); }

  // One thread's share of a step's codes: `emit(column in the step, row in the tile, unsigned code)`.
  template <class Emit>
  QVEC_BOTH static void decode(
      const uint32_t* words, int n, int first_row, int step, int thread, Kept& kept, Emit emit) {
    const int pair = thread % 32;
    QVEC_UNROLL
    for (int turn = 0; turn < 4; ++turn) {
      const int lane = thread / 32 + 4 * turn;
      const uint32_t word = words[static_cast<int64_t>(16 * step + lane) * (n / 2) + first_row / 2 + pair];
    QVEC_UNROLL
      for (int slot = 0; slot < kFields; ++slot) {
        emit(slot * kSlotColumns + lane, pair, word >> (BITS * slot) & kMask<BITS>);
        emit(slot * kSlotColumns + lane, pair + 32, word >> (BITS * slot + 16) & kMask<BITS>);
      }
      if (kRest) {
        uint32_t& rest = kept.rest[turn];
        rest = (step % BITS == 0 ? 0 : rest) | (word >> 15 & 0x10001u) << step % BITS;
        if (step % BITS == BITS - 1) {
          emit(kFields * kSlotColumns + lane, pair, rest & kMask<BITS>);
          emit(kFields * kSlotColumns + lane, pair + 32, rest >> 16 & kMask<BITS>);
        }
      }
    }
  }

 private:
  QVEC_BOTH static int64_t word_at(int n, int row, int column, int word) {
    return static_cast<int64_t>(16 * (BITS * (column / 256) + word) + column % 16) * (n / 2) + row / 64 * 32 + row % 32;
  }
};

// Layout `rows`: the stream of packed/FORMAT.md, transposed; 32 columns of a row take BITS words, padded with code 0.
template <int BITS>
struct Rows {
  static constexpr int kBits = BITS;
  static constexpr bool kAligned = false;
  static constexpr int kSlots = 2;
  struct Kept {};

  QVEC_BOTH static int padded(int k) { return (k + 31) / 32 * 32; }
  QVEC_BOTH static int64_t words(int n, int k) { return static_cast<int64_t>(padded(k) / 32) * BITS * n; }

  QVEC_BOTH static uint32_t field(const uint32_t* words, int n, int row, int column) {
    const int64_t bit = static_cast<int64_t>(column) * BITS;
    const int shift = static_cast<int>(bit % 32);
    const uint32_t* at = words + bit / 32 * n + row;
    uint32_t found = at[0] >> shift;
    if (shift > 32 - BITS) found |= at[n] << (32 - shift);
    return found & kMask<BITS>;
  }

  // Put an unsigned code into words that are zero.
  QVEC_BOTH static void put(uint32_t* words, int n, int row, int column, uint32_t field) {
    const int64_t bit = static_cast<int64_t>(column) * BITS;
    const int shift = static_cast<int>(bit % 32);
    uint32_t* at = words + bit / 32 * n + row;
    at[0] |= field << shift;
    if (shift > 32 - BITS) at[n] |= field >> (32 - shift);
  }

  // A step is 32 columns.
  QVEC_BOTH static int steps(int k) { return padded(k) / 32; }
  QVEC_BOTH static int first_column(int step) { return 32 * step; }
  QVEC_BOTH static int slots(int) { return kSlots; }

  template <class Emit>
  QVEC_BOTH static void decode(const uint32_t* words, int n, int first_row, int step, int thread, Kept&, Emit emit) {
    const int row = thread % kTileRows, first = thread / kTileRows * 16;
    if (first_row + row >= n) return;
    QVEC_UNROLL
    for (int column = 0; column < 16; ++column) {
      emit(first + column, row, field(words, n, first_row + row, 32 * step + first + column));
    }
  }
};

}  // namespace qvec
