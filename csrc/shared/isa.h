// Which instruction set serves the CPU kernels: chosen once, when the library loads.
#pragma once
#include <cstdlib>
#include <cstring>

namespace fastssl {

enum class Isa { plain, avx2, avx512 };

inline constexpr const char* kIsaNames[] = {"plain", "avx2", "avx512"};

inline Isa best_isa() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw"))
    return Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
  return Isa::plain;
}

// FASTSSL_CPU_ISA can only ask for less than the CPU has; anything else is ignored.
inline Isa selected_isa() {
  static const Isa selected = [] {
    const Isa best = best_isa();
    const char* asked = std::getenv("FASTSSL_CPU_ISA");
    for (int i = 0; asked && i < int(best); ++i)
      if (!std::strcmp(asked, kIsaNames[i])) return Isa(i);
    return best;
  }();
  return selected;
}

}  // namespace fastssl
