// Keeps C++ exceptions inside the shim.
#pragma once
#include <cstring>
#include <exception>

#include <c10/util/Exception.h>

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
