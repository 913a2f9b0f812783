// Libraries that this process has loaded. Nothing here loads one.
#pragma once

#if defined(__linux__) || defined(__APPLE__)

#include <string>
#include <string_view>

namespace onepass {

// The path of the first loaded library whose file name contains this text; empty if there is none.
std::string find_loaded_library(std::string_view text);

// A function of a loaded library (or, where the path is empty, of the first that offers it to all); null if there is
// none of that name.
void* find_function(const std::string& path, const char* name);

// The path of the library that a function lies in.
std::string library_of(void* function);

}  // namespace onepass

#endif
