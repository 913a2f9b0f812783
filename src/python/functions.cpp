#include "python/functions.hpp"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/dispatch.hpp"
#include "core/executor.hpp"
#include "core/openmp.hpp"
#include "core/optimizer.hpp"
#include "core/row_sums.hpp"
#include "core/spinning_blas.hpp"
#include "kernels/power.hpp"
#include "python/arrays.hpp"
#include "python/gil.hpp"

namespace onepass::python {
namespace {

bool step_once(const std::string& rule_name, const std::vector<double>& options, const CommonOptions& common,
               double grad_scale, bool flush_denormals, std::int64_t step, const py::array& param,
               const py::array& grad, const std::vector<py::array>& states, const std::optional<py::array>& average) {
  const onepass::RuleEntry& rule = onepass::find_rule(rule_name);
  if (options.size() != rule.option_count || states.size() != rule.state_count) {
    throw py::value_error("wrong number of options or states for this rule");
  }
  if (common.averaged != average.has_value())
    throw py::value_error("average: expected an array if and only if averaged is true");
  Parameter parameter = describe(param, states, average);
  const auto is_state = [](const py::array& state) { return is_contiguous(state) && state.writeable(); };
  if (dtype_of(grad) != parameter.dtype || grad.size() != param.size() || !is_contiguous(grad)) {
    throw py::value_error("the gradient must be contiguous, with the dtype and size of its parameter");
  }
  if (!is_state(param) || !std::all_of(states.begin(), states.end(), is_state) || (average && !is_state(*average))) {
    throw py::value_error("a parameter, its state and its average must be contiguous and writeable");
  }
  parameter.operands.grad = data_of(grad);
  parameter.step = step;
  bool done = false;
  without_gil_if(parameter.size >= release_gil_from, [&] {
    done = onepass::step_once(rule, options.data(), common, grad_scale, parameter, flush_denormals);
  });
  return done;
}

// Return an array in the memory of another object, and keep that object alive.
py::array array_at(std::uintptr_t address, const py::dtype& dtype, std::vector<py::ssize_t> shape,
                   std::vector<py::ssize_t> strides, const py::object& owner) {
  return py::array(dtype, std::move(shape), std::move(strides), reinterpret_cast<const void*>(address), owner);
}

// The storage of an array of bfloat16 (uint16) or float8 (uint8) numbers, and its scales.
std::pair<Storage, float*> checked_narrow(const py::array& array, const std::optional<py::array>& scales, bool writes) {
  const auto good = [&](const py::array& a, int type, std::size_t size) {
    return PyArray_TYPE(as_array(a)) == type && static_cast<std::size_t>(a.size()) == size && is_contiguous(a) &&
           (writes ? PyArray_ISBEHAVED(as_array(a)) : PyArray_ISBEHAVED_RO(as_array(a)));
  };
  const auto size = static_cast<std::size_t>(array.size());
  if (good(array, NPY_UINT16, size)) return {Storage::bfloat16, nullptr};
  if (good(array, NPY_UINT8, size) && scales && good(*scales, NPY_FLOAT, scales_of(size))) {
    return {Storage::float8, static_cast<float*>(data_of(*scales))};
  }
  throw py::value_error("expected contiguous, aligned uint16, or uint8 with a float32 scale for each group");
}

// Decodes narrow numbers into float32.
py::array_t<float> decode(const py::array& array, const std::optional<py::array>& scales) {
  const auto [storage, first_scale] = checked_narrow(array, scales, false);
  const auto size = static_cast<std::size_t>(array.size());
  py::array_t<float> result(static_cast<py::ssize_t>(size));
  const void* const data = data_of(array);
  float* const out = result.mutable_data();
  without_gil_if(size >= release_gil_from, [&, storage = storage, first_scale = first_scale] {
    onepass::kernels().decode(storage, data, first_scale, 0, size, out);
  });
  return result;
}

// Encodes float32 numbers to nearest into an array of as many narrow ones.
void encode(const py::array_t<float, py::array::c_style | py::array::forcecast>& values, bool divisor,
            const py::array& array, const std::optional<py::array>& scales) {
  const auto [storage, first_scale] = checked_narrow(array, scales, true);
  const auto size = static_cast<std::size_t>(values.size());
  if (static_cast<std::size_t>(array.size()) != size) throw py::value_error("expected as many values as numbers");
  const float* const data = values.data();
  void* const out = data_of(array);
  without_gil_if(size >= release_gil_from, [&, storage = storage, first_scale = first_scale] {
    onepass::kernels().encode(storage, data, size, divisor, out, first_scale);
  });
}

// Return the L2 norm of a contiguous array, bit-identical to the norm that clip_norm measures.
double norm(const py::array& array) {
  const std::optional<DType> dtype = dtype_of(array);
  if (!dtype || !is_contiguous(array)) {
    throw py::value_error("the array must be contiguous, of native float32 or float64");
  }
  const void* const data = data_of(array);
  const auto size = static_cast<std::size_t>(array.size());
  double result = 0;
  without_gil_if(size >= release_gil_from, [&] { result = onepass::norm(*dtype, data, size); });
  return result;
}

// Returns the rows in ascending order, each once, and the sums of their values. Returns the arguments themselves if the
// rows already are in ascending order, each once.
std::pair<py::array, py::array> sum_rows(const py::array_t<std::int64_t, py::array::c_style>& rows,
                                         const py::array& values) {
  const std::optional<DType> dtype = dtype_of(values);
  if (!dtype || (PyArray_FLAGS(as_array(values)) & NPY_ARRAY_C_CONTIGUOUS) == 0 || rows.ndim() != 1 ||
      values.ndim() == 0 || values.shape(0) != rows.shape(0)) {
    throw py::value_error("expected one row number for each row of values, which must be C-contiguous");
  }
  const auto count = static_cast<std::size_t>(rows.size());
  const std::size_t row_size = count == 0 ? 0 : static_cast<std::size_t>(values.size()) / count;
  onepass::RowSums sums;
  const Gradient sum = sums.of(rows.data(), count, data_of(values), *dtype, row_size);
  if (count == 0 || sum.rows == rows.data()) return {rows, values};
  std::vector<py::ssize_t> shape(values.shape(), values.shape() + values.ndim());
  shape[0] = static_cast<py::ssize_t>(sum.row_count);
  return {py::array_t<std::int64_t>(shape[0], sum.rows), py::array(values.dtype(), shape, sum.data)};
}

// Return the norm of all gradients and, on request, the first parameter whose gradient is not finite. blocks: one row
// of statistics for each block of each gradient.
std::pair<double, std::optional<std::size_t>> total(const py::array_t<double, py::array::c_style>& blocks,
                                                    const std::vector<std::size_t>& counts, double grad_scale,
                                                    bool finite) {
  std::size_t rows = 0;
  for (const std::size_t count : counts) rows += count;
  if (blocks.ndim() != 2 || blocks.shape(1) != 2 || static_cast<std::size_t>(blocks.shape(0)) != rows) {
    throw py::value_error("blocks must have two columns, and as many rows as there are blocks");
  }
  const auto* const data = reinterpret_cast<const onepass::BlockStats*>(blocks.data());
  const onepass::GradientStats result = onepass::total(data, counts.data(), counts.size(), grad_scale, finite);
  if (result.first_nonfinite == onepass::GradientStats::none) return {result.norm, std::nullopt};
  return {result.norm, result.first_nonfinite};
}

// The stream baseline of benchmarks: reads and writes the memory of an Adam step, and computes almost nothing.
void stream_baseline(const py::array& param, const py::array& grad, const py::array& exp_avg,
                     const py::array& exp_avg_sq) {
  Parameter parameter = describe(param, {exp_avg, exp_avg_sq}, std::nullopt);
  for (const py::array& array : {param, grad, exp_avg, exp_avg_sq}) {
    if (dtype_of(array) != parameter.dtype || array.size() != param.size() || !is_contiguous(array) ||
        (!array.is(grad) && !array.writeable())) {
      throw py::value_error("the arrays must be contiguous, writeable, of one dtype and one size");
    }
  }
  parameter.operands.grad = data_of(grad);
  const auto part = [](const void* context, std::size_t begin, std::size_t end) noexcept {
    const auto& x = *static_cast<const Parameter*>(context);
    onepass::kernels().stream_baseline[x.dtype](x.operands, begin, end);
  };
  const std::size_t bytes = parameter.size * onepass::bytes_of(parameter.dtype) * 7;
  without_gil([&] { onepass::run_parts(onepass::pool_executor(), part, &parameter, parameter.size, bytes); });
}

}  // namespace

void register_functions(py::module_& m) {
  m.attr("norm_block") = onepass::norm_block;
  m.def("step_once", &step_once, py::arg("rule"), py::arg("options"), py::arg("common"), py::arg("grad_scale"),
        py::arg("flush_denormals"), py::arg("step"), py::arg("param"), py::arg("grad"), py::arg("states"),
        py::arg("average") = std::nullopt);
  m.def("array_at", &array_at, py::arg("address"), py::arg("dtype"), py::arg("shape"), py::arg("strides"),
        py::arg("owner"));
  m.def("sum_rows", &sum_rows, py::arg("rows"), py::arg("values"));
  m.def("decode", &decode, py::arg("array"), py::arg("scales") = std::nullopt);
  m.def("encode", &encode, py::arg("values"), py::arg("divisor"), py::arg("array"), py::arg("scales") = std::nullopt);
  m.def("norm", &norm, py::arg("array"));
  m.def("total", &total, py::arg("blocks"), py::arg("counts"), py::arg("grad_scale"), py::arg("finite"));
  m.def("stream_baseline", &stream_baseline, py::arg("param"), py::arg("grad"), py::arg("exp_avg"),
        py::arg("exp_avg_sq"));
  m.def("get_num_threads", &onepass::get_num_threads);
  m.def("set_num_threads", &onepass::set_num_threads, py::arg("count"));
  m.def("reset_num_threads", &onepass::reset_num_threads);
  m.def("requested_threads", &onepass::requested_threads);
  m.def("processor_count", &onepass::processor_count);
  m.def("spinning_blas", &onepass::spinning_blas);
  m.def("torch_openmp", []() -> std::optional<std::string> {
    const onepass::OpenMP* const runtime = onepass::torch_openmp();
    return runtime == nullptr ? std::nullopt : std::optional(runtime->path);
  });
  m.def("power", &onepass::power, py::arg("base"), py::arg("exponent"));
}

}  // namespace onepass::python
