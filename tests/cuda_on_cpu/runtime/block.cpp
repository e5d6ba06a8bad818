// The scheduler of one block.

#include <algorithm>
#include <array>
#include <exception>
#include <stdexcept>

#include "async_copies.h"
#include "machine.h"
#include "order.h"
#include "races.h"

namespace cuda_on_cpu {

Thread* current = nullptr;
Block block;

namespace {

struct Arrival {
  Meeting kind;
  unsigned mask;
  void* argument;
};

// A bit for each lane.
struct Warp {
  unsigned lanes = 0;  // there are
  unsigned ready = 0;
  unsigned at_barrier = 0;
  unsigned ended = 0;
  std::array<Arrival, kWarp> arrivals;

  unsigned meeting() const { return lanes & ~(ready | at_barrier | ended); }
};

struct AtBarrier {
  Barrier kind;
  int arrived = 0;
  int predicates = 0;  // that were true
  int result = 0;
};

std::array<Thread, kMaxFibers> threads;
std::array<Warp, kMaxFibers / kWarp> warps;
AtBarrier barrier;
std::exception_ptr failure;
void (*thread_body)(void*);
void* thread_context;

std::string place(const uint3& index) {
  return std::to_string(index.x) + "," + std::to_string(index.y) + "," + std::to_string(index.z);
}

std::runtime_error failed(const std::string& what) {
  std::string where = " (block " + place(block.index);
  if (current != nullptr) where += ", thread " + place(current->index);
  return std::runtime_error(what + where + ")");
}

unsigned bit(int lane) { return 1u << lane; }

void run_thread() {
  entered();
  try {
    thread_body(thread_context);
  } catch (...) {
    if (!failure) failure = std::current_exception();
  }
  Warp& warp = warps[current->warp];
  warp.ready &= ~bit(current->lane);
  warp.ended |= bit(current->lane);
  suspend(current->fiber, true);
}

void begin_threads(int count) {
  const int warp_count = (count + kWarp - 1) / kWarp;
  std::fill(warps.begin(), warps.begin() + warp_count, Warp{});
  for (int i = 0; i < count; ++i) {
    Thread& thread = threads[i];
    const unsigned number = static_cast<unsigned>(i);
    thread.index = {number % block.size.x, number / block.size.x % block.size.y,
                    number / (block.size.x * block.size.y)};
    thread.number = i;
    thread.warp = i / kWarp;
    thread.lane = i % kWarp;
    thread.has_waited = false;
    thread.has_inputs = !block.overlaps;
    warps[thread.warp].lanes |= bit(thread.lane);
    prepare(thread.fiber, i, run_thread);
  }
  for (int i = 0; i < warp_count; ++i) warps[i].ready = warps[i].lanes;
  barrier = {};
  failure = nullptr;
}

// Runs the lanes of a warp until each of them has ended or waits at a barrier, or for another lane that does.
void run_warp(int number) {
  static_assert(kWarp == 32);
  Warp& warp = warps[number];
  const std::vector<unsigned>& lanes = lane_order();
  while (warp.ready != 0) {
    for (const unsigned lane : lanes) {
      if ((warp.ready & bit(static_cast<int>(lane))) == 0) continue;
      current = &threads[number * kWarp + static_cast<int>(lane)];
      block.thread = current->index;
      resume(current->fiber);
      if (failure) std::rethrow_exception(failure);
    }
  }
}

void release_barrier(int warp_count, int count) {
  barrier.result = barrier.kind == Barrier::kOr    ? barrier.predicates > 0
                   : barrier.kind == Barrier::kAnd ? barrier.predicates == count
                                                   : barrier.predicates;
  barrier.arrived = barrier.predicates = 0;
  races::passed_barrier();
  for (int i = 0; i < warp_count; ++i) {
    warps[i].ready = warps[i].at_barrier;
    warps[i].at_barrier = 0;
  }
}

// No thread can go on, and not all of them have ended.
void go_on(int warp_count, int count) {
  if (barrier.arrived == count) return release_barrier(warp_count, count);
  for (int i = 0; i < warp_count; ++i) {
    if (const unsigned meeting = warps[i].meeting()) {
      current = &threads[i * kWarp + __builtin_ctz(meeting)];
      fail("a lane waits for lanes of its warp that wait elsewhere or have ended");
    }
  }
  for (int i = 0; i < warp_count; ++i) {
    if (const unsigned waiting = warps[i].at_barrier) {
      current = &threads[i * kWarp + __builtin_ctz(waiting)];
      fail("a thread waits at a barrier that others of its block have not come to before they ended");
    }
  }
}

}  // namespace

void fail(const std::string& what) { throw failed(what); }

void note_failure(const std::string& what) {
  if (!failure) failure = std::make_exception_ptr(failed(what));
}

bool has_failed() { return failure != nullptr; }

int meet_block(Barrier kind, int predicate) {
  if (barrier.arrived > 0 && barrier.kind != kind) fail("threads of a block meet at different kinds of barriers");
  barrier.kind = kind;
  ++barrier.arrived;
  barrier.predicates += predicate != 0;
  Warp& warp = warps[current->warp];
  warp.ready &= ~bit(current->lane);
  warp.at_barrier |= bit(current->lane);
  suspend(current->fiber, false);
  return barrier.result;
}

void meet_warp(Meeting kind, unsigned mask, void* argument, Combine combine) {
  Warp& warp = warps[current->warp];
  if ((mask & bit(current->lane)) == 0) fail("a lane meets others with a mask that it is not in itself");
  if ((mask & ~warp.lanes) != 0) fail("a mask names lanes that the block does not have");
  if ((mask & warp.ended) != 0) fail("a mask names a lane that has ended");
  warp.arrivals[current->lane] = {kind, mask, argument};
  warp.ready &= ~bit(current->lane);
  if ((mask & ~warp.meeting()) != 0) return suspend(current->fiber, false);
  void* arguments[kWarp] = {};
  for (unsigned left = mask; left != 0; left &= left - 1) {
    const Arrival& other = warp.arrivals[__builtin_ctz(left)];
    if (other.kind != kind || other.mask != mask) {
      fail("lanes of a warp meet with different masks or in different operations");
    }
    arguments[__builtin_ctz(left)] = other.argument;
  }
  if (combine != nullptr) combine(arguments, mask);
  if (kind == Meeting::kSync) races::synced_warp(current->warp, mask);
  warp.ready |= mask;
}

void run_block(void (*body)(void*), void* context) {
  const int count = static_cast<int>(block.size.x * block.size.y * block.size.z);
  const int warp_count = (count + kWarp - 1) / kWarp;
  thread_body = body;
  thread_context = context;
  begin_threads(count);
  drop_copies(count);
  races::began_block();
  for (int ended = 0; ended < count;) {
    for (const unsigned number : warp_order()) run_warp(static_cast<int>(number));
    ended = 0;
    for (int i = 0; i < warp_count; ++i) ended += __builtin_popcount(warps[i].ended);
    if (ended < count) go_on(warp_count, count);
  }
  current = nullptr;
}

}  // namespace cuda_on_cpu
