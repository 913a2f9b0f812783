// Work that several threads take from in chunks.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace onepass {

// A function that works on items [begin, end).
using Part = void (*)(const void* context, std::size_t begin, std::size_t end) noexcept;

// Items [0, count), cut into chunks. Each worker owns a contiguous range of chunks and takes from its front, so that
// its memory is the same in each step; when its range is empty, it takes chunks from the ends of other ranges. Any
// number of workers may call work(), in any order and at any time. When a worker finds no chunk, all chunks are taken.
class WorkQueue {
 public:
  WorkQueue(Part part, const void* context, std::size_t count, std::size_t chunk, std::size_t workers) noexcept
      : part_(part), context_(context), count_(count), ranges_in_use_(std::clamp<std::size_t>(workers, 1, max_ranges)) {
    chunk_ = std::max({chunk, std::size_t{1}, count / max_chunks + 1});
    const std::size_t chunks = (count + chunk_ - 1) / chunk_;
    for (std::size_t i = 0; i < ranges_in_use_; ++i) {
      ranges_[i].bounds.store(pack(border(chunks, i), border(chunks, i + 1)), std::memory_order_relaxed);
    }
  }

  // Takes chunks until none is left. Workers beyond the number of ranges share one.
  void work(std::size_t worker) noexcept {
    const std::size_t own = worker % ranges_in_use_;
    std::size_t chunk = 0;
    while (take_first(own, chunk)) run(chunk);
    for (std::size_t i = 1; i < ranges_in_use_; ++i) {
      while (take_last((own + i) % ranges_in_use_, chunk)) run(chunk);
    }
  }

 private:
  static constexpr std::size_t max_ranges = 64;
  static constexpr std::size_t max_chunks = std::size_t{1} << 24;

  // Untaken chunks of one range: the first chunk and the end, in one word, so that both change atomically. Each range
  // has its own cache line.
  struct alignas(64) Range {
    std::atomic<std::uint64_t> bounds{0};
  };

  static std::uint64_t pack(std::size_t begin, std::size_t end) noexcept {
    return static_cast<std::uint64_t>(begin) << 32 | end;
  }

  std::size_t border(std::size_t chunks, std::size_t i) const noexcept { return chunks * i / ranges_in_use_; }

  bool take_first(std::size_t range, std::size_t& chunk) noexcept {
    return take(range, [&chunk](std::size_t begin, std::size_t end) {
      chunk = begin;
      return pack(begin + 1, end);
    });
  }

  bool take_last(std::size_t range, std::size_t& chunk) noexcept {
    return take(range, [&chunk](std::size_t begin, std::size_t end) {
      chunk = end - 1;
      return pack(begin, end - 1);
    });
  }

  template <class Next>
  bool take(std::size_t range, Next next) noexcept {
    std::atomic<std::uint64_t>& bounds = ranges_[range].bounds;
    std::uint64_t seen = bounds.load(std::memory_order_relaxed);
    for (;;) {
      const auto begin = static_cast<std::size_t>(seen >> 32);
      const auto end = static_cast<std::size_t>(seen & 0xffffffff);
      if (begin >= end) return false;
      if (bounds.compare_exchange_weak(seen, next(begin, end), std::memory_order_relaxed)) return true;
    }
  }

  void run(std::size_t chunk) const noexcept {
    part_(context_, chunk * chunk_, std::min(count_, (chunk + 1) * chunk_));
  }

  const Part part_;
  const void* const context_;
  const std::size_t count_;
  const std::size_t ranges_in_use_;
  std::size_t chunk_;
  Range ranges_[max_ranges];
};

}  // namespace onepass
