// Views of PyTorch's tensors without a Python call: the parts used here of DLPack's exchange interface, version 1
// (https://dmlc.github.io/dlpack, DLPackExchangeAPI). PyTorch has it from 2.10 on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace onepass::python {

// A view of the memory of a tensor, which keeps it.
struct DLTensor {
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

  const void* address() const noexcept { return static_cast<const unsigned char*>(data) + byte_offset; }
};

// dtype, shape and strides of a CPU tensor.
class TensorLayout {
 public:
  explicit TensorLayout(const DLTensor& tensor) : type_code_(tensor.type_code), type_bits_(tensor.type_bits) {
    for (std::int32_t axis = 0; axis < tensor.ndim; ++axis) {
      axes_.push_back({tensor.shape[axis], tensor.strides[axis]});
      elements_ *= static_cast<std::size_t>(tensor.shape[axis]);
    }
  }

  // True if the tensor has this layout. Strides that reach no second element may differ.
  bool matches(const DLTensor& tensor) const noexcept {
    constexpr std::int32_t cpu = 1;
    const bool same = tensor.device_type == cpu && tensor.type_code == type_code_ && tensor.type_bits == type_bits_ &&
                      tensor.type_lanes == 1 && static_cast<std::size_t>(tensor.ndim) == axes_.size();
    for (std::size_t axis = 0; same && axis < axes_.size(); ++axis) {
      if (tensor.shape[axis] != axes_[axis].extent) return false;
      if (axes_[axis].extent > 1 && elements_ != 0 && tensor.strides[axis] != axes_[axis].stride) return false;
    }
    return same;
  }

 private:
  struct Axis {
    std::int64_t extent;
    std::int64_t stride;
  };
  std::uint8_t type_code_;
  std::uint8_t type_bits_;
  std::vector<Axis> axes_;
  std::size_t elements_ = 1;
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
