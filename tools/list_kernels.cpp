// Prints the hot functions of every kernel table: instruction set, dtype, name and address, a line each, with tabs.
// Linked at fixed addresses, so that a disassembly of the program has the same ones: see kernel_code.py.
#include <cstdio>
#include <string>

#include "kernels/table.hpp"

namespace onepass {
extern const Kernels kernels_baseline;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
}  // namespace onepass

namespace {

constexpr const char* dtypes[] = {"float32", "float64"};
constexpr const char* extras[] = {"scale", "clip", "decay", "average"};  // by bit

template <class Function>
void print(const onepass::Kernels& table, std::size_t dtype, const std::string& name, Function* function) {
  std::printf("%s\t%s\t%s\t%p\n", table.instruction_set, dtypes[dtype], name.c_str(),
              reinterpret_cast<void*>(function));
}

}  // namespace

int main() {
  for (const onepass::Kernels* table : {&onepass::kernels_baseline, &onepass::kernels_avx2, &onepass::kernels_avx512}) {
    for (std::size_t dtype = 0; dtype < onepass::dtype_count; ++dtype) {
      for (std::size_t r = 0; r < table->rule_count; ++r) {
        const onepass::RuleEntry& rule = table->rules[r];
        for (std::size_t set = 0; set < onepass::extras_count; ++set) {
          if (rule.sweeps[dtype][set] == nullptr) continue;
          std::string name = rule.name;
          for (std::size_t bit = 0; bit < 4; ++bit) name += (set >> bit & 1) != 0 ? std::string(" ") + extras[bit] : "";
          print(*table, dtype, name, rule.sweeps[dtype][set]);
        }
      }
      print(*table, dtype, "squares", table->squares[dtype]);
      print(*table, dtype, "finite", table->finite[dtype]);
      print(*table, dtype, "stream_baseline", table->stream_baseline[dtype]);
    }
  }
}
