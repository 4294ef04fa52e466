#include "guard.h"
#include "group.h"

#include <memory>
#include <mutex>
#include <string>

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

namespace {

struct Bucket {
  std::vector<size_t> members;
  // The rank that gets the sum; -1 for all.
  int owner = -1;
  // Members without a gradient so far.
  size_t waiting = 0;
  at::Tensor flat;
  Work work;
};

} // namespace

struct ruminate_reducer {
  ruminate_group &group;
  std::vector<at::Tensor> params;
  std::vector<Bucket> buckets;
  // SIZE_MAX for parameters that are in none.
  std::vector<size_t> bucket_of;
  // Where buckets leave memory once they are sent, so many are there at a time.
  size_t in_flight;
  // Of the current round: the backward pass was through with it; it was sent with a gradient.
  std::vector<bool> ready, sent;
  // Of all rounds: this rank had a gradient; the sum, as far as it is known here.
  std::vector<bool> present;
  std::vector<at::Tensor> sums;
  size_t launched = 0, received = 0;
  bool active = false;
  // A failure within the backward pass; `finish` tells of it.
  std::string failure;
  int64_t bytes = 0;
  // CUDA's gradients come from a thread of libtorch's.
  std::mutex mutex;

  ruminate_reducer(ruminate_group &group, at::Tensor *const *tensors, size_t count, size_t in_flight)
      : group(group), params(count), bucket_of(count, SIZE_MAX), in_flight(in_flight), ready(count), sent(count), present(count),
        sums(count) {
    for (size_t i = 0; i < count; ++i) {
      params[i] = *tensors[i];
    }
  }

  bool mine(const Bucket &bucket) const { return bucket.owner < 0 || bucket.owner == group.backend->getRank(); }

  at::Tensor flat(const std::vector<size_t> &members) const {
    int64_t numbers = 0;
    for (size_t i : members) {
      numbers += params[i].numel();
    }
    return at::empty({numbers}, params[members[0]].options().requires_grad(false));
  }

  // Calls `use` with each member's part of a flat tensor.
  template <typename F> void parts(const at::Tensor &flat, const std::vector<size_t> &members, F use) const {
    int64_t offset = 0;
    for (size_t i : members) {
      use(i, flat.narrow(0, offset, params[i].numel()).view(params[i].sizes()));
      offset += params[i].numel();
    }
  }

  // Takes the gradients from the parameters. One that comes later is then seen to be there.
  at::Tensor take(const std::vector<size_t> &members) {
    auto all = flat(members);
    parts(all, members, [&](size_t i, at::Tensor part) {
      auto &grad = params[i].mutable_grad();
      if (grad.defined()) {
        part.copy_(grad);
        grad.reset();
        present[i] = true;
      } else {
        part.zero_();
      }
    });
    return all;
  }

  void add(size_t i, const at::Tensor &sum) {
    if (sums[i].defined()) {
      sums[i].add_(sum);
    } else {
      sums[i] = sum;
    }
  }

  void launch() {
    auto &bucket = buckets[launched];
    while (bucket.owner >= 0 && launched - received >= in_flight) {
      receive();
    }
    bucket.flat = take(bucket.members);
    bytes += static_cast<int64_t>(bucket.flat.nbytes());
    if (bucket.owner < 0) {
      bucket.work = all_reduce(group, bucket.flat, c10d::ReduceOp::SUM);
    } else {
      std::vector<at::Tensor> tensors{bucket.flat};
      c10d::ReduceOptions options;
      options.reduceOp = c10d::ReduceOp::SUM;
      options.rootRank = bucket.owner;
      bucket.work = group.backend->reduce(tensors, options);
    }
    for (size_t i : bucket.members) {
      sent[i] = true;
    }
    ++launched;
  }

  void receive() {
    auto &bucket = buckets[received++];
    bucket.work->wait();
    bucket.work.reset();
    if (mine(bucket)) {
      parts(bucket.flat, bucket.members, [&](size_t i, const at::Tensor &part) { add(i, part); });
    }
    bucket.flat.reset();
  }

  void begin() {
    std::lock_guard<std::mutex> lock(mutex);
    for (auto &bucket : buckets) {
      bucket.waiting = bucket.members.size();
    }
    ready.assign(params.size(), false);
    sent.assign(params.size(), false);
    launched = received = 0;
    failure.clear();
    active = true;
  }

  // A gradient is there. All ranks send buckets in the same order, so one that is full waits for those before it.
  void arrived(size_t i) {
    std::lock_guard<std::mutex> lock(mutex);
    if (!active || ready[i] || !failure.empty()) {
      return;
    }
    ready[i] = true;
    --buckets[bucket_of[i]].waiting;
    try {
      at::NoGradGuard no_grad;
      while (launched < buckets.size() && buckets[launched].waiting == 0) {
        launch();
      }
    } catch (const c10::Error &e) {
      failure = e.what_without_backtrace();
    } catch (const std::exception &e) {
      failure = e.what();
    }
  }

  void finish(bool last) {
    std::lock_guard<std::mutex> lock(mutex);
    at::NoGradGuard no_grad;
    active = false;
    TORCH_CHECK(failure.empty(), failure);
    while (launched < buckets.size()) {
      launch();
    }
    while (received < buckets.size()) {
      receive();
    }
    // What every rank must know: which parameters have a gradient somewhere, and which got another one after they were sent (where
    // a backward pass meets one several times).
    const auto count = static_cast<int64_t>(params.size());
    auto flags = at::zeros({2, count}, at::kByte);
    auto *flag = flags.data_ptr<uint8_t>();
    for (int64_t i = 0; i < count; ++i) {
      flag[count + i] = sent[i] && params[i].grad().defined();
      flag[i] = present[i];
    }
    auto all = flags.to(group.device);
    all_reduce(group, all, c10d::ReduceOp::MAX)->wait();
    all = all.cpu();
    flag = all.data_ptr<uint8_t>();
    for (int64_t i = 0; i < count; ++i) {
      if (flag[count + i]) {
        auto again = take({static_cast<size_t>(i)});
        bytes += static_cast<int64_t>(again.nbytes());
        all_reduce(group, again, c10d::ReduceOp::SUM)->wait();
        if (mine(buckets[bucket_of[i]])) {
          add(i, again.view(params[i].sizes()));
        }
      }
    }
    if (!last) {
      return;
    }
    for (int64_t i = 0; i < count; ++i) {
      if (bucket_of[i] != SIZE_MAX) {
        params[i].mutable_grad() = flag[i] ? sums[i] : at::Tensor();
      }
      sums[i].reset();
      present[i] = false;
    }
  }

  void publish() {
    at::NoGradGuard no_grad;
    const int rank = group.backend->getRank();
    const auto copy = [&](size_t at, const at::Tensor &flat) {
      parts(flat, buckets[at].members, [&](size_t i, at::Tensor part) {
        auto param = params[i].detach();
        buckets[at].owner == rank ? part.copy_(param) : param.copy_(part);
      });
    };
    size_t launched = 0, received = 0;
    const auto receive = [&] {
      auto &bucket = buckets[received];
      bucket.work->wait();
      bucket.work.reset();
      if (bucket.owner != rank) {
        copy(received, bucket.flat);
      }
      bucket.flat.reset();
      ++received;
    };
    for (; launched < buckets.size(); ++launched) {
      auto &bucket = buckets[launched];
      if (launched - received >= in_flight) {
        receive();
      }
      bucket.flat = flat(bucket.members);
      if (bucket.owner == rank) {
        copy(launched, bucket.flat);
      }
      bytes += static_cast<int64_t>(bucket.flat.nbytes());
      std::vector<at::Tensor> tensors{bucket.flat};
      c10d::BroadcastOptions options;
      options.rootRank = bucket.owner;
      bucket.work = group.backend->broadcast(tensors, options);
    }
    while (received < buckets.size()) {
      receive();
    }
  }
};

namespace {

struct Arrival : torch::autograd::PostAccumulateGradHook {
  ruminate_reducer *reducer;
  size_t index;
  Arrival(ruminate_reducer *reducer, size_t index) : reducer(reducer), index(index) {}
  void operator()(const torch::autograd::Variable &) override { reducer->arrived(index); }
};

} // namespace

extern "C" {

int ruminate_reducer_new(ruminate_group *group, at::Tensor *const *params, size_t count, const size_t *members, const size_t *sizes,
                         const int *owners, size_t buckets, size_t in_flight, ruminate_reducer **out, char **error) {
  return guarded(error, [&] {
    auto reducer = std::make_unique<ruminate_reducer>(*group, params, count, in_flight);
    for (size_t at = 0; at < buckets; ++at) {
      Bucket bucket;
      bucket.members.assign(members, members + sizes[at]);
      bucket.owner = owners[at];
      members += sizes[at];
      for (size_t i : bucket.members) {
        TORCH_CHECK(reducer->params[i].is_leaf(), "parameter ", i, " is computed from others");
        reducer->bucket_of[i] = at;
      }
      reducer->buckets.push_back(std::move(bucket));
    }
    for (size_t i = 0; i < count; ++i) {
      if (reducer->bucket_of[i] != SIZE_MAX) {
        torch::autograd::impl::set_post_acc_grad_hooks(reducer->params[i], std::make_unique<Arrival>(reducer.get(), i));
      }
    }
    *out = reducer.release();
  });
}

void ruminate_reducer_free(ruminate_reducer *reducer) {
  try {
    for (size_t i = 0; i < reducer->params.size(); ++i) {
      if (reducer->bucket_of[i] != SIZE_MAX) {
        torch::autograd::impl::set_post_acc_grad_hooks(reducer->params[i], nullptr);
      }
    }
    delete reducer;
  } catch (...) {
    // Nobody is left to tell.
  }
}

void ruminate_reducer_begin(ruminate_reducer *reducer) { reducer->begin(); }

int ruminate_reducer_finish(ruminate_reducer *reducer, int last, char **error) {
  return guarded(error, [&] { reducer->finish(last != 0); });
}

int ruminate_reducer_publish(ruminate_reducer *reducer, char **error) {
  return guarded(error, [&] { reducer->publish(); });
}

int64_t ruminate_reducer_bytes(const ruminate_reducer *reducer) { return reducer->bytes; }
}
