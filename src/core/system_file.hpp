// Text that the system writes about itself and its processes.
#pragma once

#include <array>
#include <cstdio>

namespace onepass {

using SystemText = std::array<char, 512>;

// Return the start of a file of the system, or an empty text if it cannot be read. Without streams, which add 60 to 150
// kB to wheels that bundle the C++ library.
inline SystemText read_system_file(const char* path) noexcept {
  SystemText text{};
  if (std::FILE* file = std::fopen(path, "re"); file != nullptr) {
    static_cast<void>(std::fread(text.data(), 1, text.size() - 1, file));
    static_cast<void>(std::fclose(file));
  }
  return text;
}

}  // namespace onepass
