#include "guard.h"
#include "group.h"

#include <chrono>
#include <cstdlib>
#include <string>
#include <vector>

#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#ifdef RUMINATE_NCCL
#define USE_C10D_NCCL
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

namespace {

c10d::ReduceOp reduction(int op) { return op == 2 ? c10d::ReduceOp::MAX : c10d::ReduceOp::SUM; }

// Gloo has no mean.
void finish(at::Tensor &tensor, int op, int size) {
  if (op == 1) {
    tensor.div_(size);
  }
}

c10::intrusive_ptr<c10d::Backend> over_gloo(const c10::intrusive_ptr<c10d::Store> &store, const std::string &host, int rank,
                                       int size, std::chrono::milliseconds timeout) {
  using Gloo = c10d::ProcessGroupGloo;
  auto options = Gloo::Options::create(timeout);
  const bool loopback = host == "localhost" || host == "::1" || host.rfind("127.", 0) == 0;
  if (const char *interface = std::getenv("GLOO_SOCKET_IFNAME"); interface && *interface) {
    options->devices.push_back(Gloo::createDeviceForInterface(interface));
  } else if (loopback) {
    options->devices.push_back(Gloo::createDeviceForHostname(host));
  } else {
    options->devices.push_back(Gloo::createDefaultDevice());
  }
  return c10::make_intrusive<Gloo>(store, rank, size, options);
}

#ifdef RUMINATE_NCCL
c10::intrusive_ptr<c10d::Backend> over_nccl(const c10::intrusive_ptr<c10d::Store> &store, int rank, int size,
                                       std::chrono::milliseconds timeout) {
  // Errors and time-outs come out of wait(), instead of ending the process from a thread of NCCL's.
  setenv("TORCH_NCCL_BLOCKING_WAIT", "1", 0);
  auto options = c10d::ProcessGroupNCCL::Options::create();
  options->timeout = timeout;
  return c10::make_intrusive<c10d::ProcessGroupNCCL>(store, rank, size, options);
}
#else
c10::intrusive_ptr<c10d::Backend> over_nccl(const c10::intrusive_ptr<c10d::Store> &, int, int, std::chrono::milliseconds) {
  TORCH_CHECK(false, "this build has no NCCL: its headers (nccl.h and those of CUDA) were not found beside libtorch");
}
#endif

} // namespace

extern "C" {

int ruminate_group_join(const char *host, uint16_t port, int serve, const char *prefix, int rank, int size, int device_index,
                        int64_t timeout_ms, ruminate_group **out, char **error) {
  return guarded(error, [&] {
    const std::chrono::milliseconds timeout(timeout_ms);
    auto group = std::make_unique<ruminate_group>();
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = serve != 0;
    // Who else uses a store that is not ours nobody can tell.
    if (*prefix == 0) {
      options.numWorkers = size;
    }
    options.timeout = timeout;
    group->store = c10::make_intrusive<c10d::TCPStore>(host, options);
    group->store->setTimeout(timeout);
    if (*prefix != 0) {
      group->store = c10::make_intrusive<c10d::PrefixStore>(prefix, group->store);
    }
    if (device_index < 0) {
      group->backend = over_gloo(group->store, host, rank, size, timeout);
    } else {
      group->device = at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(device_index));
      group->backend = over_nccl(group->store, rank, size, timeout);
    }
    *out = group.release();
  });
}

void ruminate_group_free(ruminate_group *group) {
  try {
    delete group;
  } catch (...) {
    // Nobody is left to tell.
  }
}

int ruminate_all_reduce(ruminate_group *group, at::Tensor *tensor, int op, char **error) {
  return guarded(error, [&] {
    at::NoGradGuard no_grad;
    auto data = tensor->contiguous();
    all_reduce(*group, data, reduction(op))->wait();
    finish(data, op, group->backend->getSize());
    if (!data.is_same(*tensor)) {
      tensor->copy_(data);
    }
  });
}

int ruminate_broadcast(ruminate_group *group, at::Tensor *tensor, int from, char **error) {
  return guarded(error, [&] {
    at::NoGradGuard no_grad;
    std::vector<at::Tensor> tensors{tensor->detach().contiguous()};
    c10d::BroadcastOptions options;
    options.rootRank = from;
    group->backend->broadcast(tensors, options)->wait();
    if (!tensors[0].is_alias_of(*tensor)) {
      tensor->copy_(tensors[0]);
    }
  });
}

int ruminate_all_gather(ruminate_group *group, at::Tensor *tensor, at::Tensor **out, char **error) {
  return guarded(error, [&] {
    at::NoGradGuard no_grad;
    auto shape = tensor->sizes().vec();
    shape.insert(shape.begin(), group->backend->getSize());
    auto all = at::empty(shape, tensor->options().requires_grad(false));
    std::vector<at::Tensor> inputs{tensor->detach().contiguous()};
    std::vector<std::vector<at::Tensor>> outputs{all.unbind(0)};
    group->backend->allgather(outputs, inputs)->wait();
    *out = new at::Tensor(all);
  });
}

int ruminate_reduce_scatter(ruminate_group *group, at::Tensor *tensor, int op, at::Tensor **out, char **error) {
  return guarded(error, [&] {
    at::NoGradGuard no_grad;
    const int size = group->backend->getSize(), rank = group->backend->getRank();
    TORCH_CHECK(tensor->dim() > 0 && tensor->size(0) == size, "the first dimension must be that of the ranks, ", size);
    at::Tensor own;
    if (group->device.is_cpu()) {
      // Gloo's own is an all-reduce as well, and knows sums only.
      auto all = tensor->detach().clone(at::MemoryFormat::Contiguous);
      all_reduce(*group, all, reduction(op))->wait();
      own = all.select(0, rank).clone();
    } else {
      auto input = tensor->detach().contiguous();
      own = at::empty_like(input.select(0, 0), at::MemoryFormat::Contiguous);
      c10d::ReduceScatterOptions options;
      options.reduceOp = reduction(op);
      group->backend->_reduce_scatter_base(own, input, options)->wait();
    }
    finish(own, op, size);
    *out = new at::Tensor(own);
  });
}

int ruminate_barrier(ruminate_group *group, char **error) {
  return guarded(error, [&] {
    // Not NCCL's own, which would have to guess the device.
    auto one = at::empty({1}, at::TensorOptions(group->device)).zero_();
    all_reduce(*group, one, c10d::ReduceOp::SUM)->wait();
  });
}
}
