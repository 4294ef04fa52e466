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

// Levels of the CPU's vector units (CpuLevel in cpu/loops.h): the best, and the one in use. The other sets the latter, for our loops
// alone; RUMINATE_CPU limits libtorch's libraries, too.
int ruminate_cpu_levels(int *detected, int *used, char **error);
int ruminate_set_cpu_level(int level, char **error);

// Why oneDNN does not multiply float32 matrices here, as text that is handed back with ruminate_free_message; empty where it does.
int ruminate_onednn_refusal(char **out, char **error);

// How libtorch was built, as text that is handed back with ruminate_free_message.
int ruminate_build_info(char **out, char **error);

// One fused Adam step on the parameters that have a gradient; the others are left as they are.
int ruminate_adam_step(at::Tensor *const *params, at::Tensor *const *exp_avgs, at::Tensor *const *exp_avg_sqs,
                       at::Tensor *const *steps, size_t count, double lr, double beta1, double beta2,
                       double weight_decay, double eps, int decoupled, char **error);

// One Adafactor step on parameters that all have a gradient. `states` holds three tensors of each: row means and column
// means (or the second moment and null), and the first moment or null. `rates` are theirs, before the scale of the
// parameter, which is at least `least_scale` (below 0: no scale); `decays` those of the second moment.
int ruminate_adafactor_step(at::Tensor *const *params, at::Tensor *const *states, size_t count, const double *rates,
                            const double *decays, double eps, double least_scale, double clip, double beta1,
                            double weight_decay, char **error);

// Forgets the gradients, so that a parameter that the next loss does not touch has none.
int ruminate_clear_grads(at::Tensor *const *params, size_t count, char **error);

// Scales all gradients so that their global 2-norm is at most max_norm; *out is the norm before, on the device.
int ruminate_clip_grad_norm(at::Tensor *const *params, size_t count, double max_norm, at::Tensor **out,
                            char **error);
// Scales all gradients as a global 2-norm of `norm` asks for.
int ruminate_scale_grads(at::Tensor *const *params, size_t count, at::Tensor *norm, double max_norm, char **error);

// State of a device's default generator as a byte tensor. device_index -1 is the CPU.
int ruminate_generator_state(int device_index, at::Tensor **out, char **error);
int ruminate_set_generator_state(int device_index, at::Tensor *state, char **error);

// Log-probabilities of targets [rows], and entropies [rows] (or [0]), from hidden [rows, width] and weight
// [vocabulary, width]: logits are scale * hidden * weight^T, made for `chunk` rows at a time.
int ruminate_log_probs(at::Tensor *hidden, at::Tensor *weight, at::Tensor *targets, double scale, int64_t chunk,
                       int with_entropy, at::Tensor **log_probs, at::Tensor **entropy, char **error);
// The sum of the log-probabilities, negated; gradients are made with it.
int ruminate_cross_entropy(at::Tensor *hidden, at::Tensor *weight, at::Tensor *targets, double scale, int64_t chunk, at::Tensor **out,
                           char **error);

// A closure of the caller: gets new tensors, which it owns, stores a new tensor in `out` and returns 0, or reports with
// ruminate_set_message and returns 1. It lets no exception and no panic out.
typedef int (*ruminate_body)(void *closure, at::Tensor *const *inputs, size_t count, at::Tensor **out, void *message);
void ruminate_set_message(void *message, const char *text, size_t length);

// Runs the closure without keeping what its backward pass needs, and again in the backward pass. The closure is owned
// from here on, also after an error, and `drop` may be called on any thread.
int ruminate_checkpoint(at::Tensor *const *inputs, size_t count, void *closure, ruminate_body call,
                        void (*drop)(void *), at::Tensor **out, char **error);

// Seeds the default generator of one device; -1 is the CPU.
int ruminate_seed_generator(int device_index, uint64_t seed, char **error);

// Sets autocast of a device type, and exchanges the arguments for what was in force; kind is a ScalarType, below 0 for
// bfloat16.
int ruminate_swap_autocast(int cuda, int *enabled, int *kind, char **error);

// x [..., k] times the transposed weight [n, k]; a [..., m, k] times b [..., k, n]. With gradients.
int ruminate_linear(at::Tensor *x, at::Tensor *weight, at::Tensor **out, char **error);
int ruminate_fused_linear(at::Tensor *x, at::Tensor *norm, double eps, at::Tensor *const *weights, size_t count,
                          at::Tensor **out, char **error);
int ruminate_matmul(at::Tensor *a, at::Tensor *b, at::Tensor **out, char **error);

// Joins the rows of all weights, one below the other: in blocks for ruminate_packed_linear, which knows no gradients, where `blocks` says 1,
// and as they are where it says 0 (another kind, or another device than the CPU).
int ruminate_pack(at::Tensor *const *weights, size_t count, at::Tensor **out, int *blocks, char **error);

// residual + f(x) times the transposed weights of so many outputs, where f is nothing (0), a root-mean-square norm (1), relu (2), or
// silu (3) or gelu (4) of the first half of a row times the second. `norm` and `residual` may be null.
int ruminate_packed_linear(at::Tensor *x, at::Tensor *blocks, int64_t outputs, int before, at::Tensor *norm, double eps,
                      at::Tensor *residual, at::Tensor **out, char **error);

// Dropout in training.
int ruminate_dropout(at::Tensor *x, double rate, at::Tensor **out, char **error);

// x / sqrt(mean(x^2) + eps) * weight over the last dimension.
int ruminate_rms_norm(at::Tensor *x, at::Tensor *weight, double eps, at::Tensor **out, char **error);

// silu(gate) * up, or with the tanh form of gelu.
int ruminate_gate(at::Tensor *gate, at::Tensor *up, int gelu, at::Tensor **out, char **error);

// Rotary positions: x * cos + (x, its halves exchanged) * sin, for x [rows, time, heads, width] and tables
// [1 or rows, time, 1, width] whose sines are negative in the first half and whose halves are otherwise the same.
int ruminate_rope(at::Tensor *x, at::Tensor *cos, at::Tensor *sin, at::Tensor **out, char **error);

// softmax(scale * q k^T + bias) v with dropout on the probabilities, for q [batch, heads, time, width], k and v
// [batch, heads, keys, width]; `bias` may be null, or is broadcast to [batch, heads, time, keys].
int ruminate_attention(at::Tensor *q, at::Tensor *k, at::Tensor *v, at::Tensor *bias, double scale, double rate,
                       at::Tensor **out, char **error);

// The same for a few queries [rows, time, heads, width] on the CPU, without gradients, over the keys and values of `count` parts one
// behind the other, [batch, heads, keys, width] each: consecutive rows may share those of one batch entry, and consecutive heads
// those of one head. `bias` [rows, heads, time, all keys], any of the first three 1, of the rows a divisor, may be null. The
// result is [rows, time, heads * width]; none where this is another kind or number of queries, or another device without its kernel,
// or gradients are wanted.
int ruminate_decode_attention(at::Tensor *q, at::Tensor *const *keys, at::Tensor *const *values, size_t count, at::Tensor *bias,
                     double scale, at::Tensor **out, char **error);

// Of states [rows, heads + 2 shared, width], the queries, keys and values of a position: turns queries and keys as ruminate_rope
// does unless `cos` is null, the queries in place, and writes keys and values into caches [rows, shared, time, width].
int ruminate_append_kv(at::Tensor *states, at::Tensor *cos, at::Tensor *sin, at::Tensor *keys, at::Tensor *values, int64_t at,
                      char **error);

// Lets the C library keep freed memory for the next allocations, and take it in huge pages, where it is glibc's.
void ruminate_keep_freed_memory();

// Top-p on float32 logits [rows, vocabulary] on the CPU, or where its kernel is on.
int ruminate_top_p(at::Tensor *logits, double p, at::Tensor **out, char **error);

// Tokens [rows, 1] chosen from `allowed` [rows, vocab], with their log-probabilities [rows, 1] under `logits` and under what was drawn
// from: float32 on the CPU. Without `uniform` the largest; else by its numbers [rows, 1] in [0, 1), after temperature, top-k (0: off)
// and top-p (from 1 on: off).
int ruminate_choose(at::Tensor *logits, at::Tensor *allowed, at::Tensor *uniform, double temperature, int64_t top_k, double top_p,
                    at::Tensor **tokens, at::Tensor **log_probs, at::Tensor **sampling_log_probs, char **error);

// Work on a CUDA device that is recorded between begin and end, on a stream of its own, and not done; a replay does it on the current
// stream. Freeing a graph ends its recording.
struct ruminate_graph;
int ruminate_graph_begin(int device, ruminate_graph **out, char **error);
int ruminate_graph_end(ruminate_graph *graph, char **error);
int ruminate_graph_replay(ruminate_graph *graph, char **error);
void ruminate_graph_free(ruminate_graph *graph);

// Kernels that are on, each a bit; turns these on, and all others off.
unsigned ruminate_kernels_on();
int ruminate_turn_on_kernels(unsigned kernels, char **error);

// Compiles a kernel for an architecture (sm_90); -1 bytes where there is no compiler.
int ruminate_compile_kernel(int kernel, const char *arch, int64_t *bytes, char **error);

// From here on, this thread runs all kernels on tensors of the CPU, by emulation; or does so no longer. Gives how many it has started
// since the last call. For tests.
int64_t ruminate_emulate_kernels(int on);
}
