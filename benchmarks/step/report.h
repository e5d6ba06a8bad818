// What is told of a run: a line of a table for each case, and all of it as JSON.
#pragma once

#include <string>
#include <vector>

#include "device.h"
#include "measure.h"
#include "options.h"

namespace adept::bench {

class Report {
 public:
  Report(const Options& options, const DeviceFacts& device, const Bandwidth& bandwidth);

  // Prints the line, and writes the JSON anew.
  void add(const Result& result);

  bool has_failures() const;

 private:
  double bound_seconds(const Result& result) const;  // its bytes at the read bandwidth
  std::string line_of(const Result& result) const;
  std::string json_of(const Result& result) const;
  std::string json() const;
  void write() const;

  const Options& options_;
  DeviceFacts device_;
  Bandwidth bandwidth_;
  std::vector<Result> results_;
};

}  // namespace adept::bench
