// Memory for programs that train: the C library's heap in huge pages, and tensors in blocks that fit into what others leave.

#include "shim.h"

#ifdef __GLIBC__
#include <c10/core/Allocator.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <cstdlib>
#include <malloc.h>
#include <mutex>
#include <sys/mman.h>
#include <unistd.h>

// Exported by libtorch_cpu where it holds MKL.
extern "C" [[gnu::weak]] int mkl_serv_disable_fast_mm();

namespace {

// libtorch asks for aligned blocks. For each, the C library looks for one that is larger by the alignment, and gives the ends
// back: what a tensor has left never fits the next of its size, and the heap gets holes. These blocks are aligned here, within
// plain ones.
class TensorMemory final : public c10::Allocator {
public:
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) {
      return {nullptr, nullptr, &release, c10::kCPU};
    }
    constexpr size_t MORE = ALIGNMENT + sizeof(void *);
    void *block = bytes <= SIZE_MAX - MORE ? std::malloc(bytes + MORE) : nullptr;
    TORCH_CHECK(block != nullptr, "not enough memory: ", bytes, " bytes were asked for");
    const auto data = (reinterpret_cast<uintptr_t>(block) + MORE) & ~(uintptr_t{ALIGNMENT} - 1);
    auto *begin = reinterpret_cast<void *>(data);
    // Whose block it is stands in front of it.
    static_cast<void **>(begin)[-1] = block;
    return {begin, begin, &release, c10::kCPU};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release; }

  void copy_data(void *to, const void *from, size_t bytes) const override { default_copy_data(to, from, bytes); }

private:
  static constexpr size_t ALIGNMENT = 64;

  static void release(void *data) {
    if (data != nullptr) {
      std::free(static_cast<void **>(data)[-1]);
    }
  }
};

void keep() {
  static TensorMemory memory;
  c10::SetAllocator(c10::kCPU, &memory, 1);
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
  // MKL would keep what its products work in, for each of them and each thread; the heap does so for all.
  if (mkl_serv_disable_fast_mm != nullptr) {
    mkl_serv_disable_fast_mm();
  }
}

} // namespace
#endif

extern "C" void ruminate_keep_freed_memory() {
#ifdef __GLIBC__
  static std::once_flag once;
  std::call_once(once, keep);
#endif
}
