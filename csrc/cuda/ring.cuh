// A ring of stages in shared memory: one warp fills them, other warps read them, in one order.
//
// Layout: the stages, then two barriers for each. `full` completes when a stage's bytes have
// landed: one bulk copy on 9.0, 16 bytes a lane on 8.x. `empty` completes when all its readers have left it. What is in
// flight is bounded by the ring and not by registers, and weights do not wait for the kernel before: the ring is full
// when its inputs arrive.
#pragma once

#include "cuda/bulk_copy.cuh"
#include "cuda/ptx.cuh"
#include "cuda/reduce.cuh"

namespace adept::cuda {

struct Ring {
  unsigned char* stages;  // [count, stage_bytes], aligned to 128
  Mbarrier* full;         // [count]
  Mbarrier* empty;        // [count]
  int count;
  int stage_bytes;

  static constexpr int kBarrierBytes = 2 * sizeof(Mbarrier);  // of a stage

  // A ring in shared memory of count * (stage_bytes + kBarrierBytes) bytes.
  __device__ Ring(unsigned char* memory, int count, int stage_bytes)
      : stages(memory),
        full(reinterpret_cast<Mbarrier*>(memory + count * stage_bytes)),
        empty(full + count),
        count(count),
        stage_bytes(stage_bytes) {}

  // By one thread, before the block meets. `readers`: warps that wait for every stage and leave it.
  __device__ void init(int readers) const {
    for (int i = 0; i < count; ++i) {
      mbarrier_init(full + i, has_bulk_copies() ? 1 : kWarpSize);
      mbarrier_init(empty + i, static_cast<uint32_t>(readers));
    }
    mbarrier_fence_init();
  }
};

// A place in the order of the stages.
class RingPlace {
 public:
  explicit __device__ RingPlace(const Ring& ring) : ring_(ring) {}

 protected:
  __device__ __forceinline__ void go_on() {
    if (++stage_ < ring_.count) return;
    stage_ = 0;
    parity_ ^= 1;
  }

  const Ring& ring_;
  int stage_ = 0;
  uint32_t parity_ = 0;  // of the phase in which the stage is filled
};

// The end of the warp that fills the ring; all its lanes call everything.
class RingWriter : public RingPlace {
 public:
  using RingPlace::RingPlace;

  // Waits until the next stage is free, and announces its bytes. Returns its memory.
  __device__ __forceinline__ unsigned char* begin(uint32_t bytes) {
    mbarrier_wait(ring_.empty + stage_, parity_ ^ 1);
    if (has_bulk_copies()) {
      if (lane_index() == 0) mbarrier_arrive_expecting(ring_.full + stage_, bytes);
      __syncwarp();
    }
    return ring_.stages + stage_ * ring_.stage_bytes;
  }

  // Copies a piece of the stage: one lane by itself on 9.0.
  __device__ __forceinline__ void copy_by_lane(unsigned char* to, const void* from, uint32_t bytes) {
    copy_bulk(to, from, bytes, ring_.full + stage_);
  }

  // The stage is as announced once all copies have landed.
  __device__ __forceinline__ void end() {
    if (!has_bulk_copies()) mbarrier_arrive_after_copies(ring_.full + stage_);
    go_on();
  }

  // A thread does not end before its copies have landed.
  __device__ __forceinline__ void finish() const {
    if (has_bulk_copies()) return;
    end_copies();
    wait_for_copies<0>();
  }

  // A stage of contiguous bytes, a multiple of 16.
  __device__ __forceinline__ void write(const unsigned char* from, uint32_t bytes) {
    unsigned char* const to = begin(bytes);
    if (has_bulk_copies()) {
      if (lane_index() == 0) copy_by_lane(to, from, bytes);
    } else {
      for (uint32_t at = lane_index() * 16; at < bytes; at += kWarpSize * 16) copy_async(to + at, from + at);
    }
    end();
  }
};

// The end of a warp that reads, which waits for every stage and leaves it.
class RingReader : public RingPlace {
 public:
  using RingPlace::RingPlace;

  __device__ __forceinline__ const unsigned char* wait() const {
    mbarrier_wait(ring_.full + stage_, parity_);
    return ring_.stages + stage_ * ring_.stage_bytes;
  }

  // The warp has read the stage.
  __device__ __forceinline__ void leave() {
    __syncwarp();
    if (lane_index() == 0) mbarrier_arrive(ring_.empty + stage_);
    go_on();
  }
};

}  // namespace adept::cuda
