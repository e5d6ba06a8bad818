// The kernels of the instruction set that is being compiled.
#pragma once

#include "kernels.h"

namespace adept::ADEPT_ISA {

void linear(const Threads& threads, const Linear& linear);
void mlp(const Threads& threads, const Mlp& mlp);
void rotary_append(const Threads& threads, const RotaryAppend& rotary);
void decode_attention(const Threads& threads, const DecodeAttention& attention);
void decode_step(const Threads& threads, const DecodeStep& step);
int32_t read(const Threads& threads, const void* from, int64_t bytes);

extern const Kernels table;

}  // namespace adept::ADEPT_ISA
