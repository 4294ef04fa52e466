#include "shim.h"

#include "guard.h"

#include <ATen/Version.h>

extern "C" int ruminate_build_info(char **out, char **error) {
  return guarded(error, [&] { *out = strdup(at::show_config().c_str()); });
}
