// Divides tasks among threads: each takes the next one when it is free, so that a slow core does not delay the others.
// The result of a task does not depend on the thread that runs it.
#pragma once

#include <algorithm>
#include <atomic>

#include "kernels.h"

namespace adept::ADEPT_ISA {

template <class Task>
void parallel(const Threads& threads, int64_t tasks, const Task& task) {
  const int64_t workers = std::min(threads.count, tasks);
  if (workers <= 1) {
    for (int64_t i = 0; i < tasks; ++i) task(i);
    return;
  }
  struct Shared {
    const Task& task;
    int64_t tasks;
    std::atomic<int64_t> next;
  } shared{task, tasks, {0}};
  threads.run(
      workers,
      [](void* context) {
        auto& work = *static_cast<Shared*>(context);
        for (int64_t i; (i = work.next.fetch_add(1, std::memory_order_relaxed)) < work.tasks;) work.task(i);
      },
      &shared);
}

// Calls piece(begin, end) for pieces of [0, count) whose lengths are multiples of `step`. A free thread takes a share
// of the remaining steps: long pieces first, because long streams are read fastest, and short ones last, so that all
// threads finish together.
template <class Piece>
void parallel_pieces(const Threads& threads, int64_t count, int64_t step, const Piece& piece) {
  const int64_t steps = (count + step - 1) / step;
  const int64_t workers = std::max<int64_t>(1, std::min(threads.count, steps));
  std::atomic<int64_t> taken{0};
  parallel(threads, workers, [&](int64_t) {
    int64_t begin = taken.load(std::memory_order_relaxed);
    while (begin < steps) {
      const int64_t share = workers == 1 ? steps : std::max<int64_t>(1, (steps - begin) / (2 * workers));
      if (!taken.compare_exchange_weak(begin, begin + share, std::memory_order_relaxed)) continue;
      piece(begin * step, std::min(count, (begin + share) * step));
      begin = taken.load(std::memory_order_relaxed);
    }
  });
}

}  // namespace adept::ADEPT_ISA
