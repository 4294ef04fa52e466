// The C ABI over c10d: one group of processes, which are called ranks.
//
// Codes and messages as in shim.h. Every operation is called by all ranks in the same order, and ends within the group's
// time-out: with an error if others do not come.
#pragma once
#include <cstddef>
#include <cstdint>

namespace at {
class Tensor;
}

extern "C" {
struct ruminate_group;

// Joins the group. Rank 0 listens at `port`; device_index -1 is the CPU (Gloo), others are CUDA devices (NCCL).
int ruminate_group_join(const char *host, uint16_t port, int rank, int size, int device_index, int64_t timeout_ms,
                        ruminate_group **out, char **error);
void ruminate_group_free(ruminate_group *group);

// op: 0 sum, 1 mean, 2 maximum. In place.
int ruminate_all_reduce(ruminate_group *group, at::Tensor *tensor, int op, char **error);
int ruminate_broadcast(ruminate_group *group, at::Tensor *tensor, int from, char **error);
// All ranks' tensors, stacked: [size, ...].
int ruminate_all_gather(ruminate_group *group, at::Tensor *tensor, at::Tensor **out, char **error);
// Of [size, ...], this rank's row of the sum (or mean, or maximum) over all ranks.
int ruminate_reduce_scatter(ruminate_group *group, at::Tensor *tensor, int op, at::Tensor **out, char **error);
int ruminate_barrier(ruminate_group *group, char **error);

// Sums the parameters' gradients over all ranks. Where a parameter has a gradient on some ranks only, the others count as
// zeros; where it has none on any, it keeps none.
int ruminate_all_reduce_grads(ruminate_group *group, at::Tensor *const *params, size_t count, size_t bucket_bytes,
                              char **error);
}
