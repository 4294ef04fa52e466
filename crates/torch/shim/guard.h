// What every file of the shim needs: no exception gets out, and CUDA gets in.
#pragma once
#include <cstring>
#include <exception>

#include <c10/util/Exception.h>

#ifdef RUMINATE_CUDA
// Linkers drop a library that nothing refers to, and libtorch_cuda registers itself only when it is loaded: without this
// reference a CUDA build would run on the CPU without a word.
namespace at::cuda {
int warp_size();
}
[[gnu::used, gnu::retain]] static int (*const needs_torch_cuda)() = &at::cuda::warp_size;
#endif

template <typename F> int guarded(char **error, F body) {
  try {
    body();
    return 0;
  } catch (const c10::Error &e) {
    // Without the C++ backtrace, which says nothing to a user of the Rust crates.
    *error = strdup(e.what_without_backtrace());
  } catch (const std::exception &e) {
    *error = strdup(e.what());
  } catch (...) {
    *error = strdup("unknown C++ exception");
  }
  return 1;
}
