// Activation checkpointing: a closure's activations are dropped after the forward pass and made again in the backward
// pass, with the random generators and autocast as they were.

#include "guard.h"
#include "shim.h"

#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

constexpr at::DeviceType kDevices[] = {at::kCPU, at::kCUDA};

struct Autocast {
  bool enabled[2];
  at::ScalarType kind[2];
  bool cache;

  static Autocast now() {
    Autocast state{};
    for (int i = 0; i < 2; ++i) {
      state.enabled[i] = at::autocast::is_autocast_enabled(kDevices[i]);
      state.kind[i] = at::autocast::get_autocast_dtype(kDevices[i]);
    }
    state.cache = at::autocast::is_autocast_cache_enabled();
    return state;
  }

  void set() const {
    for (int i = 0; i < 2; ++i) {
      at::autocast::set_autocast_enabled(kDevices[i], enabled[i]);
      at::autocast::set_autocast_dtype(kDevices[i], kind[i]);
    }
    at::autocast::set_autocast_cache_enabled(cache);
  }
};

// States of the CPU's generator, and of a CUDA device's where the inputs lie on one.
struct Generators {
  std::optional<at::Device> cuda;
  at::Tensor cpu_state, cuda_state;

  static at::Tensor get(at::Device device) {
    auto generator = at::globalContext().defaultGenerator(device);
    std::lock_guard<std::mutex> lock(generator.mutex());
    return generator.get_state();
  }

  static void put(at::Device device, const at::Tensor &state) {
    auto generator = at::globalContext().defaultGenerator(device);
    std::lock_guard<std::mutex> lock(generator.mutex());
    generator.set_state(state);
  }

  static Generators now(std::optional<at::Device> cuda) {
    return {cuda, get(at::kCPU), cuda ? get(*cuda) : at::Tensor()};
  }

  void set() const {
    put(at::kCPU, cpu_state);
    if (cuda) {
      put(*cuda, cuda_state);
    }
  }
};

// Puts back what was in force, whatever happens.
struct Restore {
  Autocast autocast = Autocast::now();
  std::optional<Generators> generators;
  ~Restore() {
    try {
      autocast.set();
      if (generators) {
        generators->set();
      }
    } catch (...) {
      // These are states that were in force; an exception here would end the process.
    }
  }
};

// The Rust closure, and what it ran under.
struct Body : torch::CustomClassHolder {
  void *closure;
  ruminate_body call;
  void (*drop)(void *);
  Autocast autocast = Autocast::now();
  std::optional<Generators> generators;

  Body(void *closure, ruminate_body call, void (*drop)(void *)) : closure(closure), call(call), drop(drop) {}
  Body(const Body &) = delete;
  ~Body() override { drop(closure); }

  at::Tensor run(const variable_list &inputs) {
    std::vector<at::Tensor *> owned;
    for (const auto &input : inputs) {
      owned.push_back(new at::Tensor(input));
    }
    at::Tensor *out = nullptr;
    std::string message;
    // The callee owns the inputs from here on.
    if (call(closure, owned.data(), owned.size(), &out, &message) != 0) {
      throw std::runtime_error(message);
    }
    at::Tensor result = *out;
    delete out;
    return result;
  }

  // With a graph in both passes, so that code that asks whether gradients are wanted does the same in both. Copies of
  // weights in lower precision are not kept: those of one pass must not be used in the other.
  at::Tensor run_with_graph(const variable_list &inputs, const std::vector<bool> &needs_grad, variable_list &leaves) {
    at::AutoGradMode grad_mode(true);
    for (size_t i = 0; i < inputs.size(); ++i) {
      leaves.push_back(inputs[i].detach().requires_grad_(needs_grad[i]));
    }
    at::autocast::set_autocast_cache_enabled(false);
    return run(leaves);
  }
};

struct Checkpoint : public Function<Checkpoint> {
  // `anchor` requires a gradient, so that parameters of the closure get theirs where no input needs one.
  static variable_list forward(AutogradContext *ctx, at::TensorList inputs, const at::Tensor & /*anchor*/,
                               const c10::intrusive_ptr<Body> &body) {
    variable_list saved(inputs.begin(), inputs.end()), leaves;
    std::vector<bool> needs_grad;
    std::optional<at::Device> cuda;
    for (const auto &input : inputs) {
      needs_grad.push_back(input.requires_grad());
      if (input.is_cuda()) {
        cuda = input.device();
      }
    }
    body->generators = Generators::now(cuda);
    Restore restore;
    auto out = body->run_with_graph(saved, needs_grad, leaves).detach();
    ctx->save_for_backward(saved);
    ctx->saved_data["body"] = at::IValue::make_capsule(body);
    c10::List<bool> flags;
    for (bool needs : needs_grad) {
      flags.push_back(needs);
    }
    ctx->saved_data["needs_grad"] = flags;
    return {out};
  }

  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    auto body = c10::static_intrusive_pointer_cast<Body>(ctx->saved_data["body"].toCapsule());
    auto inputs = ctx->get_saved_variables();
    std::vector<bool> needs_grad;
    for (bool needs : ctx->saved_data["needs_grad"].toBoolList()) {
      needs_grad.push_back(needs);
    }
    variable_list leaves;
    {
      Restore restore;
      restore.generators = Generators::now(body->generators->cuda);
      body->generators->set();
      body->autocast.set();
      at::AutoGradMode grad_mode(true);
      auto out = body->run_with_graph(inputs, needs_grad, leaves);
      if (out.requires_grad()) {
        // The backward pass itself runs outside of autocast, as that around it does.
        restore.autocast.set();
        torch::autograd::backward({out}, {grads[0]});
      }
    }
    variable_list out;
    for (const auto &leaf : leaves) {
      out.push_back(leaf.requires_grad() ? leaf.grad() : at::Tensor());
    }
    out.resize(out.size() + 2); // the anchor and the body
    return out;
  }
};

} // namespace

extern "C" {

void ruminate_set_message(void *message, const char *text, size_t length) {
  try {
    static_cast<std::string *>(message)->assign(text, length);
  } catch (...) {
    // Without memory for the message, its absence has to do.
  }
}

int ruminate_checkpoint(at::Tensor *const *inputs, size_t count, void *closure, ruminate_body call,
                        void (*drop)(void *), at::Tensor **out, char **error) {
  return guarded(error, [&] {
    auto body = c10::make_intrusive<Body>(closure, call, drop);
    variable_list list;
    for (size_t i = 0; i < count; ++i) {
      list.push_back(*inputs[i]);
    }
    if (!at::GradMode::is_enabled()) {
      *out = new at::Tensor(body->run(list));
      return;
    }
    auto anchor = at::empty({0}).requires_grad_(true);
    *out = new at::Tensor(Checkpoint::apply(at::TensorList(list), anchor, body)[0]);
  });
}
}
