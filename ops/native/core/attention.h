// The operations, over arrays in memory. Each returns when its outputs are written.
#pragma once

#include "problem.h"

namespace natten {

// query, key, value [, rpb, lengths] -> out, lse, stats
void attention_forward(const Problem& problem, const Arrays& arrays);

// query, key, value, out, stats, d_out, d_lse [, rpb, lengths] -> d_query, d_key, d_value [, d_rpb]
void attention_backward(const Problem& problem, const Arrays& arrays);

// query, key [, rpb, lengths] -> attn: scores by slot, -inf in the slots that a query lacks
void qk_forward(const Problem& problem, const Arrays& arrays);

// query, key, d_attn [, lengths] -> d_query, d_key [, d_rpb]
void qk_backward(const Problem& problem, const Arrays& arrays);

// attn, value [, lengths] -> out
void av_forward(const Problem& problem, const Arrays& arrays);

// attn, value, d_out [, lengths] -> d_attn, d_value
void av_backward(const Problem& problem, const Arrays& arrays);

// Multiply-adds per second, times two, that all threads reach together on registers alone.
double fma_peak();

}  // namespace natten
