// What this process holds of the system, for tests that look for leaks.
#ifndef FLASHBIAS_TESTS_SUPPORT_PROCESS_USAGE_H_
#define FLASHBIAS_TESTS_SUPPORT_PROCESS_USAGE_H_

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

namespace flashbias::support {

inline int OpenDescriptors() {
  const std::filesystem::directory_iterator entries("/proc/self/fd");
  return static_cast<int>(std::distance(begin(entries), end(entries)));
}

// Mappings of regions of shared memory.
inline int MappedRegions() {
  std::ifstream maps("/proc/self/maps");
  int count = 0;
  for (std::string line; std::getline(maps, line);) {
    count += line.find("flashbias-region") != std::string::npos ? 1 : 0;
  }
  return count;
}

}  // namespace flashbias::support

#endif  // FLASHBIAS_TESTS_SUPPORT_PROCESS_USAGE_H_
