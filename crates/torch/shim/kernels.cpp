// Compiles kernels with NVRTC and starts them on libtorch's stream.

#include "kernels.h"

#include "guard.h"
#include "shim.h"

#include <ATen/Version.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <mutex>
#include <vector>

#include <dlfcn.h>
#include <unistd.h>

#ifdef RUMINATE_KERNELS
// Nothing of CUDA's runtime itself, which is not linked.
#include <ATen/cuda/CUDAContextLight.h>
#include <c10/core/DeviceGuard.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#endif

// Written by build.rs: SOURCES[kernel], each with what all share before it.
#include "kernel_sources.h"

namespace {

namespace fs = std::filesystem;

constexpr int64_t BLOCK = 256, EMULATED_BLOCK = 64, MOST_BLOCKS = 1 << 16;

std::atomic<unsigned> turned_on{0};
thread_local Emulator emulator = nullptr;

// A library of NVIDIA's: beside libtorch as PyPI's packages put it, or where the loader finds it.
void *open_library(const std::vector<std::string> &names) {
  std::vector<std::string> folders;
  if (Dl_info here; dladdr(reinterpret_cast<void *>(&at::show_config), &here) != 0 && here.dli_fname != nullptr) {
    const auto libraries = fs::weakly_canonical(here.dli_fname).parent_path();
    folders.push_back((libraries / "../../nvidia/cu13/lib/").string());
  }
  folders.emplace_back();
  for (const auto &folder : folders) {
    for (const auto &name : names) {
      if (void *library = dlopen((folder + name).c_str(), RTLD_NOW | RTLD_GLOBAL)) {
        return library;
      }
    }
  }
  return nullptr;
}

template <typename F> F *symbol(void *library, const char *name) {
  auto *found = reinterpret_cast<F *>(dlsym(library, name));
  TORCH_CHECK(found, "NVIDIA's libraries have no ", name);
  return found;
}

// As in nvrtc.h, which need not be there.
struct Nvrtc {
  using Program = void *;
  using Result = int;

  explicit Nvrtc(void *library)
      : version(symbol<Result(int *, int *)>(library, "nvrtcVersion")),
        create(symbol<Result(Program *, const char *, const char *, int, const char *const *, const char *const *)>(
            library, "nvrtcCreateProgram")),
        destroy(symbol<Result(Program *)>(library, "nvrtcDestroyProgram")),
        compile(symbol<Result(Program, int, const char *const *)>(library, "nvrtcCompileProgram")),
        log_size(symbol<Result(Program, size_t *)>(library, "nvrtcGetProgramLogSize")),
        log(symbol<Result(Program, char *)>(library, "nvrtcGetProgramLog")),
        code_size(symbol<Result(Program, size_t *)>(library, "nvrtcGetCUBINSize")),
        code(symbol<Result(Program, char *)>(library, "nvrtcGetCUBIN")),
        message(symbol<const char *(Result)>(library, "nvrtcGetErrorString")) {}

  void check(Result result, const char *doing) const {
    TORCH_CHECK(result == 0, "NVRTC failed ", doing, ": ", message(result));
  }

  Result (*version)(int *, int *);
  Result (*create)(Program *, const char *, const char *, int, const char *const *, const char *const *);
  Result (*destroy)(Program *);
  Result (*compile)(Program, int, const char *const *);
  Result (*log_size)(Program, size_t *);
  Result (*log)(Program, char *);
  Result (*code_size)(Program, size_t *);
  Result (*code)(Program, char *);
  const char *(*message)(Result);
};

// None where it is not installed.
const Nvrtc *nvrtc() {
  static const Nvrtc *loaded = []() -> const Nvrtc * {
    // NVRTC looks for these by their name, and finds them once they are loaded.
    (void)open_library({"libnvrtc-builtins.so.13.0"});
    void *library = open_library({"libnvrtc.so.13", "libnvrtc.so"});
    return library == nullptr ? nullptr : new Nvrtc(library);
  }();
  return loaded;
}

std::string compile(const Nvrtc &nvrtc, Kernel kernel, const std::string &arch) {
  const auto &source = SOURCES[static_cast<int>(kernel)];
  Nvrtc::Program program = nullptr;
  nvrtc.check(nvrtc.create(&program, source.text, source.name, 0, nullptr, nullptr), "reading a kernel");
  const std::string target = "--gpu-architecture=" + arch;
  const char *options[] = {target.c_str(), "--std=c++17"};
  const auto result = nvrtc.compile(program, 2, options);
  size_t size = 0;
  std::string log, code;
  if (result != 0 && nvrtc.log_size(program, &size) == 0) {
    log.resize(size);
    nvrtc.log(program, log.data());
  }
  TORCH_CHECK(result == 0, "NVRTC cannot compile ", source.name, " for ", arch, ": ", nvrtc.message(result), "\n", log.c_str());
  nvrtc.check(nvrtc.code_size(program, &size), "compiling");
  code.resize(size);
  nvrtc.check(nvrtc.code(program, code.data()), "compiling");
  nvrtc.destroy(&program);
  return code;
}

uint64_t hash(const std::string &text) {
  uint64_t value = 0xcbf29ce484222325u;
  for (const unsigned char c : text) {
    value = (value ^ c) * 0x100000001b3u;
  }
  return value;
}

// Where compiled kernels are kept between programs; empty where there is no such place.
fs::path cache_file(const Nvrtc &nvrtc, Kernel kernel, const std::string &arch) {
  fs::path folder;
  if (const char *cache = std::getenv("XDG_CACHE_HOME"); cache != nullptr && *cache != 0) {
    folder = cache;
  } else if (const char *home = std::getenv("HOME"); home != nullptr && *home != 0) {
    folder = fs::path(home) / ".cache";
  } else {
    return {};
  }
  int major = 0, minor = 0;
  nvrtc.version(&major, &minor);
  const auto &source = SOURCES[static_cast<int>(kernel)];
  char name[96];
  std::snprintf(name, sizeof name, "%s-%016llx-%d.%d-%s.cubin", source.name,
                static_cast<unsigned long long>(hash(source.text)), major, minor, arch.c_str());
  return folder / "ruminate" / name;
}

// From the cache, or compiled and put there. A cache that cannot be written costs time only.
std::string code_of(Kernel kernel, const std::string &arch, bool recompile) {
  const auto *compiler = nvrtc();
  TORCH_CHECK(compiler, "NVRTC, which compiles kernels, was not found: install NVIDIA's nvidia-cuda-nvrtc beside libtorch");
  const auto file = cache_file(*compiler, kernel, arch);
  if (!recompile && !file.empty()) {
    std::ifstream from(file, std::ios::binary);
    std::string code((std::istreambuf_iterator<char>(from)), std::istreambuf_iterator<char>());
    if (from && !code.empty()) {
      return code;
    }
  }
  auto code = compile(*compiler, kernel, arch);
  if (!file.empty()) {
    std::error_code ignored;
    fs::create_directories(file.parent_path(), ignored);
    // Nobody reads half a file.
    auto temporary = file;
    temporary += "." + std::to_string(getpid());
    std::ofstream to(temporary, std::ios::binary);
    to << code;
    to.close();
    if (to) {
      fs::rename(temporary, file, ignored);
    } else {
      fs::remove(temporary, ignored);
    }
  }
  return code;
}

#ifdef RUMINATE_KERNELS
// As in cuda.h.
struct Driver {
  using Result = int;

  explicit Driver(void *library)
      : load(symbol<Result(void **, const void *)>(library, "cuModuleLoadData")),
        function(symbol<Result(void **, void *, const char *)>(library, "cuModuleGetFunction")),
        launch(symbol<Result(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **)>(
            library, "cuLaunchKernel")),
        error(symbol<Result(Result, const char **)>(library, "cuGetErrorString")) {}

  void check(Result result, const std::string &doing) const {
    const char *text = nullptr;
    if (result != 0) {
      error(result, &text);
    }
    TORCH_CHECK(result == 0, doing, ": ", text == nullptr ? "unknown error" : text);
  }

  Result (*load)(void **, const void *);
  Result (*function)(void **, void *, const char *);
  Result (*launch)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **);
  Result (*error)(Result, const char **);
};

const Driver &driver() {
  static const Driver *loaded = [] {
    void *library = open_library({"libcuda.so.1"});
    TORCH_CHECK(library, "NVIDIA's driver (libcuda.so.1) was not found");
    return new Driver(library);
  }();
  return *loaded;
}

void *function_on(Kernel kernel, const std::string &name, int device) {
  static std::mutex mutex;
  static std::map<std::pair<Kernel, int>, void *> modules;
  static std::map<std::pair<std::string, int>, void *> functions;
  const std::lock_guard lock(mutex);
  auto &function = functions[{name, device}];
  if (function == nullptr) {
    auto &module = modules[{kernel, device}];
    if (module == nullptr) {
      const auto &properties = *at::cuda::getDeviceProperties(static_cast<c10::DeviceIndex>(device));
      const auto arch = "sm_" + std::to_string(properties.major) + std::to_string(properties.minor);
      if (driver().load(&module, code_of(kernel, arch, false).data()) != 0) {
        // What is in the cache may be damaged.
        driver().check(driver().load(&module, code_of(kernel, arch, true).data()), "loading a kernel");
      }
    }
    driver().check(driver().function(&function, module, name.c_str()), "looking for " + name);
  }
  return function;
}
#endif

} // namespace

bool by_kernel(Kernel kernel, const at::Tensor &x) {
  const bool on = emulator != nullptr ? x.is_cpu() : x.is_cuda() && (turned_on >> static_cast<int>(kernel) & 1u) != 0;
  return on && x.layout() == at::kStrided && (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16);
}

int64_t block_size() { return emulator != nullptr ? EMULATED_BLOCK : BLOCK; }

int64_t blocks_for(int64_t elements) {
  return std::min((elements + block_size() - 1) / block_size(), emulator != nullptr ? 4 : MOST_BLOCKS);
}

void start_kernel(Kernel kernel, const std::string &function, const at::Tensor &x, int64_t blocks, size_t shared,
                  void **arguments) {
  if (emulator != nullptr) {
    emulator(function, blocks, shared, arguments);
    return;
  }
#ifdef RUMINATE_KERNELS
  const c10::DeviceGuard guard(x.device());
  // Makes the device's context that of this thread, which may not have used it yet.
  c10::cuda::set_device(x.device().index(), true);
  auto *code = function_on(kernel, function, x.device().index());
  auto *stream = c10::cuda::getCurrentCUDAStream(x.device().index()).stream();
  driver().check(driver().launch(code, static_cast<unsigned>(blocks), 1, 1, BLOCK, 1, 1, static_cast<unsigned>(shared), stream,
                                 arguments, nullptr),
                 "starting " + function);
#else
  TORCH_CHECK(false, "this build has no kernels for ", x.device());
#endif
}

void emulate(Emulator with) { emulator = with; }

extern "C" unsigned ruminate_kernels_on() { return turned_on; }

extern "C" int ruminate_turn_on_kernels(unsigned kernels, char **error) {
  return guarded(error, [&] {
#ifndef RUMINATE_KERNELS
    // Steps of a fixed shape are taken on the CPU too, for tests.
    TORCH_CHECK((kernels & ~(1u << static_cast<int>(Kernel::Graphs))) == 0, "this build has no kernels: it was made without CUDA, or CUDA's headers were not found beside libtorch");
#endif
    turned_on = kernels;
  });
}

extern "C" int ruminate_compile_kernel(int kernel, const char *arch, int64_t *bytes, char **error) {
  return guarded(error, [&] {
    const bool own = kernel < static_cast<int>(std::size(SOURCES));
    const auto *compiler = own ? nvrtc() : nullptr;
    *bytes = compiler == nullptr ? -1 : static_cast<int64_t>(compile(*compiler, static_cast<Kernel>(kernel), arch).size());
  });
}
