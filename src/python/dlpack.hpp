// Views of PyTorch's tensors without a Python call: the parts used here of DLPack's exchange interface, version 1
// (https://dmlc.github.io/dlpack, DLPackExchangeAPI). PyTorch has it from 2.10 on.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "kernels/table.hpp"

namespace onepass::python {

// A view of the memory of a tensor, which keeps it.
struct DLTensor {
  static constexpr std::int32_t cpu = 1;
  static constexpr std::uint8_t integer = 0;
  static constexpr std::uint8_t floating = 2;
  static constexpr std::uint8_t bfloat = 4;
  static constexpr std::uint8_t float8_e4m3fn = 10;

  void* data;
  std::int32_t device_type;
  std::int32_t device_id;
  std::int32_t ndim;
  std::uint8_t type_code;
  std::uint8_t type_bits;
  std::uint16_t type_lanes;
  const std::int64_t* shape;
  const std::int64_t* strides;
  std::uint64_t byte_offset;

  void* address() const noexcept { return static_cast<unsigned char*>(data) + byte_offset; }

  std::size_t size() const noexcept {
    std::size_t elements = 1;
    for (std::int32_t axis = 0; axis < ndim; ++axis) elements *= static_cast<std::size_t>(shape[axis]);
    return elements;
  }

  // float32 or float64 in the CPU's memory; any other dtype or place is none.
  std::optional<DType> dtype() const noexcept {
    if (device_type != cpu || type_code != floating || type_lanes != 1) return std::nullopt;
    if (type_bits == 32) return float32;
    if (type_bits == 64) return float64;
    return std::nullopt;
  }

  // The storage of numbers that the core computes with in float32, in the CPU's memory; any other dtype or place is
  // none.
  std::optional<Storage> storage() const noexcept {
    if (device_type != cpu || type_lanes != 1) return std::nullopt;
    if (type_code == floating && type_bits == 32) return Storage::plain;
    if (type_code == floating && type_bits == 16) return Storage::float16;
    if (type_code == bfloat && type_bits == 16) return Storage::bfloat16;
    if (type_code == float8_e4m3fn && type_bits == 8) return Storage::float8;
    return std::nullopt;
  }

  // True for signed integers of this many bits in the CPU's memory.
  bool is_integer(std::uint8_t bits) const noexcept {
    return device_type == cpu && type_code == integer && type_bits == bits && type_lanes == 1;
  }

  // True if the elements fill the memory from the address on, in the order of the axes.
  bool is_contiguous() const noexcept {
    std::int64_t expected = 1;
    for (std::int32_t axis = ndim - 1; axis >= 0; --axis) {
      if (shape[axis] != 1 && strides[axis] != expected) return false;
      expected *= shape[axis];
    }
    return true;
  }

  // True if the elements fill the memory from the address on, in some order of the axes.
  bool is_dense() const {
    std::vector<std::int32_t> axes;
    for (std::int32_t axis = 0; axis < ndim; ++axis) {
      if (shape[axis] != 1) axes.push_back(axis);
    }
    std::sort(axes.begin(), axes.end(), [this](std::int32_t a, std::int32_t b) { return strides[a] < strides[b]; });
    std::int64_t expected = 1;
    for (const std::int32_t axis : axes) {
      if (shape[axis] == 0) return true;
      if (strides[axis] != expected) return false;
      expected *= shape[axis];
    }
    return true;
  }
};

// dtype, shape and strides of a tensor in the CPU's memory.
class TensorLayout {
 public:
  TensorLayout() = default;
  explicit TensorLayout(const DLTensor& tensor) : TensorLayout(tensor, tensor.dtype()) {}

  // A layout without a dtype, which matches no tensor.
  static TensorLayout shape_of(const DLTensor& tensor) { return {tensor, std::nullopt}; }

  // True if the tensor has this layout. Strides that reach no second element may differ.
  bool matches(const DLTensor& tensor) const noexcept {
    return dtype_ && tensor.dtype() == dtype_ && has_axes_of(tensor);
  }

  // True if the tensor has this layout with any dtype.
  bool fits(const DLTensor& tensor) const noexcept { return is_known_ && has_axes_of(tensor); }

 private:
  TensorLayout(const DLTensor& tensor, std::optional<DType> dtype)
      : dtype_(dtype), is_known_(true), elements_(tensor.size()) {
    for (std::int32_t axis = 0; axis < tensor.ndim; ++axis) {
      axes_.push_back({tensor.shape[axis], tensor.strides[axis]});
    }
  }

  bool has_axes_of(const DLTensor& tensor) const noexcept {
    if (static_cast<std::size_t>(tensor.ndim) != axes_.size()) return false;
    for (std::size_t axis = 0; axis < axes_.size(); ++axis) {
      if (tensor.shape[axis] != axes_[axis].extent) return false;
      if (axes_[axis].extent > 1 && elements_ != 0 && tensor.strides[axis] != axes_[axis].stride) return false;
    }
    return true;
  }

  struct Axis {
    std::int64_t extent;
    std::int64_t stride;
  };
  std::optional<DType> dtype_;  // none: matches nothing
  bool is_known_ = false;       // false: fits nothing
  std::size_t elements_ = 0;
  std::vector<Axis> axes_;
};

struct DLPackExchange {
  static constexpr std::uint32_t known_major = 1;
  using ViewTensor = int (*)(void* tensor, DLTensor* view);  // 0, or -1 with a Python exception set

  std::uint32_t major;
  std::uint32_t minor;
  void* previous;
  void* unused[3];         // functions that transfer ownership
  ViewTensor view_tensor;  // may be null
};

}  // namespace onepass::python
