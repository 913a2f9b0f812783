#include "core/loaded_library.hpp"

#if defined(__linux__) || defined(__APPLE__)

#include <dlfcn.h>

#include <cstddef>
#include <cstdint>

#if defined(__APPLE__)
#include <mach-o/dyld.h>
#else
#include <link.h>
#endif

namespace onepass {
namespace {

bool is_named(std::string_view path, std::string_view text) noexcept {
  return path.substr(path.rfind('/') + 1).find(text) != std::string_view::npos;
}

}  // namespace

std::string find_loaded_library(std::string_view text) {
#if defined(__APPLE__)
  for (std::uint32_t i = 0; i < _dyld_image_count(); ++i) {
    const char* const path = _dyld_get_image_name(i);
    if (path != nullptr && is_named(path, text)) return path;
  }
  return {};
#else
  struct Search {
    std::string_view text;
    std::string found;
  } search{text, {}};
  dl_iterate_phdr(
      [](dl_phdr_info* library, std::size_t, void* data) {
        auto& wanted = *static_cast<Search*>(data);
        if (library->dlpi_name == nullptr || !is_named(library->dlpi_name, wanted.text)) return 0;
        wanted.found = library->dlpi_name;
        return 1;  // stop
      },
      &search);
  return search.found;
#endif
}

void* find_function(const std::string& path, const char* name) {
  if (path.empty()) return dlsym(RTLD_DEFAULT, name);
  void* const library = dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD | RTLD_NODELETE);
  if (library == nullptr) return nullptr;
  void* const function = dlsym(library, name);
  dlclose(library);  // RTLD_NODELETE keeps it loaded until the process ends
  return function;
}

std::string library_of(void* function) {
  Dl_info info;
  return dladdr(function, &info) != 0 && info.dli_fname != nullptr ? info.dli_fname : "";
}

}  // namespace onepass

#endif
