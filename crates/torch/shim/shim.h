// C ABI over the parts of libtorch that tch does not bind.
//
// Every function returns 0, or 1 with a message in *error that the caller frees with ruminate_free_message.
// No C++ exception leaves this file. Tensors are borrowed `at::Tensor*`, as torch-sys hands them out; a tensor
// returned through `out` is owned by the caller.
#pragma once
#include <cstddef>
#include <cstdint>

namespace at {
class Tensor;
}

extern "C" {
void ruminate_free_message(char *message);

// One fused Adam step on the parameters that have a gradient; the others are left as they are.
int ruminate_adam_step(at::Tensor *const *params, at::Tensor *const *exp_avgs, at::Tensor *const *exp_avg_sqs,
                       at::Tensor *const *steps, size_t count, double lr, double beta1, double beta2,
                       double weight_decay, double eps, int decoupled, char **error);

// Forgets the gradients, so that a parameter that the next loss does not touch has none.
int ruminate_clear_grads(at::Tensor *const *params, size_t count, char **error);

// Scales all gradients so that their global 2-norm is at most max_norm; *out is the norm before, on the device.
int ruminate_clip_grad_norm(at::Tensor *const *params, size_t count, double max_norm, at::Tensor **out,
                            char **error);

// State of a device's default generator as a byte tensor. device_index -1 is the CPU.
int ruminate_generator_state(int device_index, at::Tensor **out, char **error);
int ruminate_set_generator_state(int device_index, at::Tensor *state, char **error);

// Log-probabilities of targets [rows], and entropies [rows] (or [0]), from hidden [rows, width] and weight
// [vocabulary, width]: logits are scale * hidden * weight^T, made for `chunk` rows at a time.
int ruminate_log_probs(at::Tensor *hidden, at::Tensor *weight, at::Tensor *targets, double scale, int64_t chunk,
                       int with_entropy, at::Tensor **log_probs, at::Tensor **entropy, char **error);

// x [..., k] times the transposed weight [n, k]; a [..., m, k] times b [..., k, n]. With gradients.
int ruminate_linear(at::Tensor *x, at::Tensor *weight, at::Tensor **out, char **error);
int ruminate_matmul(at::Tensor *a, at::Tensor *b, at::Tensor **out, char **error);

// Lays the rows of all weights out, one below the other, as products with few rows like them best; the result is good
// for ruminate_packed_linear only, which knows no gradients.
int ruminate_pack(at::Tensor *const *weights, size_t count, at::Tensor **out, char **error);
int ruminate_packed_linear(at::Tensor *x, at::Tensor *weight, at::Tensor **out, char **error);

// Dropout in training.
int ruminate_dropout(at::Tensor *x, double rate, at::Tensor **out, char **error);

// Top-p on float32 logits [rows, vocabulary] on the CPU.
int ruminate_top_p(at::Tensor *logits, double p, at::Tensor **out, char **error);

// Switches autocast to bfloat16 on or off for a device type, and tells what it was.
int ruminate_set_autocast(int cuda, int enabled, int *was_enabled, char **error);
}
