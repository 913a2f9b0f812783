#include "python/torch_storage.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <string>
#include <utility>

namespace onepass::python {

void register_torch_storage(py::module_& m) {
  py::class_<TorchStorage>(m, "TorchStorage")
      .def(py::init([](const std::vector<std::string>& states, std::size_t narrow_from, std::vector<py::object> scales,
                       std::vector<bool> divisors, py::object low, unsigned char master_bits, bool stochastic) {
             const std::size_t count = states.size();
             if (scales.size() != count || divisors.size() != count || count > onepass::max_states) {
               throw py::value_error("one name of scales and one divisor for each state");
             }
             std::vector<Storage> stored(count, Storage::plain);
             for (std::size_t k = 0; k < count; ++k) {
               if (states[k] == "float8") stored[k] = Storage::float8;
               if (states[k] == "bfloat16") stored[k] = Storage::bfloat16;
             }
             const bool has_narrow =
                 std::any_of(stored.begin(), stored.end(), [](Storage one) { return one != Storage::plain; });
             return TorchStorage{std::move(stored),   has_narrow,     narrow_from, std::move(scales),
                                 std::move(divisors), std::move(low), master_bits, stochastic};
           }),
           py::arg("states"), py::arg("narrow_from"), py::arg("scales"), py::arg("divisors"), py::arg("low"),
           py::arg("master_bits"), py::arg("stochastic"));
}

}  // namespace onepass::python
