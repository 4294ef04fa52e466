// Arguments of kernels that are too many for a list; for the host as well.
#pragma once

// Keys and values; consecutive rows of queries share an entry, and consecutive heads a head.
struct Seen {
  const void *keys, *values;
  long long count, rows_each, heads_each, key_row, key_head, key_time, value_row, value_head, value_time;
};

struct DecodeAttention {
  const void *queries, *bias;
  void *out;
  long long time, heads, n, query_row, query_time, query_head, bias_rows_each, bias_row, bias_head, bias_time;
  float scale;
  Seen first, second;
};
