#include "shim.h"

#include "guard.h"

#include <ATen/Version.h>

#include <cstring>

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
