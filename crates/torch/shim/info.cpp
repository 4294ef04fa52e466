#include "shim.h"

#include "guard.h"

#include <ATen/Version.h>

#include <cstdlib>

#ifdef __GLIBC__
#include <malloc.h>
#endif

extern "C" int ruminate_build_info(char **out, char **error) {
  return guarded(error, [&] { *out = strdup(at::show_config().c_str()); });
}

extern "C" void ruminate_keep_freed_memory() {
#ifdef __GLIBC__
  // Who has set these has reasons.
  for (const char *name : {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES"}) {
    if (std::getenv(name) != nullptr) {
      return;
    }
  }
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, -1);
#endif
}
