// update_decode_state: what a decode step leaves for the next one. Its operands, checked, and its loop for a CPU.
#pragma once

#include <algorithm>

#include "overlap.h"

namespace adept {

// int64 [rows]
inline int64_t* mutable_indices(const char* name, const Tensor& tensor, int64_t rows) {
  unchecked_indices(name, tensor, rows);
  return static_cast<int64_t*>(tensor.mutable_data_ptr());
}

inline UpdateDecodeState update_decode_state_operands(const Tensor& chosen, const Tensor& ids, const Tensor& slots,
                                                      const Tensor& positions, const Tensor& limits, const Tensor& ends,
                                                      const Tensor& counts, const Tensor& token_ring) {
  const int64_t rows = chosen.numel();
  const Written written(
      {{"ids", ids}, {"slots", slots}, {"positions", positions}, {"counts", counts}, {"token_ring", token_ring}});
  written.check_apart({{"chosen", chosen}, {"limits", limits}, {"ends", ends}});
  UpdateDecodeState operands = {};
  operands.chosen = unchecked_indices("chosen", chosen, rows);
  operands.rows = rows;
  operands.ids = mutable_indices("ids", ids, rows);
  operands.slots = mutable_indices("slots", slots, rows);
  operands.positions = mutable_indices("positions", positions, rows);
  operands.limits = unchecked_indices("limits", limits, rows);
  operands.counts = mutable_indices("counts", counts, rows);
  ADEPT_REQUIRE(ends.dim() == 2 && ends.numel() > 0 && ends.is_contiguous(), "ends has shape ", shape_of(ends),
                "; expected contiguous [slots, vocab], each 1 or more");
  check_dtype("ends", ends, ScalarType::Bool);
  operands.ends = data<bool>("ends", ends);
  operands.slot_count = ends.size(0);
  operands.vocab = ends.size(1);
  ADEPT_REQUIRE(
      token_ring.dim() == 2 && token_ring.size(0) == rows && token_ring.size(1) > 0 && token_ring.is_contiguous(),
      "token_ring has shape ", shape_of(token_ring), "; expected contiguous [", rows, ", 1 or more]");
  check_dtype("token_ring", token_ring, ScalarType::Long);
  data<int64_t>("token_ring", token_ring);
  operands.token_ring = static_cast<int64_t*>(token_ring.mutable_data_ptr());
  operands.depth = token_ring.size(1);
  return operands;
}

// Slots are in range, counts and the positions of rows that are there from 0 to kMaxCount.
inline void update_rows(const UpdateDecodeState& state) {
  for (int64_t row = 0; row < state.rows; ++row) {
    const int64_t count = ++state.counts[row], slot = state.slots[row];
    int64_t id = kAbsent;
    if (slot >= 0) {
      id = state.chosen[row];
      state.ids[row] = std::max<int64_t>(id, 0);
      const bool ends = id < 0 || id >= state.vocab || state.ends[slot * state.vocab + id];
      if (++state.positions[row] >= state.limits[row] || ends) state.slots[row] = -1;
    }
    state.token_ring[row * state.depth + count % state.depth] =
        static_cast<int64_t>(static_cast<uint64_t>(count) << 32 | (static_cast<uint64_t>(id) & 0xffffffffu));
  }
}

}  // namespace adept
