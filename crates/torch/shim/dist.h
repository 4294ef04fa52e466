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

// Joins the group. The ranks meet in a store at `port` of `host`: this process serves it, or another one does. In a store that others use
// too, names begin with `prefix`. device_index -1 is the CPU (Gloo), others are CUDA devices (NCCL).
int ruminate_group_join(const char *host, uint16_t port, int serve, const char *prefix, int rank, int size, int device_index,
                        int64_t timeout_ms, ruminate_group **out, char **error);
void ruminate_group_free(ruminate_group *group);

// op: 0 sum, 1 mean, 2 maximum. In place.
int ruminate_all_reduce(ruminate_group *group, at::Tensor *tensor, int op, char **error);
int ruminate_broadcast(ruminate_group *group, at::Tensor *tensor, int from, char **error);
// All ranks' tensors, stacked: [size, ...].
int ruminate_all_gather(ruminate_group *group, at::Tensor *tensor, at::Tensor **out, char **error);
// Of [size, ...], this rank's row of the sum (or mean, or maximum) over all ranks.
int ruminate_reduce_scatter(ruminate_group *group, at::Tensor *tensor, int op, at::Tensor **out, char **error);
int ruminate_barrier(ruminate_group *group, char **error);

// Sums gradients over all ranks, bucket by bucket, while the backward pass still runs.
struct ruminate_reducer;

// Watches those of `params` that are in one of the `buckets`, which are sent in their order: the first has the first `sizes[0]` of
// `members` (indices into `params`, of one kind), and so on. The sum of a bucket goes to the rank that `owners` names, -1 for all.
// Buckets that go to one rank are in memory `in_flight` at a time. The group outlives the reducer.
int ruminate_reducer_new(ruminate_group *group, at::Tensor *const *params, size_t count, const size_t *members, const size_t *sizes,
                         const int *owners, size_t buckets, size_t in_flight, ruminate_reducer **out, char **error);
void ruminate_reducer_free(ruminate_reducer *reducer);
// From here to `finish`, gradients are sent as soon as they are there.
void ruminate_reducer_begin(ruminate_reducer *reducer);
// Sends what has not been sent and waits for all of it. After the last round, the sums of all rounds are the gradients: where a parameter
// had one on some ranks only, the others count as zeros; where it had none on any, or this rank does not own it, there is none.
int ruminate_reducer_finish(ruminate_reducer *reducer, int last, char **error);
// Gives all ranks the parameters of those that own them.
int ruminate_reducer_publish(ruminate_reducer *reducer, char **error);
// Bytes that this rank gave to collective operations so far.
int64_t ruminate_reducer_bytes(const ruminate_reducer *reducer);
}
