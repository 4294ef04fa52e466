// Runs the kernels on the CPU, so that tests hold them to what they replace on machines without a GPU: a block's threads are
// coroutines, which stop where threads wait for each other. Only tests link this file; coroutines are those of glibc.

#include <cstdlib>

#if defined(__linux__) && defined(__GLIBC__)

#include "kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include <ucontext.h>

namespace emulated {

using ::expf, ::logf;

struct Index {
  unsigned x;
};

enum class Waiting { Nothing, Warp, Block, Ended };

struct Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Waiting waiting = Waiting::Nothing;
  // What the others of the warp may look at.
  uint64_t shown = 0;
};

thread_local Index threadIdx, blockIdx, blockDim, gridDim;
thread_local std::vector<Thread> threads;
thread_local ucontext_t scheduler;
thread_local std::vector<std::max_align_t> dynamic;
thread_local const std::function<void()> *body;
thread_local int64_t started = 0;

void wait(Waiting what) {
  const auto own = threadIdx;
  threads[own.x].waiting = what;
  swapcontext(&threads[own.x].context, &scheduler);
  threadIdx = own;
}

void enter() {
  (*body)();
  wait(Waiting::Ended);
}

void run_block() {
  constexpr size_t STACK = 64 << 10;
  threads.clear();
  threads.resize(blockDim.x);
  for (auto &thread : threads) {
    thread.stack = std::make_unique<char[]>(STACK);
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = STACK;
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, enter, 0);
  }
  const auto all = [](auto begin, auto end, Waiting what) {
    return std::all_of(begin, end, [&](const Thread &thread) { return thread.waiting == what || thread.waiting == Waiting::Ended; });
  };
  const auto go_on = [](auto begin, auto end) {
    std::for_each(begin, end, [](Thread &thread) {
      thread.waiting = thread.waiting == Waiting::Ended ? Waiting::Ended : Waiting::Nothing;
    });
  };
  while (!all(threads.begin(), threads.end(), Waiting::Ended)) {
    bool moved = false;
    for (unsigned i = 0; i < threads.size(); ++i) {
      if (threads[i].waiting == Waiting::Nothing) {
        threadIdx = {i};
        swapcontext(&scheduler, &threads[i].context);
        moved = true;
      }
    }
    for (auto begin = threads.begin(); begin != threads.end(); begin += 32) {
      if (all(begin, begin + 32, Waiting::Warp) && !all(begin, begin + 32, Waiting::Ended)) {
        go_on(begin, begin + 32);
        moved = true;
      }
    }
    if (all(threads.begin(), threads.end(), Waiting::Block)) {
      go_on(threads.begin(), threads.end());
      moved = true;
    }
    TORCH_CHECK(moved, "threads of a block wait for each other at different places");
  }
}

void __syncthreads() { wait(Waiting::Block); }

template <typename T> T __shfl_xor_sync(unsigned, T x, int mask) {
  std::memcpy(&threads[threadIdx.x].shown, &x, sizeof x);
  wait(Waiting::Warp);
  T other;
  std::memcpy(&other, &threads[threadIdx.x ^ static_cast<unsigned>(mask)].shown, sizeof other);
  wait(Waiting::Warp);
  return other;
}

unsigned __ballot_sync(unsigned, bool yes) {
  threads[threadIdx.x].shown = yes;
  wait(Waiting::Warp);
  unsigned lanes = 0;
  for (unsigned i = 0; i < 32; ++i) {
    lanes |= static_cast<unsigned>(threads[threadIdx.x / 32 * 32 + i].shown) << i;
  }
  wait(Waiting::Warp);
  return lanes;
}

int __popc(unsigned x) { return __builtin_popcount(x); }

void atomicAdd(unsigned long long *to, unsigned long long x) { *to += x; }

unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

#define KERNEL inline void
#define __device__
#define __shared__ static thread_local
#define DYNAMIC_SHARED(T, name) T *name = reinterpret_cast<T *>(dynamic.data())

#include "kernels/common.cuh"
#include "kernels/arguments.h"
namespace log_probs_cu {
#include "kernels/log_probs.cu"
}
namespace top_p_cu {
#include "kernels/top_p.cu"
}
namespace decode_attention_cu {
#include "kernels/decode_attention.cu"
}
namespace rope_cu {
#include "kernels/rope.cu"
}
namespace gate_cu {
#include "kernels/gate.cu"
}

template <typename... P, size_t... I> void call(void (*kernel)(P...), void **arguments, std::index_sequence<I...>) {
  kernel(*static_cast<P *>(arguments[I])...);
}

template <typename... P> std::function<void(void **)> callable(void (*kernel)(P...)) {
  return [kernel](void **arguments) { call(kernel, arguments, std::index_sequence_for<P...>()); };
}

void run(const std::string &function, int64_t blocks, size_t shared, void **arguments) {
  static const std::map<std::string, std::function<void(void **)>> kernels = {
      {"log_probs", callable(log_probs_cu::log_probs)},
      {"log_probs_slopes_f32", callable(log_probs_cu::log_probs_slopes_f32)},
      {"log_probs_slopes_bf16", callable(log_probs_cu::log_probs_slopes_bf16)},
      {"top_p", callable(top_p_cu::top_p)},
      {"decode_attention_f32", callable(decode_attention_cu::decode_attention_f32)},
      {"decode_attention_bf16", callable(decode_attention_cu::decode_attention_bf16)},
      {"decode_attention_bf16_bf16", callable(decode_attention_cu::decode_attention_bf16_bf16)},
      {"rope_f32", callable(rope_cu::rope_f32)},
      {"rope_bf16", callable(rope_cu::rope_bf16)},
      {"gate_f32", callable(gate_cu::gate_f32)},
      {"gate_bf16", callable(gate_cu::gate_bf16)},
      {"gate_slopes_f32", callable(gate_cu::gate_slopes_f32)},
      {"gate_slopes_bf16", callable(gate_cu::gate_slopes_bf16)},
  };
  const auto &kernel = kernels.at(function);
  const std::function<void()> once = [&] { kernel(arguments); };
  body = &once;
  ++started;
  dynamic.assign(shared / sizeof(std::max_align_t) + 1, {});
  blockDim = {static_cast<unsigned>(block_size())};
  gridDim = {static_cast<unsigned>(blocks)};
  for (unsigned block = 0; block < gridDim.x; ++block) {
    blockIdx = {block};
    run_block();
  }
}

} // namespace emulated

extern "C" int64_t ruminate_emulate_kernels(int on) {
  emulate(on ? emulated::run : nullptr);
  return std::exchange(emulated::started, 0);
}

#endif
