// `faults NAME` runs a faulty kernel, `faults all` every one that should be right, `faults list` names the faults.
// A line of output for each says what came of it.

#include <cstdio>
#include <exception>

#include "faults.h"

std::map<std::string, faults::Fault>& faults::all() {
  static std::map<std::string, Fault> faults;
  return faults;
}

static bool report(const std::string& name, faults::Run run) {
  std::string result;
  try {
    result = run() ? "right" : "wrong";
  } catch (const std::exception& failure) {
    result = std::string("refused: ") + failure.what();
  }
  std::printf("%s: %s\n", name.c_str(), result.c_str());
  std::fflush(stdout);
  return result == "right";
}

int main(int count, char** arguments) {
  const std::string wanted = count == 2 ? arguments[1] : "";
  bool all_right = wanted == "list" || wanted == "all";
  for (const auto& [name, fault] : faults::all()) {
    if (wanted == "list" && fault.faulty != nullptr) std::printf("%s\n", name.c_str());
    if (wanted == "all") all_right = report(name, fault.clean) && all_right;
    if (wanted == name && fault.faulty != nullptr) all_right = report(name, fault.faulty);
  }
  return all_right ? 0 : 1;
}
