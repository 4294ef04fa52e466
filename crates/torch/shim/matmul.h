// Matrix products that take the faster of libtorch's two CPU libraries.
#pragma once
#include <ATen/core/Tensor.h>

#include <vector>

// a [m, k] times b [k, n], or batches of them ([batch, m, k] and [batch, k, n]); any strides.
at::Tensor product(const at::Tensor &a, const at::Tensor &b);

// out = a b and out += a b, for matrices; out may be of a wider kind.
void set_product(at::Tensor &out, const at::Tensor &a, const at::Tensor &b);
void add_product(at::Tensor &out, const at::Tensor &a, const at::Tensor &b);

// x [..., k] times the transposed weights [n_i, k], side by side: one product. The weights are joined again in each pass, since a
// copy that waited for the backward pass would cost memory. The other two are its parts without a graph, forward and backward: the
// gradients of x and of each weight.
at::Tensor joined_linear(const at::Tensor &x, const std::vector<at::Tensor> &weights);
at::Tensor joined_product(const at::Tensor &x, at::TensorList weights);
std::vector<at::Tensor> joined_slopes(const at::Tensor &grad, const at::Tensor &x, at::TensorList weights, bool for_x,
                                      bool for_weights);

// What autocast makes of the input of a product, where it is on.
at::Tensor as_autocast(const at::Tensor &x);
