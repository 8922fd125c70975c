// The CPU kernels of similarity_topk as the binding sees them: one table per instruction set.
#pragma once
#include <cstdint>

#include "shared/element.h"

namespace fastssl {

// A similarity and its bank row in one number: a larger key is a nearer neighbour. NaN is nearer
// than any number, and among equals the smaller row is. 0 is no key.
static inline __attribute__((always_inline)) uint64_t topk_key(float value, int64_t row) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value + 0.f);  // one zero only
  const uint32_t ordered = value != value ? ~0u : bits >> 31 ? ~bits : bits | 1u << 31;
  return uint64_t(ordered) << 32 | uint32_t(~row);
}
static inline __attribute__((always_inline)) float topk_value(uint64_t key) {
  const auto ordered = uint32_t(key >> 32);
  return __builtin_bit_cast(float, ordered >> 31 ? ordered ^ 1u << 31 : ~ordered);
}
static inline __attribute__((always_inline)) int64_t topk_row(uint64_t key) {
  return int64_t(~uint32_t(key));
}

struct TopkRows {
  const void* data;        // [count, d]
  const double* inv_norm;  // [count] to multiply with, or null: rows are taken as they are
  int64_t count;
};

struct TopkProblem {
  TopkRows queries, bank;
  Element element;
  int64_t d, k;
  int64_t block, run;        // queries and bank rows of a piece of work
  int64_t blocks, segments;  // pieces: each block with each segment of the bank
  int64_t capacity;          // keys that a query holds before all but the k largest are dropped
  void (*select)(uint64_t* keys, int64_t count, int64_t k);  // brings the k-th largest to its place
  uint64_t* found;           // [Q, segments, k] keys in no order, 0 where a segment is too short
  char* scratch;             // one for each worker
  int64_t next_piece, next_scratch;
};

struct TopkKernels {
  int64_t rows, columns;  // of a register block: `block` and `run` are multiples of them
  int64_t (*scratch)(const TopkProblem&);  // bytes that a worker needs
  // Inverse norms of rows [begin, end); 0 for rows without direction.
  void (*norms)(const void* data, Element, int64_t d, int64_t begin, int64_t end, double* inv_norm);
  void (*work)(void* problem);  // takes pieces until none is left, on any number of threads
};

namespace plain { extern const TopkKernels similarity_topk; }
#if defined(__x86_64__)
namespace avx2 { extern const TopkKernels similarity_topk; }
namespace avx512 { extern const TopkKernels similarity_topk; }
#endif

}  // namespace fastssl
