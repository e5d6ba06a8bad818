#if defined(CUDA_ON_CPU_RACES)
#include "races.h"

#include <dlfcn.h>

#include <cstdio>
#include <memory>
#include <unordered_map>

#include "clocks.h"
#include "memory.h"
#include "overlap.h"
#include "readers.h"

namespace cuda_on_cpu::races {
namespace {

enum class Access { kRead, kWrite, kAtomic };

// What is known of one byte. Those who read before the last write are forgotten with it.
struct Cell {
  SegmentId writer;
  bool wrote_atomically;
  Readers readers;

  bool operator==(const Cell&) const = default;
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
  bool by_copy = false;  // that the running thread starts

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
    note_failure((by_copy ? "a bulk copy " : "a thread ") + std::string(name_of(access)) + " " + std::to_string(bytes) +
                 " bytes of " + (shared ? "shared" : "global") + " memory " + what + where());
  }

  void report_race(SegmentId with, const char* did, const char* missing) const {
    const Segment& other = segment(with);
    const std::string of = other.block == block.number ? "its block " : "block " + std::to_string(other.block) + " ";
    const std::string who = other.is_copy() ? "a copy" : "thread " + std::to_string(other.thread);
    report("that " + who + " of " + of + did + ", and " + missing + " the two");
  }
};

bool is_of_this_launch(SegmentId id) { return id >= first_of_launch(); }

// Shared memory of another block was at this address before; that one has ended.
bool is_of_another_block(const Accessing& access, SegmentId id) {
  return access.shared && is_of_this_launch(id) && segment(id).block != block.number;
}

// Whether an earlier kernel of this operator, which may still be running, does something else with the byte.
bool is_too_early(const Accessing& access, const Cell& cell) {
  const auto is_earlier_kernels = [](SegmentId id) { return id >= first_of_operator() && !is_of_this_launch(id); };
  return is_earlier_kernels(cell.writer) || (access.changes() && is_earlier_kernels(cell.readers.first));
}

// False if there is something to report, which has been.
bool check_writer(const Accessing& access, const Cell& cell, const void* byte) {
  if (!is_of_this_launch(cell.writer) || cell.writer == access.mine || is_of_another_block(access, cell.writer)) {
    return true;
  }
  if (cell.wrote_atomically && (access.access == Access::kAtomic || has_seen_atomic(byte))) return true;
  const Segment& writer = segment(cell.writer);
  const char* const did = cell.wrote_atomically ? "changes atomically" : "writes";
  if (!is_ordered_before(writer)) {
    access.report_race(cell.writer, did, "nothing orders");
    return false;
  }
  if (!access.by_copy || writer.is_copy() || is_fenced_for_copies(writer)) return true;
  access.report_race(cell.writer, did, "no fence_before_bulk_copies is between");
  return false;
}

bool check_readers(const Accessing& access, const Cell& cell) {
  if (!access.changes() || is_of_another_block(access, cell.readers.first)) return true;
  const SegmentId not_ordered = find_not_ordered(cell.readers);
  if (not_ordered != 0) access.report_race(not_ordered, "reads", "nothing orders");
  return not_ordered == 0;
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

// The blocks that are under way have their static shared memory at the same addresses, one at a time.
uintptr_t cell_of(const Accessing& access) {
  constexpr int kAddressBits = 47;
  const bool is_static = access.shared && !is_dynamic_shared(access.pointer());
  return access.address | (is_static ? static_cast<uintptr_t>(block.slot + 1) << kAddressBits : 0);
}

// The cell of bytes that are alike, after the access.
Cell changed_cell(const Accessing& access, const Cell& cell, size_t bytes) {
  const bool forgets = access.changes() || is_of_another_block(access, cell.readers.first);
  if (forgets) forget_readers(cell.readers, bytes);
  if (access.changes()) return {access.mine, access.access == Access::kAtomic, {}};
  return {cell.writer, cell.wrote_atomically, with_reader(forgets ? Readers{} : cell.readers, access.mine, bytes)};
}

void note(const Accessing& access) {
  if (!current->has_inputs && !access.shared && !check_inputs(access)) return;
  const uintptr_t first = cell_of(access);
  for (size_t done = 0; done < access.bytes;) {
    const Cell cell = shadow[first + done];
    size_t end = done + 1;
    while (end < access.bytes && shadow[first + end] == cell) ++end;
    if (!current->has_inputs && !access.shared && is_too_early(access, cell)) {
      return access.report("that an earlier kernel of this operator uses, before it has called pdl_wait");
    }
    if (!check_writer(access, cell, access.pointer()) || !check_readers(access, cell)) return;
    const Cell changed = changed_cell(access, cell, end - done);
    for (; done < end; ++done) shadow[first + done] = changed;
  }
}

void note(const void* pointer, size_t bytes, Access kind, const void* code) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  if (current == nullptr || has_failed() || is_own(address)) return;
  note({address, bytes, kind, code, is_shared(pointer), current_segment()});
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

void used_to_synchronise(const void* object) { note(object, sizeof(uint64_t), Access::kAtomic, nullptr); }

void copied(const void* to, const void* from, uint32_t bytes, uint32_t mbarrier, uint64_t phase) {
  const SegmentId copy =
      add_segment({block.number, kOfCopies, static_cast<uint32_t>(phase) + 1, static_cast<int>(mbarrier)});
  note({reinterpret_cast<uintptr_t>(from), bytes, Access::kRead, nullptr, false, copy, true});
  note({reinterpret_cast<uintptr_t>(to), bytes, Access::kWrite, nullptr, true, copy, true});
}

// From here on, what its thread has started to write is there for those who wait for the mbarrier.
void copied_async(const void* to, uint32_t bytes, uint32_t mbarrier, uint64_t phase) {
  const SegmentId copy =
      add_segment({block.number, kOfCopies, static_cast<uint32_t>(phase) + 1, static_cast<int>(mbarrier)});
  note({reinterpret_cast<uintptr_t>(to), bytes, Access::kWrite, nullptr, true, copy});
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
