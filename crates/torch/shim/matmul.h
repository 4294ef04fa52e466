// Matrix products that take the faster of libtorch's two CPU libraries.
#pragma once
#include <ATen/core/Tensor.h>

#include <vector>

// a [m, k] times b [k, n], or batches of them ([batch, m, k] and [batch, k, n]); any strides.
at::Tensor product(const at::Tensor &a, const at::Tensor &b);

// out = a b and out += a b, for matrices; out may be of a wider kind.
void set_product(at::Tensor &out, const at::Tensor &a, const at::Tensor &b);
void add_product(at::Tensor &out, const at::Tensor &a, const at::Tensor &b);

// Weights [n_i, k], one below the other, as oneDNN likes them best for few rows, and their product with x [..., k].
at::Tensor reordered(const std::vector<at::Tensor> &weights);
at::Tensor reordered_linear(const at::Tensor &x, const at::Tensor &weight);
