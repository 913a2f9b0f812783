// How PyTorch (from 2.10 on) lets others see its tensors without a call of Python's: what is used here of DLPack's
// exchange interface, version 1 (https://dmlc.github.io/dlpack, DLPackExchangeAPI).
#pragma once

#include <cstddef>
#include <cstdint>

namespace onepass {

// A view of a tensor's memory, which stays the tensor's own.
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

  // Whether it is of the processor's own floating-point numbers of that many bytes.
  bool is_float(std::size_t bytes) const noexcept {
    constexpr std::uint8_t floating = 2;
    return type_code == floating && type_bits == 8 * bytes && type_lanes == 1;
  }

  // Whether it is in the processor's memory, of that many elements, and lies as the other does.
  bool lies_as(const DLTensor& other, std::size_t size) const noexcept {
    constexpr std::int32_t cpu = 1;
    if (device_type != cpu || ndim != other.ndim) return false;
    std::size_t elements = 1;
    for (std::int32_t axis = 0; axis < ndim; ++axis) {
      if (shape[axis] != other.shape[axis]) return false;
      if (shape[axis] > 1 && strides[axis] != other.strides[axis]) return false;
      elements *= static_cast<std::size_t>(shape[axis]);
    }
    return elements == size;
  }
};

struct DLPackExchange {
  static constexpr std::uint32_t known_major = 1;
  using Look = int (*)(void* tensor, DLTensor* view);  // 0, or -1 and an exception is set

  std::uint32_t major;
  std::uint32_t minor;
  void* previous;
  void* unused[3];  // for memory that changes hands
  Look look;        // may be null
};

}  // namespace onepass
