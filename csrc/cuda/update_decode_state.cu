// update_decode_state: what a decode step leaves for the next one: ids, positions, which rows go on; and the ids for
// the host.
//
// Layout: a lane takes a row, and one warp all rows of a step. Floor: some 100 bytes a row, which is no time at
// 3.0 TB/s. What should limit it is its launch and one chain of loads: the chosen id and the slot, then whether that
// id ends the slot's text; meanwhile the word for the host is on its way.

#include <cstdint>

#include "cuda/cache.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"
#include "cuda/warp.cuh"

namespace adept::cuda {
namespace {

// The host reads the token ring while the device runs on. Volatile makes this one store of 8 bytes, so that the count
// is never there without its id.
__device__ void publish(const UpdateDecodeState& state, int64_t row, int64_t count, int64_t id) {
  const int64_t remainder = count % state.depth, at = remainder < 0 ? remainder + state.depth : remainder;
  const uint64_t word = static_cast<uint64_t>(count) << 32 | (static_cast<uint64_t>(id) & 0xffffffffu);
  *reinterpret_cast<volatile uint64_t*>(state.token_ring + row * state.depth + at) = word;
}

// The host can refuse no value of the device's memory, so every one has a successor: that of 2^63 - 1 is -2^63, as
// torch has it too. A negative count has a slot of the token ring, and at a negative position nothing is written.
__device__ int64_t next(int64_t value) { return static_cast<int64_t>(static_cast<uint64_t>(value) + 1); }

__global__ void __launch_bounds__(kWarpSize) update_rows(const UpdateDecodeState state) {
  pdl_launch_dependents();
  pdl_wait();
  const int64_t row = int64_t{blockIdx.x} * kWarpSize + threadIdx.x;
  if (row >= state.rows) return;
  const int64_t chosen = state.chosen[row], slot = state.slots[row], count = next(state.counts[row]);
  const int64_t position = next(state.positions[row]), limit = state.limits[row];
  const bool present = in_range(slot, state.slot_count);
  publish(state, row, count, present ? chosen : kAbsent);
  state.counts[row] = count;
  if (present) {
    const bool ends = !in_range(chosen, state.vocab) || state.ends[slot * state.vocab + chosen];
    state.ids[row] = chosen > 0 ? chosen : 0;
    state.positions[row] = position;
    if (ends || position >= limit) state.slots[row] = -1;
  }
  // What was told arrives now, whatever else keeps the device from ending the kernel.
  __threadfence_system();
}

}  // namespace

cudaError_t update_decode_state(const UpdateDecodeState& state, cudaStream_t stream) {
  if (state.rows == 0) return cudaSuccess;
  if (!fits_grid(state.rows)) return cudaErrorInvalidValue;
  const auto blocks = static_cast<unsigned>((state.rows + kWarpSize - 1) / kWarpSize);
  return launch(stream, {dim3(blocks), dim3(kWarpSize)}, update_rows, state);
}

}  // namespace adept::cuda
