#include "processor.h"

#include "../guard.h"
#include "../shim.h"

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <initializer_list>

#if defined(__x86_64__) && defined(__GNUC__)
#define X86
#include <cpuid.h>
#endif

namespace {

// Names for RUMINATE_CPU, in the order of CpuLevel, and what libtorch's libraries call them: ATen, oneDNN and MKL read these variables
// before their first piece of work. No name: no limit.
struct Name {
  const char *ours, *aten, *onednn, *mkl;
};
constexpr std::array<Name, 5> NAMES = {{{"baseline", "default", "SSE41", "SSE4_2"},
                                        {"avx2", "avx2", "AVX2", "AVX2"},
                                        {"avx512", "avx512", "AVX512_CORE", "AVX512"},
                                        {"avx512_bf16", "avx512", "AVX512_CORE_BF16", "AVX512"},
                                        {"amx", nullptr, nullptr, nullptr}}};

CpuLevel detect() {
#ifdef X86
  __builtin_cpu_init();
  const auto all = [](std::initializer_list<bool> list) {
    return std::all_of(list.begin(), list.end(), [](bool each) { return each; });
  };
  if (!all({__builtin_cpu_supports("avx2") != 0, __builtin_cpu_supports("fma") != 0})) {
    return CpuLevel::Baseline;
  }
  if (!__builtin_cpu_supports("avx512f")) {
    return CpuLevel::Avx2;
  }
  unsigned a = 0, b = 0, c = 0, d = 0, d7 = 0;
  __get_cpuid_count(7, 0, &a, &b, &c, &d7);
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & (1u << 5))) {
    return CpuLevel::Avx512;
  }
  constexpr unsigned AMX_BF16 = 1u << 22, AMX_TILE = 1u << 24;
  return (d7 & AMX_BF16) && (d7 & AMX_TILE) ? CpuLevel::Amx : CpuLevel::Avx512Bf16;
#else
  return CpuLevel::Baseline;
#endif
}

const Loops *loops_of(CpuLevel level) {
#ifdef X86
  return level >= CpuLevel::Avx512 ? &LOOPS_AVX512 : level == CpuLevel::Avx2 ? &LOOPS_AVX2 : &LOOPS_BASELINE;
#else
  (void)level;
  return &LOOPS_BASELINE;
#endif
}

struct Choice {
  CpuLevel detected = detect();
  std::atomic<CpuLevel> level{detected};
  // None while `problem` says why.
  std::atomic<const Loops *> table{nullptr};
  std::string problem;

  Choice() {
    const char *wanted = std::getenv("RUMINATE_CPU");
    if (wanted == nullptr || *wanted == '\0') {
      table = loops_of(detected);
      return;
    }
    for (size_t i = 0; i < NAMES.size(); ++i) {
      if (std::strcmp(wanted, NAMES[i].ours) == 0 && static_cast<CpuLevel>(i) <= detected) {
        level = static_cast<CpuLevel>(i);
        table = loops_of(level);
        limit_libraries(NAMES[i]);
        return;
      }
    }
    problem = std::string("RUMINATE_CPU is '") + wanted + "', but this processor knows these levels:";
    for (size_t i = 0; i <= static_cast<size_t>(detected); ++i) {
      problem += std::string(i > 0 ? ", " : " ") + NAMES[i].ours;
    }
  }

  // What the environment says already has precedence.
  static void limit_libraries(const Name &name) {
    if (name.aten != nullptr) {
      setenv("ATEN_CPU_CAPABILITY", name.aten, 0);
      setenv("ONEDNN_MAX_CPU_ISA", name.onednn, 0);
      setenv("MKL_ENABLE_INSTRUCTIONS", name.mkl, 0);
    }
  }
};

Choice &choice() {
  static Choice made;
  return made;
}

// Before libtorch's libraries look at the environment, and while the process has one thread.
[[maybe_unused]] const bool MADE_EARLY = (choice(), true);

bool by_intel() {
#ifdef X86
  return __builtin_cpu_is("intel");
#else
  return false;
#endif
}

// Exported by libtorch_cpu, but not declared in its headers: at::native::mkldnn_matmul(a, b, out, beta, alpha).
using Matmul = void (*)(const at::Tensor &, const at::Tensor &, const at::Tensor &, float, float);

struct OneDnn {
  Matmul matmul = nullptr;
  // Why it is not used.
  std::string reason;

  OneDnn() {
    if (!at::hasMKLDNN()) {
      reason = "libtorch was built without it";
      return;
    }
    auto *symbol = dlsym(RTLD_DEFAULT, "_ZN2at6native13mkldnn_matmulERKNS_6TensorES3_S3_ff");
    if (symbol == nullptr) {
      reason = "this libtorch does not export its product";
      return;
    }
    // Which processors it accepts differs from release to release, so it is asked for a product that is known.
    const at::NoGradGuard no_grad;
    const auto found = reinterpret_cast<Matmul>(symbol);
    try {
      const auto a = at::ones({16, 8}), b = at::ones({8, 32}), out = at::empty({16, 32});
      found(a, b, out, 0, 1);
      if (out.eq(8).all().item<bool>()) {
        matmul = found;
      } else {
        reason = "its product of ones is wrong";
      }
    } catch (const c10::Error &error) {
      reason = error.what_without_backtrace();
    }
  }
};

const OneDnn &onednn() {
  static const OneDnn probed;
  return probed;
}

// From this many rows or columns of the result on, as with a vocabulary, MKL loses on every processor with AVX-512.
constexpr int64_t WIDE = 1 << 13;

} // namespace

CpuLevel detected_cpu_level() { return choice().detected; }

CpuLevel cpu_level() {
  loops();
  return choice().level;
}

const Loops &loops() {
  const auto *table = choice().table.load(std::memory_order_relaxed);
  TORCH_CHECK(table != nullptr, choice().problem);
  return *table;
}

bool prefers_onednn(int64_t widest) {
  static const bool always = !by_intel();
  return cpu_level() >= CpuLevel::Avx512 && (always || widest >= WIDE) && at::globalContext().userEnabledMkldnn() &&
         onednn().matmul != nullptr;
}

void multiply_by_onednn(const at::Tensor &a, const at::Tensor &b, const at::Tensor &out, float beta) {
  TORCH_CHECK(onednn().matmul != nullptr, "oneDNN does not multiply here: ", onednn().reason);
  onednn().matmul(a, b, out, beta, 1);
}

extern "C" {

int ruminate_cpu_levels(int *detected, int *used, char **error) {
  return guarded(error, [&] {
    *detected = static_cast<int>(detected_cpu_level());
    *used = static_cast<int>(cpu_level());
  });
}

int ruminate_set_cpu_level(int level, char **error) {
  return guarded(error, [&] {
    const auto best = static_cast<int>(detected_cpu_level());
    TORCH_CHECK(level >= 0 && level <= best, "this processor has no level ", level, "; its best is ", best);
    choice().level = static_cast<CpuLevel>(level);
    choice().table = loops_of(static_cast<CpuLevel>(level));
  });
}

int ruminate_onednn_refusal(char **out, char **error) {
  return guarded(error, [&] { *out = strdup(onednn().reason.c_str()); });
}
}
