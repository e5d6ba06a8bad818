// Runs the cases: first as they are, to see that they compute something, then in a graph, to time them.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "cases.h"
#include "device.h"
#include "options.h"

namespace adept::bench {

struct Bandwidth {
  Figure read;  // bytes a second
  Figure copy;  // those that are read and those that are written counted
};

// Of one case. Where it was not measured, one of the texts says why.
struct Result {
  Case item;
  std::string skipped;  // there is no room for it
  std::string failed;   // it computed nothing, or the device refused it
  int64_t calls = 0;    // in a graph
  int64_t distinct_caches = 0;
  int64_t bytes = 0;     // of a call
  Figure seconds;        // of a call
  double magnitude = 0;  // mean, of what came out: the same for the same kernels and settings
};

Bandwidth measure_bandwidth(const Options& options);

// Every case of the options in turn. Throws DeviceError where the device answers nothing more, after `take` has been
// given the case that did it.
void measure_all(const Options& options, const std::function<void(const Result&)>& take);

}  // namespace adept::bench
