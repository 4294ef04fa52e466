#include "shim.h"

#include "guard.h"

#include <ATen/Version.h>

#include <cstdint>
#include <cstdlib>
#include <mutex>

#ifdef __GLIBC__
#include <malloc.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

extern "C" int ruminate_build_info(char **out, char **error) {
  return guarded(error, [&] {
#ifdef _OPENMP
    const char *loops = "on all threads";
#else
    const char *loops = "on one thread, for want of OpenMP";
#endif
    *out = strdup((at::show_config() + "  - Loops of ruminate: " + loops + "\n").c_str());
  });
}

namespace {

void keep() {
#ifdef __GLIBC__
  // Who has set these has reasons.
  for (const char *name : {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES"}) {
    if (std::getenv(name) != nullptr) {
      return;
    }
  }
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, -1);
  // The heap is stretched once, by addresses that cost nothing until they are used, so that all of it can be given huge
  // pages: what it grows by later would have none.
  const auto page = static_cast<int64_t>(sysconf(_SC_PAGESIZE)), pages = static_cast<int64_t>(sysconf(_SC_PHYS_PAGES));
  const int64_t room = page * pages / 2;
  constexpr uintptr_t HUGE_PAGE = uintptr_t{2} << 20;
  const auto begin = (reinterpret_cast<uintptr_t>(sbrk(0)) + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1);
  void *stretch = std::malloc(static_cast<size_t>(room));
  const auto end = reinterpret_cast<uintptr_t>(sbrk(0)) & ~(HUGE_PAGE - 1);
  if (stretch != nullptr && end > begin) {
    madvise(reinterpret_cast<void *>(begin), end - begin, MADV_HUGEPAGE);
  }
  std::free(stretch);
  mallopt(M_TOP_PAD, static_cast<int>(HUGE_PAGE));
#endif
}

} // namespace

extern "C" void ruminate_keep_freed_memory() {
  static std::once_flag once;
  std::call_once(once, keep);
}
