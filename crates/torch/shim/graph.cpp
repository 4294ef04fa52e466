// CUDA graphs: what is recorded once is started by a single call.

#include "guard.h"
#include "shim.h"

#ifdef RUMINATE_KERNELS
#include <ATen/cuda/CUDAGraph.h>
// Nothing of CUDA's runtime itself, which is not linked.
#include <c10/core/DeviceGuard.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#endif

#include <map>
#include <mutex>
#include <optional>

#ifdef RUMINATE_KERNELS
namespace {

// A graph cannot be recorded on the default stream. One for all: what libtorch keeps for each stream is then there once.
c10::cuda::CUDAStream recording_stream(c10::DeviceIndex device) {
  static std::mutex mutex;
  static std::map<c10::DeviceIndex, c10::cuda::CUDAStream> streams;
  const std::lock_guard lock(mutex);
  const auto found = streams.find(device);
  return found != streams.end() ? found->second : streams.emplace(device, c10::cuda::getStreamFromPool(false, device)).first->second;
}

} // namespace

struct ruminate_graph {
  at::cuda::CUDAGraph graph;
  // What was current before, while recording.
  std::optional<c10::cuda::CUDAStream> before;
  c10::DeviceIndex device;
  bool broken = false;

  explicit ruminate_graph(c10::DeviceIndex device) : device(device) {
    const c10::DeviceGuard guard(at::Device(at::kCUDA, device));
    const auto stream = recording_stream(device);
    const auto current = c10::cuda::getCurrentCUDAStream(device);
    c10::cuda::device_synchronize();
    c10::cuda::setCurrentCUDAStream(stream);
    before = current;
    try {
      graph.capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal);
    } catch (...) {
      c10::cuda::setCurrentCUDAStream(current);
      throw;
    }
  }

  void end() {
    if (!before) {
      return;
    }
    const c10::DeviceGuard guard(at::Device(at::kCUDA, device));
    const auto current = *before;
    before.reset();
    try {
      graph.capture_end();
    } catch (...) {
      broken = true;
      c10::cuda::setCurrentCUDAStream(current);
      throw;
    }
    c10::cuda::setCurrentCUDAStream(current);
  }
};
#else
struct ruminate_graph {};
#endif

extern "C" {

int ruminate_graph_begin(int device, ruminate_graph **out, char **error) {
  return guarded(error, [&] {
#ifdef RUMINATE_KERNELS
    *out = new ruminate_graph(static_cast<c10::DeviceIndex>(device));
#else
    TORCH_CHECK(false, "this build has no CUDA graphs: it was made without CUDA, or CUDA's headers were not found beside libtorch");
#endif
  });
}

int ruminate_graph_end(ruminate_graph *graph, char **error) {
  return guarded(error, [&] {
#ifdef RUMINATE_KERNELS
    graph->end();
#endif
  });
}

int ruminate_graph_replay(ruminate_graph *graph, char **error) {
  return guarded(error, [&] {
#ifdef RUMINATE_KERNELS
    const c10::DeviceGuard guard(at::Device(at::kCUDA, graph->device));
    graph->graph.replay();
#endif
  });
}

void ruminate_graph_free(ruminate_graph *graph) {
  try {
#ifdef RUMINATE_KERNELS
    graph->end();
    // Where a recording did not end, libtorch's allocator still refers to it.
    if (graph->broken) {
      return;
    }
#endif
    delete graph;
  } catch (...) {
    // Nobody is left to tell.
  }
}
}
