// Sweeps over narrow storage, in one pass over memory: decode a chunk of elements into the L1 cache, update it with the
// float32 sweep, and encode it again. Update rules need no code for narrow storage.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/bfloat16.hpp"
#include "kernels/builtins.hpp"
#include "kernels/float8.hpp"
#include "kernels/random_bits.hpp"
#include "kernels/rounding.hpp"
#include "kernels/table.hpp"

namespace onepass {
namespace {

constexpr std::size_t narrow_chunk = 256;  // elements: two chunks of all arrays fit in the L1 cache
constexpr unsigned weight_slot = 3;        // of the random bits; states have slots 0 to 2
static_assert(narrow_chunk % scale_group == 0 && max_states == weight_slot, "slots 0 to 2 belong to the states");

template <class T>
T* element(void* array, std::size_t index) noexcept {
  return static_cast<T*>(array) + index;
}
template <class T>
const T* element(const void* array, std::size_t index) noexcept {
  return static_cast<const T*>(array) + index;
}

constexpr std::size_t bytes_of(Storage storage) noexcept {
  if (storage == Storage::plain) return sizeof(float);
  return storage == Storage::float8 ? 1 : 2;
}

void decode(Storage storage, const void* array, const float* scales, std::size_t begin, std::size_t end, float* out) {
  const std::size_t count = end - begin;
  switch (storage) {
    case Storage::plain:  // nothing to decode
      break;
    case Storage::bfloat16:
      decode_bfloat16(element<std::uint16_t>(array, begin), count, out);
      break;
    case Storage::float16:
      decode_float16(element<std::uint16_t>(array, begin), count, out);
      break;
    case Storage::float8:
      decode_float8(element<std::uint8_t>(array, begin), scales + begin / scale_group, count, out);
      break;
  }
}

template <class Rounding>
void encode_as(Storage storage, const float* x, std::size_t count, const Rounding rounding, bool divisor, void* array,
               float* scales) noexcept {
  if (storage == Storage::bfloat16) {
    encode_bfloat16(x, count, rounding, static_cast<std::uint16_t*>(array));
  } else if (storage == Storage::float8 && divisor) {
    encode_float8<true>(x, count, rounding, static_cast<std::uint8_t*>(array), scales);
  } else if (storage == Storage::float8) {
    encode_float8<false>(x, count, rounding, static_cast<std::uint8_t*>(array), scales);
  }
}

void encode(Storage storage, const float* x, std::size_t count, bool divisor, void* array, float* scales) {
  encode_as(storage, x, count, Nearest{}, divisor, array, scales);
}

inline void join_param(const NarrowStorage& storage, void* param, std::size_t begin, std::size_t count,
                       float* out) noexcept {
  const auto* const high = element<std::uint16_t>(param, begin);
  if (storage.master_bits == 32) {
    join<0>(high, element<std::int16_t>(storage.low, begin), count, out);
  } else if (storage.master_bits == 24) {
    join<8>(high, element<std::int8_t>(storage.low, begin), count, out);
  } else {
    decode_bfloat16(high, count, out);
  }
}

template <class Rounding>
void split_param(const NarrowStorage& storage, const float* x, std::size_t count, const Rounding rounding, void* param,
                 std::size_t begin) noexcept {
  auto* const high = element<std::uint16_t>(param, begin);
  if (storage.master_bits == 32) {
    split(x, count, high, element<std::int16_t>(storage.low, begin));
  } else if (storage.master_bits == 24) {
    split24(x, count, rounding, high, element<std::int8_t>(storage.low, begin));
  } else {
    encode_bfloat16(x, count, rounding, high);
  }
}

// A chunk's arrays in float32, and its random bits, all aligned to cache lines.
struct NarrowBuffers {
  alignas(64) float param[narrow_chunk];
  alignas(64) float grad[narrow_chunk];
  alignas(64) float state[max_states][narrow_chunk];
  alignas(64) std::uint32_t random[narrow_chunk];
};

// Decodes a chunk into the buffers; arrays that are not narrow are used in place.
inline Operands decoded(const Operands& x, const NarrowStorage& storage, std::size_t begin, std::size_t count,
                        NarrowBuffers& near) {
  Operands operands = {near.param, near.grad, {}, nullptr};
  if (x.average != nullptr) operands.average = element<float>(x.average, begin);
  if (storage.param == Storage::plain) {
    operands.param = element<float>(x.param, begin);
  } else {
    join_param(storage, x.param, begin, count, near.param);
  }
  if (storage.grad == Storage::plain) {
    operands.grad = element<float>(x.grad, begin);
  } else {
    decode(storage.grad, x.grad, nullptr, begin, begin + count, near.grad);
  }
  for (std::size_t k = 0; k < max_states && x.state[k] != nullptr; ++k) {
    if (storage.state[k] == Storage::plain) {
      operands.state[k] = element<float>(x.state[k], begin);
    } else {
      decode(storage.state[k], x.state[k], storage.scale[k], begin, begin + count, near.state[k]);
      operands.state[k] = near.state[k];
    }
  }
  return operands;
}

// Encodes the chunk in the buffers.
inline void encode_chunk(const Operands& x, const NarrowStorage& storage, std::size_t begin, std::size_t count,
                         NarrowBuffers& near) {
  // Calls encode with the rounding of a slot.
  unsigned drawn = max_states;  // the use of the random bits in the buffer: none yet
  const auto rounded = [&](unsigned slot, auto encode) noexcept {
    if (!storage.stochastic) return encode(Nearest{});
    const unsigned use = slot / 2;
    if (use != drawn) random_bits(storage.key, use, storage.first + begin, count, near.random);
    drawn = use;
    if (slot % 2 == 0) return encode(Stochastic<false>{near.random});
    return encode(Stochastic<true>{near.random});
  };
  for (unsigned k = 0; k < max_states && x.state[k] != nullptr; ++k) {
    if (storage.state[k] == Storage::plain) continue;
    void* const array = element<unsigned char>(x.state[k], begin * bytes_of(storage.state[k]));
    float* const scales = storage.scale[k] != nullptr ? storage.scale[k] + begin / scale_group : nullptr;
    rounded(k, [&](auto rounding) noexcept {
      encode_as(storage.state[k], near.state[k], count, rounding, storage.divisor[k], array, scales);
    });
  }
  if (storage.param == Storage::plain) return;
  if (storage.master_bits == 32) {
    split_param(storage, near.param, count, Nearest{}, x.param, begin);
  } else {
    rounded(weight_slot,
            [&](auto rounding) noexcept { split_param(storage, near.param, count, rounding, x.param, begin); });
  }
}

// Starts loading a chunk from memory during the arithmetic of the chunk before it: the hardware prefetcher loses track
// of this many short streams. Not noexcept: GCC 12 would then link narrow_sweep to its runtime for exceptions.
inline void prefetch(const void* array, std::size_t index, Storage storage) {
  const auto* const bytes = static_cast<const unsigned char*>(array) + index * bytes_of(storage);
  for (std::size_t i = 0; i < narrow_chunk * bytes_of(storage); i += 64) ONEPASS_PREFETCH(bytes + i);
}

void narrow_sweep(SweepFunction sweep, const PackedCoefficients& packed, const Operands& operands,
                  const NarrowStorage& storage, std::size_t begin, std::size_t end) {
  // Kilobytes, always written before they are read: NOLINTNEXTLINE(cppcoreguidelines-pro-type-member-init)
  NarrowBuffers near;
  for (std::size_t from = begin; from < end;) {
    // The random bits depend on the upper half of the element's index, so a chunk ends where this half changes.
    const std::uint64_t until_carry = (std::uint64_t{1} << 32) - ((storage.first + from) & 0xFFFFFFFF);
    std::size_t count = end - from < narrow_chunk ? end - from : narrow_chunk;
    if (count > until_carry) count = static_cast<std::size_t>(until_carry);
    // Prefetch in three portions: a core has 10 to 16 line-fill buffers, and 40 requests at once made a step with
    // bfloat16 state take 1.2 times as long (16 million elements, AVX-512, Xeon).
    const std::size_t next = from + narrow_chunk;
    const bool is_whole = end - from >= 2 * narrow_chunk;
    if (is_whole) prefetch(operands.param, next, storage.param);
    const Operands chunk = decoded(operands, storage, from, count, near);
    if (is_whole) prefetch(operands.grad, next, storage.grad);
    sweep(packed, chunk, 0, count);
    for (std::size_t k = 0; is_whole && k < max_states && operands.state[k] != nullptr; ++k) {
      prefetch(operands.state[k], next, storage.state[k]);
    }
    encode_chunk(operands, storage, from, count, near);
    from += count;
  }
}

}  // namespace
}  // namespace onepass
