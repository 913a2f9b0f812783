// Libraries that this process has loaded. None of these functions loads a library.
#pragma once

#if defined(__linux__) || defined(__APPLE__)

#include <string>
#include <string_view>

namespace onepass {

// The path of the first loaded library whose file name contains this text; empty if there is none.
std::string find_loaded_library(std::string_view text);

// Returns a function of a loaded library, or the first global symbol of that name if the path is empty; null if there
// is none.
void* find_function(const std::string& path, const char* name);

// The path of the library that contains a function.
std::string library_of(void* function);

}  // namespace onepass

#endif
