#if defined(CUDA_ON_CPU_RACES)
#include "races.h"

#include <dlfcn.h>

#include <cstdio>
#include <memory>
#include <unordered_map>

#include "clocks.h"
#include "memory.h"
#include "overlap.h"

namespace cuda_on_cpu::races {
namespace {

enum class Access { kRead, kWrite, kAtomic };

// Who read a byte: lanes of one warp in one step; or several warps, several blocks.
enum class Spread : uint8_t { kLanes, kWarps, kBlocks };

// What is known of one byte. Those who read before the last write are forgotten with it.
struct Cell {
  SegmentId writer;
  SegmentId reader;  // the first of the last
  unsigned lanes;    // that read in its step
  bool wrote_atomically;
  Spread spread;
};

constexpr uintptr_t kPageBytes = 4096;
constexpr size_t kMaxPages = 4096;

class Shadow {
 public:
  Cell& operator[](uintptr_t address) {
    const uintptr_t page = address / kPageBytes;
    if (page != last_page_) {
      std::unique_ptr<Cell[]>& cells = pages_[page];
      if (!cells) cells = std::make_unique<Cell[]>(kPageBytes);
      last_page_ = page;
      last_cells_ = cells.get();
    }
    return last_cells_[address % kPageBytes];
  }

  bool is_large() const { return pages_.size() > kMaxPages; }

  void forget() {
    pages_.clear();
    last_page_ = 0;
  }

 private:
  std::unordered_map<uintptr_t, std::unique_ptr<Cell[]>> pages_;
  uintptr_t last_page_ = 0;  // none is there
  Cell* last_cells_ = nullptr;
};

Shadow shadow;

const char* name_of(Access access) {
  return access == Access::kRead ? "reads" : access == Access::kWrite ? "writes" : "changes atomically";
}

// One access of the running thread.
struct Accessing {
  uintptr_t address;
  size_t bytes;
  Access access;
  const void* code;  // that does it, or null
  bool shared;
  SegmentId mine;

  const void* pointer() const { return reinterpret_cast<const void*>(address); }
  bool changes() const { return access != Access::kRead; }

  std::string where() const {
    const auto offset = [](const void* of, const char* from) {
      char text[32];
      snprintf(text, sizeof(text), "%#zx", static_cast<size_t>(static_cast<const char*>(of) - from));
      return std::string(text);
    };
    std::string place;
    if (is_dynamic_shared(pointer())) {
      place = ", " + offset(pointer(), block.dynamic_shared) + " into the dynamic";
    }
    Dl_info image;
    if (code == nullptr || dladdr(code, &image) == 0) return place;
    return place + "; addr2line -Cfie " + image.dli_fname + " " + offset(code, static_cast<char*>(image.dli_fbase));
  }

  void report(const std::string& what) const {
    note_failure("a thread " + std::string(name_of(access)) + " " + std::to_string(bytes) + " bytes of " +
                 (shared ? "shared" : "global") + " memory " + what + where());
  }

  void report_race(SegmentId with, const char* did) const {
    const Segment& other = segment(with);
    report(std::string("that thread ") + std::to_string(other.thread) + " of " +
           (other.block == block.number ? "its block" : "block " + std::to_string(other.block)) + " " + did +
           ", and nothing orders the two");
  }
};

bool is_of_this_launch(SegmentId id) { return id >= first_of_launch(); }

bool is_ordered(const Accessing& access, const Segment& earlier) {
  if (earlier.block == block.number) return is_ordered_in_block(earlier);
  return access.shared || is_published(earlier);
}

// Whether all who read the byte since it was written come before the running thread.
bool are_readers_ordered(const Accessing& access, const Cell& cell) {
  const Segment& first = segment(cell.reader);
  if (first.block != block.number) return access.shared || (cell.spread != Spread::kBlocks && is_published(first));
  switch (cell.spread) {
    case Spread::kLanes: return is_ordered_in_block(first, cell.lanes);
    case Spread::kWarps: return is_of_earlier_phase(first);
    case Spread::kBlocks: return false;
  }
  return false;
}

void note_reader(const Accessing& access, Cell& cell) {
  if (cell.reader == access.mine && cell.spread == Spread::kLanes) return;
  const unsigned lane = 1u << current->lane;
  if (!is_of_this_launch(cell.reader) || are_readers_ordered(access, cell)) {
    cell.reader = access.mine;
    cell.lanes = lane;
    cell.spread = Spread::kLanes;
    return;
  }
  const Segment& first = segment(cell.reader);
  if (first.block != block.number) {
    cell.spread = Spread::kBlocks;
  } else if (first.warp() != current->warp && cell.spread == Spread::kLanes) {
    cell.spread = Spread::kWarps;
  }
  cell.lanes |= lane;
}

// Whether an earlier kernel of this operator, which may still be running, does something else with the byte.
bool is_too_early(const Accessing& access, const Cell& cell) {
  const auto is_earlier_kernels = [](SegmentId id) { return id >= first_of_operator() && !is_of_this_launch(id); };
  return is_earlier_kernels(cell.writer) || (access.changes() && is_earlier_kernels(cell.reader));
}

// False if there is something to report, which has been.
bool check(const Accessing& access, const Cell& cell, const void* byte) {
  if (is_of_this_launch(cell.writer) && cell.writer != access.mine) {
    const bool atomic = cell.wrote_atomically && (access.access == Access::kAtomic || has_seen_atomic(byte));
    if (!atomic && !is_ordered(access, segment(cell.writer))) {
      access.report_race(cell.writer, cell.wrote_atomically ? "changes atomically" : "writes");
      return false;
    }
  }
  if (access.changes() && is_of_this_launch(cell.reader) && !are_readers_ordered(access, cell)) {
    access.report_race(cell.reader, "reads");
    return false;
  }
  return true;
}

bool check_inputs(const Accessing& access) {
  const auto* first = reinterpret_cast<const char*>(access.address);
  if (access.changes()) {
    access.report("before it has called pdl_wait: an earlier kernel may still use them");
    return false;
  }
  if (!is_input(first) && !is_input(first + access.bytes - 1)) return true;
  access.report("that are an input, before it has called pdl_wait");
  return false;
}

bool is_own(uintptr_t address) {
  return is_on_a_stack(address) || address - reinterpret_cast<uintptr_t>(&block) < sizeof(block);
}

void note(const void* pointer, size_t bytes, Access kind, const void* code) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  if (current == nullptr || has_failed() || is_own(address)) return;
  const Accessing access{address, bytes, kind, code, is_shared(pointer), current_segment()};
  if (!current->has_inputs && !access.shared && !check_inputs(access)) return;
  for (size_t i = 0; i < bytes; ++i) {
    Cell& cell = shadow[address + i];
    if (!current->has_inputs && !access.shared && is_too_early(access, cell)) {
      return access.report("that an earlier kernel of this operator uses, before it has called pdl_wait");
    }
    if (!check(access, cell, pointer)) return;
    if (access.changes()) {
      cell = {access.mine, 0, 0, kind == Access::kAtomic, Spread::kLanes};
    } else {
      note_reader(access, cell);
    }
  }
}

}  // namespace

// No operator knows of another's accesses.
void began_operator() {
  start_operator();
  if (!shadow.is_large() && !are_numbers_spent()) return;
  shadow.forget();
  restart_numbers();
}

void read(const void* address, size_t bytes) { note(address, bytes, Access::kRead, nullptr); }

void written(const void* address, size_t bytes) { note(address, bytes, Access::kWrite, nullptr); }

void changed_atomically(const void* address, size_t bytes) {
  pass_atomic(address);
  note(address, bytes, Access::kAtomic, __builtin_return_address(0));
}

}  // namespace cuda_on_cpu::races

// What -fsanitize=thread puts before each access, in place of ThreadSanitizer's own.
#define INSTRUMENTED extern "C" __attribute__((visibility("hidden"))) void
#define NOTE(kind, bytes) \
  ::cuda_on_cpu::races::note(address, bytes, ::cuda_on_cpu::races::Access::kind, __builtin_return_address(0))

INSTRUMENTED __tsan_init() {}
INSTRUMENTED __tsan_func_entry(void*) {}
INSTRUMENTED __tsan_func_exit() {}
INSTRUMENTED __tsan_vptr_update(void**, void*) {}
// Only of the flags beside static variables of host code; CUDA's atomic operations are runtime/atomics.h.
extern "C" __attribute__((visibility("hidden"))) char __tsan_atomic8_load(const volatile char* address, int order) {
  return __atomic_load_n(address, order == 0 ? __ATOMIC_RELAXED : __ATOMIC_ACQUIRE);
}
INSTRUMENTED __tsan_read1(void* address) { NOTE(kRead, 1); }
INSTRUMENTED __tsan_read2(void* address) { NOTE(kRead, 2); }
INSTRUMENTED __tsan_read4(void* address) { NOTE(kRead, 4); }
INSTRUMENTED __tsan_read8(void* address) { NOTE(kRead, 8); }
INSTRUMENTED __tsan_read16(void* address) { NOTE(kRead, 16); }
INSTRUMENTED __tsan_read_range(void* address, long bytes) { NOTE(kRead, static_cast<size_t>(bytes)); }
INSTRUMENTED __tsan_write1(void* address) { NOTE(kWrite, 1); }
INSTRUMENTED __tsan_write2(void* address) { NOTE(kWrite, 2); }
INSTRUMENTED __tsan_write4(void* address) { NOTE(kWrite, 4); }
INSTRUMENTED __tsan_write8(void* address) { NOTE(kWrite, 8); }
INSTRUMENTED __tsan_write16(void* address) { NOTE(kWrite, 16); }
INSTRUMENTED __tsan_write_range(void* address, long bytes) { NOTE(kWrite, static_cast<size_t>(bytes)); }
#endif
