// Which instruction set runs: by capability, not by brand, and only where the operating system saves the registers too.
#include <cstdlib>
#include <cstring>

#include "kernels/table.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace prunefast {
namespace {

struct Features {
  bool avx2 = false, avx512 = false, avx512bf16 = false, avx512popcnt = false;
};

#if defined(__x86_64__)
bool bit(unsigned value, int position) { return (value >> position) & 1u; }

// XCR0: the register state that the system saves. Without it a wide instruction faults although the processor has it.
unsigned saved_state() {
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

Features detect() {
  unsigned a, b, c, d;
  Features found;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !bit(c, 27)) return found;  // OSXSAVE
  const bool fma = bit(c, 12);
  const unsigned state = saved_state();
  const bool ymm = (state & 0x6) == 0x6, zmm = (state & 0xE6) == 0xE6;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
  found.avx2 = ymm && fma && bit(b, 5);
  found.avx512 = found.avx2 && zmm && bit(b, 16) && bit(b, 17) && bit(b, 30) && bit(b, 31);  // F, DQ, BW, VL
  found.avx512popcnt = found.avx512 && bit(c, 14);  // VPOPCNTDQ
  const bool vnni = bit(c, 11);
  if (found.avx512 && vnni && __get_cpuid_count(7, 1, &a, &b, &c, &d)) found.avx512bf16 = bit(a, 5);
  return found;
}
#else
Features detect() { return {}; }
#endif

const Features& features() {
  static const Features found = detect();
  return found;
}

const Kernels* table(int32_t isa) {
  switch (isa) {
    case PRUNEFAST_BASELINE:
      return &kernels_baseline;
#if defined(PRUNEFAST_WIDE)
    case PRUNEFAST_AVX2:
      return features().avx2 ? &kernels_avx2 : nullptr;
    case PRUNEFAST_AVX512:
      return features().avx512 ? &kernels_avx512 : nullptr;
    case PRUNEFAST_AVX512BF16:  // what it adds is in screenings()
      return features().avx512bf16 ? &kernels_avx512 : nullptr;
#endif
    default:
      return nullptr;
  }
}

int32_t choose() {
  const char* limit = std::getenv("PRUNEFAST_ISA");
  int32_t widest = PRUNEFAST_AVX512BF16;
  for (int32_t isa = PRUNEFAST_BASELINE; limit && isa <= PRUNEFAST_AVX512BF16; ++isa)
    if (!std::strcmp(limit, prunefast_isa_name(isa))) widest = isa;
  while (!table(widest)) --widest;
  return widest;
}

int32_t chosen() {
  static const int32_t isa = choose();
  return isa;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& set = *table(chosen());
  return set;
}

const Screening* const* screenings() {
  switch (chosen()) {
#if defined(PRUNEFAST_WIDE)
    case PRUNEFAST_AVX2:
      return screenings_avx2;
    case PRUNEFAST_AVX512:
      return screenings_avx512;
    case PRUNEFAST_AVX512BF16:
      return screenings_avx512bf16;
#endif
    default:
      return screenings_baseline;
  }
}

const ConvKernels* conv_kernels() {
#if defined(PRUNEFAST_WIDE)
  if (chosen() >= PRUNEFAST_AVX512BF16) return &kernels_avx512conv;
#endif
  return nullptr;
}

const PopcountKernels* popcount_kernels() {
#if defined(PRUNEFAST_WIDE)
  if (chosen() >= PRUNEFAST_AVX512 && features().avx512popcnt) return &kernels_avx512popcnt;
#endif
  return nullptr;
}

}  // namespace prunefast

int32_t prunefast_isa_in_use(void) { return prunefast::chosen(); }

int32_t prunefast_isa_available(int32_t isa) { return prunefast::table(isa) != nullptr; }

const char* prunefast_isa_name(int32_t isa) {
  static const char* const names[] = {"baseline", "avx2", "avx512", "avx512bf16"};
  return isa >= PRUNEFAST_BASELINE && isa <= PRUNEFAST_AVX512BF16 ? names[isa] : nullptr;
}
