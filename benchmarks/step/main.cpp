// Times a decode step, and each of its operators, straight from their launchers: no torch and no Python.
//
// Each case is a CUDA graph of calls on the distinct weights and caches of all layers, so that the second-level cache
// holds none of what comes next. Its lower bound is the bytes that it has to move at the read bandwidth, which is
// measured first. tools/gpu_build.py builds this; the exit code is 1 where a case failed, and 2 where there is nothing
// to run on, or an option is wrong.
#include <cstdio>
#include <exception>
#include <stdexcept>

#include "measure.h"
#include "options.h"
#include "report.h"

namespace {

using namespace adept::bench;

int run(const Options& options) {
  const Bandwidth bandwidth = measure_bandwidth(options);
  Report report(options, device_facts(), bandwidth);
  measure_all(options, [&](const Result& result) { report.add(result); });
  return report.has_failures() ? 1 : 0;
}

int told(const std::exception& error, int code) {
  std::fprintf(stderr, "step: %s\n", error.what());
  return code;
}

}  // namespace

int main(int count, char** arguments) {
  Options options;
  try {
    options = parse(count, arguments);
    if (options.help) {
      std::fputs(kHelp, stdout);
      return 0;
    }
    device_facts();
  } catch (const std::exception& error) {
    return told(error, 2);
  }
  try {
    return run(options);
  } catch (const std::exception& error) {
    return told(error, 1);
  }
}
