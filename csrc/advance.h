// advance: what a decode step leaves for the next one. Its operands, checked, and its loop for a CPU.
#pragma once

#include <algorithm>

#include "overlap.h"

namespace adept {

// int64 [rows]
inline int64_t* mutable_indices(const char* name, const Tensor& tensor, int64_t rows) {
  unchecked_indices(name, tensor, rows);
  return static_cast<int64_t*>(tensor.mutable_data_ptr());
}

inline Advance advance_operands(const Tensor& chosen, const Tensor& ids, const Tensor& slots, const Tensor& positions,
                                const Tensor& limits, const Tensor& ends, const Tensor& counts, const Tensor& ring) {
  const int64_t rows = chosen.numel();
  const Written written({{"ids", ids}, {"slots", slots}, {"positions", positions}, {"counts", counts}, {"ring", ring}});
  written.check_apart({{"chosen", chosen}, {"limits", limits}, {"ends", ends}});
  Advance operands = {};
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
  ADEPT_REQUIRE(ring.dim() == 2 && ring.size(0) == rows && ring.size(1) > 0 && ring.is_contiguous(),
                "ring has shape ", shape_of(ring), "; expected contiguous [", rows, ", 1 or more]");
  check_dtype("ring", ring, ScalarType::Long);
  data<int64_t>("ring", ring);
  operands.ring = static_cast<int64_t*>(ring.mutable_data_ptr());
  operands.depth = ring.size(1);
  return operands;
}

// Slots are in range, counts and the positions of rows that are there from 0 to kMaxCount.
inline void advance_rows(const Advance& advance) {
  for (int64_t row = 0; row < advance.rows; ++row) {
    const int64_t count = ++advance.counts[row], slot = advance.slots[row];
    int64_t id = kAbsent;
    if (slot >= 0) {
      id = advance.chosen[row];
      advance.ids[row] = std::max<int64_t>(id, 0);
      const bool ends = id < 0 || id >= advance.vocab || advance.ends[slot * advance.vocab + id];
      if (++advance.positions[row] >= advance.limits[row] || ends) advance.slots[row] = -1;
    }
    advance.ring[row * advance.depth + count % advance.depth] =
        static_cast<int64_t>(static_cast<uint64_t>(count) << 32 | (static_cast<uint64_t>(id) & 0xffffffffu));
  }
}

}  // namespace adept
