// update_decode_state: feeds the chosen ids back as inputs, advances positions, deactivates rows whose text has ended
// and publishes the ids to the host.
//
// Layout: a lane takes a row, one warp all rows of a step. Lower bound: about 100 bytes a row, negligible at 3.0 TB/s.
// Limit: the launch and one chain of loads, the chosen id and the slot, then whether the id ends the slot's text.
// The word for the host is written meanwhile.

#include <cstdint>

#include "cuda/cache.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"
#include "cuda/warp.cuh"

namespace adept::cuda {
namespace {

// The host reads the token ring while the device runs. Volatile makes this one store of 8 bytes, so the host never sees
// a count without its id.
__device__ void publish(const UpdateDecodeState& state, int64_t row, int64_t count, int64_t id) {
  const int64_t remainder = count % state.depth, at = remainder < 0 ? remainder + state.depth : remainder;
  const uint64_t word = static_cast<uint64_t>(count) << 32 | (static_cast<uint64_t>(id) & 0xffffffffu);
  *reinterpret_cast<volatile uint64_t*>(state.token_ring + row * state.depth + at) = word;
}

// The host cannot check values in device memory, so every value has a successor: 2^63 - 1 wraps to -2^63, as in torch.
// A negative count still has an index in the token ring, and a negative position writes nothing.
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
  // The word becomes visible to the host now, not only when the kernel ends.
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
