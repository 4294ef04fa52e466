// What the files over c10d share.
#pragma once
#include "dist.h"

#include <vector>

#include <ATen/core/Tensor.h>

#define USE_C10D_GLOO
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

struct ruminate_group {
  c10::intrusive_ptr<c10d::Store> store;
  c10::intrusive_ptr<c10d::Backend> backend;
  at::Device device = at::kCPU;
};

using Work = c10::intrusive_ptr<c10d::Work>;

inline Work all_reduce(ruminate_group &group, const at::Tensor &tensor, c10d::ReduceOp op) {
  std::vector<at::Tensor> tensors{tensor};
  c10d::AllreduceOptions options;
  options.reduceOp = op;
  return group.backend->allreduce(tensors, options);
}
