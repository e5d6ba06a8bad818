// The scheduler of one block.

#include <algorithm>
#include <array>
#include <exception>
#include <stdexcept>
#include <vector>

#include "async_copies.h"
#include "bulk_copies.h"
#include "grid_barrier.h"
#include "machine.h"
#include "mbarriers.h"
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
  unsigned waiting = 0;  // for what Thread::wait says
  unsigned ended = 0;
  std::array<Arrival, kWarp> arrivals;

  unsigned meeting() const { return lanes & ~(ready | at_barrier | waiting | ended); }
};

struct AtBarrier {
  Barrier kind;
  int arrived = 0;
  int predicates = 0;  // that were true
  int result = 0;
};

struct Threads {
  std::vector<Thread> threads;  // the first `count` are in use
  std::vector<Warp> warps;
  int count = 0;
  AtBarrier barrier;
};

PerBlock<Threads> here;
std::exception_ptr failure;
void (*thread_body)(void*);
void* thread_context;

Warp& warp_of(const Thread& thread) { return here->warps[thread.warp]; }

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
  Warp& warp = warp_of(*current);
  warp.ready &= ~bit(current->lane);
  warp.ended |= bit(current->lane);
  suspend(current->fiber, true);
}

// Runs the lanes of a warp until each of them has ended or waits at a barrier, or for another lane that does.
void run_warp(int number) {
  static_assert(kWarp == 32);
  Threads& all = *here;
  Warp& warp = all.warps[number];
  const std::vector<unsigned>& lanes = lane_order();
  while (warp.ready != 0) {
    for (const unsigned lane : lanes) {
      if ((warp.ready & bit(static_cast<int>(lane))) == 0) continue;
      current = &all.threads[number * kWarp + static_cast<int>(lane)];
      block.thread = current->index;
      resume(current->fiber);
      if (failure) std::rethrow_exception(failure);
    }
  }
}

void release_barrier() {
  AtBarrier& barrier = here->barrier;
  barrier.result = barrier.kind == Barrier::kOr    ? barrier.predicates > 0
                   : barrier.kind == Barrier::kAnd ? barrier.predicates == here->count
                                                   : barrier.predicates;
  barrier.arrived = barrier.predicates = 0;
  races::passed_barrier();
  for (Warp& warp : here->warps) {
    warp.ready = warp.at_barrier;
    warp.at_barrier = 0;
  }
}

Thread& first_of(const Warp& warp, unsigned lanes) {
  const auto number = static_cast<int>(&warp - here->warps.data());
  return here->threads[number * kWarp + __builtin_ctz(lanes)];
}

bool is_waiting(Wait::For kind) {
  for (const Warp& warp : here->warps) {
    for (unsigned left = warp.waiting; left != 0; left &= left - 1) {
      if (first_of(warp, left).wait.kind == kind) return true;
    }
  }
  return false;
}

// No thread is ready, and not all of them have ended. False if the block has to wait for another.
bool go_on() {
  if (here->barrier.arrived == here->count) {
    release_barrier();
    return true;
  }
  // Copies land as late as they may: when a thread waits for such.
  if (is_waiting(Wait::For::kMbarrier) && land_one()) return true;
  if (wake_for_counters()) return true;
  if (is_waiting(Wait::For::kCounter)) return false;
  fail_waiting();
}

std::string describe(const Wait& wait) {
  return wait.kind == Wait::For::kMbarrier ? describe_mbarrier(wait) : describe_barrier(wait);
}

[[noreturn]] void fail_at(const Warp& warp, unsigned lanes, const char* what) {
  current = &first_of(warp, lanes);
  fail(what);
}

}  // namespace

void fail(const std::string& what) { throw failed(what); }

void note_failure(const std::string& what) {
  if (!failure) failure = std::make_exception_ptr(failed(what));
}

bool has_failed() { return failure != nullptr; }

int meet_block(Barrier kind, int predicate) {
  AtBarrier& barrier = here->barrier;
  if (barrier.arrived > 0 && barrier.kind != kind) fail("threads of a block meet at different kinds of barriers");
  barrier.kind = kind;
  ++barrier.arrived;
  barrier.predicates += predicate != 0;
  Warp& warp = warp_of(*current);
  warp.ready &= ~bit(current->lane);
  warp.at_barrier |= bit(current->lane);
  suspend(current->fiber, false);
  return barrier.result;
}

void wait_for(const Wait& wait) {
  Warp& warp = warp_of(*current);
  current->wait = wait;
  warp.ready &= ~bit(current->lane);
  warp.waiting |= bit(current->lane);
  suspend(current->fiber, false);
}

void wake(int number) {
  Thread& thread = here->threads[number];
  if (thread.wait.kind == Wait::For::kNothing) return;  // it is the last to arrive, and runs
  thread.wait = {};
  warp_of(thread).waiting &= ~bit(thread.lane);
  warp_of(thread).ready |= bit(thread.lane);
}

Thread& thread_of_block(int number) { return here->threads[number]; }

void meet_warp(Meeting kind, unsigned mask, void* argument, Combine combine) {
  Warp& warp = warp_of(*current);
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

void begin_block(void (*body)(void*), void* context) {
  const int count = static_cast<int>(block.size.x * block.size.y * block.size.z);
  thread_body = body;
  thread_context = context;
  here->count = count;
  here->warps.assign(static_cast<size_t>((count + kWarp - 1) / kWarp), Warp{});
  here->barrier = {};
  if (here->threads.size() < static_cast<size_t>(count)) here->threads.resize(static_cast<size_t>(count));
  for (int i = 0; i < count; ++i) {
    Thread& thread = here->threads[i];
    const unsigned number = static_cast<unsigned>(i);
    thread.index = {number % block.size.x, number / block.size.x % block.size.y,
                    number / (block.size.x * block.size.y)};
    thread.number = i;
    thread.warp = i / kWarp;
    thread.lane = i % kWarp;
    thread.has_waited = false;
    thread.has_inputs = !block.overlaps;
    thread.wait = {};
    warp_of(thread).lanes |= bit(thread.lane);
    prepare(thread.fiber, run_thread);
  }
  for (Warp& warp : here->warps) warp.ready = warp.lanes;
  failure = nullptr;
  drop_copies(count);
  forget_bulk_copies();
  forget_mbarriers();
  forget_named_barriers();
  races::began_block();
}

bool run_block() {
  const std::vector<Warp>& warps = here->warps;
  for (;;) {
    for (const unsigned number : warp_order()) {
      run_warp(static_cast<int>(number));
      land_perhaps();
    }
    if (std::any_of(warps.begin(), warps.end(), [](const Warp& warp) { return warp.ready != 0; })) continue;
    const bool ended =
        std::all_of(warps.begin(), warps.end(), [](const Warp& warp) { return warp.ended == warp.lanes; });
    if (ended) break;
    if (go_on()) continue;
    current = nullptr;
    return false;
  }
  check_bulk_copies_at_end();
  check_mbarriers_at_end();
  current = nullptr;
  return true;
}

bool wake_for_counters() {
  bool woken = false;
  for (int i = 0; i < here->count; ++i) {
    const Wait& wait = here->threads[i].wait;
    if (wait.kind != Wait::For::kCounter || !is_reached(wait)) continue;
    wake(i);
    woken = true;
  }
  return woken;
}

void fail_waiting() {
  constexpr size_t kMaxTold = 8;
  std::vector<std::string> told;  // each wait once, though many threads may be in it
  std::string what;
  for (int i = 0; i < here->count && told.size() < kMaxTold; ++i) {
    const Thread& thread = here->threads[i];
    if (thread.wait.kind == Wait::For::kNothing) continue;
    const std::string wait = describe(thread.wait);
    if (std::find(told.begin(), told.end(), wait) != told.end()) continue;
    told.push_back(wait);
    what += "; thread " + place(thread.index) + " waits for " + wait;
  }
  current = nullptr;
  if (!told.empty()) fail("no thread can go on" + what);
  for (const Warp& warp : here->warps) {
    if (const unsigned meeting = warp.meeting())
      fail_at(warp, meeting, "a lane waits for lanes of its warp that wait elsewhere or have ended");
  }
  for (const Warp& warp : here->warps) {
    if (warp.at_barrier != 0)
      fail_at(warp, warp.at_barrier,
              "a thread waits at a barrier that others of its block have not come to before they ended");
  }
  throw std::logic_error("no thread waits, and none can go on");
}

}  // namespace cuda_on_cpu
