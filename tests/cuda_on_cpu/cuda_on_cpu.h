// Put before a .cu file, this lets a C++ compiler for x86-64 take it: -x c++ -include cuda_on_cpu.h
//
// The words of the language are macros, what CUDA declares are functions of runtime/, and types, constants and
// conversions are those of the toolkit's own headers. What is beyond all that, such as PTX, the sources keep in
// headers that have a twin in shadow/.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

// Blocks run one after another, so a static variable is the block's own. By the tag its symbol is found and filled
// with rubbish before each block.
#undef __shared__
#define __shared__ static __attribute__((abi_tag("cuda_shared")))
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__
#undef __forceinline__
#define __forceinline__ inline
// The C++ library spells an attribute like this.
#undef __noinline__
#define __noinline__

#include "runtime/atomics.h"
#include "runtime/half_arithmetic.h"
#include "runtime/intrinsics.h"
#include "runtime/launch.h"
#include "runtime/memory.h"
#include "runtime/warp.h"

inline const uint3& threadIdx = ::cuda_on_cpu::block.thread;
inline const uint3& blockIdx = ::cuda_on_cpu::block.index;
inline const dim3& blockDim = ::cuda_on_cpu::block.size;
inline const dim3& gridDim = ::cuda_on_cpu::block.grid;
constexpr int warpSize = ::cuda_on_cpu::kWarp;
