// Where static shared memory lies. A __shared__ variable is a static variable with an ABI tag, so it stands in the
// symbol table of this library or program with the tag in its name.

#include <elf.h>
#include <link.h>

#include <algorithm>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "memory.h"

namespace cuda_on_cpu {
namespace {

struct Range {
  char* first;
  size_t bytes;
};

// The file that this function is in, and how far it has been moved in memory.
struct Image {
  std::string file;
  uintptr_t base = 0;
};

int visit(dl_phdr_info* info, size_t, void* found) {
  const uintptr_t here = reinterpret_cast<uintptr_t>(&visit);
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const ElfW(Phdr)& part = info->dlpi_phdr[i];
    if (part.p_type == PT_LOAD && here - (info->dlpi_addr + part.p_vaddr) < part.p_memsz) {
      const std::string name = info->dlpi_name;
      *static_cast<Image*>(found) = {name.empty() ? "/proc/self/exe" : name, info->dlpi_addr};
      return 1;
    }
  }
  return 0;
}

template <class T>
const T* at(const std::vector<char>& file, size_t offset) {
  if (offset + sizeof(T) > file.size()) throw std::runtime_error("the emulator's own file is cut short");
  return reinterpret_cast<const T*>(file.data() + offset);
}

bool is_shared_variable(const std::string& name) {
  // _ZZ begins a variable in a function; _ZGVZ, which is the flag that one is initialised, does not.
  return name.compare(0, 3, "_ZZ") == 0 && name.find("B11cuda_shared") != std::string::npos;
}

std::vector<Range> find_shared_variables() {
  Image image;
  dl_iterate_phdr(visit, &image);
  std::ifstream stream(image.file, std::ios::binary);
  const std::vector<char> file((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  const auto* header = at<Elf64_Ehdr>(file, 0);
  std::vector<Range> found;
  bool has_symbols = false;
  for (int i = 0; i < header->e_shnum; ++i) {
    const auto* section = at<Elf64_Shdr>(file, header->e_shoff + size_t{header->e_shentsize} * i);
    if (section->sh_type != SHT_SYMTAB) continue;
    has_symbols = true;
    const auto* names = at<Elf64_Shdr>(file, header->e_shoff + size_t{header->e_shentsize} * section->sh_link);
    for (size_t offset = 0; offset < section->sh_size; offset += sizeof(Elf64_Sym)) {
      const auto* symbol = at<Elf64_Sym>(file, section->sh_offset + offset);
      if (ELF64_ST_TYPE(symbol->st_info) != STT_OBJECT || symbol->st_size == 0) continue;
      if (is_shared_variable(at<char>(file, names->sh_offset + symbol->st_name))) {
        found.push_back({reinterpret_cast<char*>(image.base + symbol->st_value), symbol->st_size});
      }
    }
  }
  if (!has_symbols) throw std::runtime_error("the emulator was stripped of its symbols: " + image.file);
  std::sort(found.begin(), found.end(), [](const Range& a, const Range& b) { return a.first < b.first; });
  return found;
}

const std::vector<Range>& shared_variables() {
  static const std::vector<Range> found = find_shared_variables();
  return found;
}

bool holds(const char* first, size_t bytes, const void* address) {
  return reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(first) < bytes;
}

}  // namespace

bool is_dynamic_shared(const void* address) {
  return holds(block.dynamic_shared, block.dynamic_shared_bytes, address);
}

bool is_shared(const void* address) {
  if (is_dynamic_shared(address)) return true;
  const std::vector<Range>& ranges = shared_variables();
  const auto after = std::upper_bound(ranges.begin(), ranges.end(), static_cast<const char*>(address),
                                      [](const char* wanted, const Range& range) { return wanted < range.first; });
  return after != ranges.begin() && holds(std::prev(after)->first, std::prev(after)->bytes, address);
}

void poison_shared() {
  for (const Range& range : shared_variables()) std::fill_n(range.first, range.bytes, char(0xff));
  std::fill_n(block.dynamic_shared, block.dynamic_shared_bytes, char(0xff));
}

std::vector<char> copy_static_shared() {
  std::vector<char> held;
  for (const Range& range : shared_variables()) held.insert(held.end(), range.first, range.first + range.bytes);
  return held;
}

void restore_static_shared(const std::vector<char>& held) {
  auto from = held.begin();
  for (const Range& range : shared_variables()) {
    std::copy_n(from, range.bytes, range.first);
    from += static_cast<std::ptrdiff_t>(range.bytes);
  }
}

}  // namespace cuda_on_cpu
