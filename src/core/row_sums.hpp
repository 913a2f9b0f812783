// Sums of the values that a sparse gradient has for the same row.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "core/optimizer.hpp"

namespace onepass {

class RowSums {
 public:
  // Returns the gradient with ascending rows, each once: values of equal rows are added in the order given. rows: count
  // numbers; values: a contiguous row of row_size elements for each. The result refers to the arguments or to memory
  // that the next call reuses.
  Gradient of(const std::int64_t* rows, std::size_t count, const void* values, DType dtype, std::size_t row_size);

 private:
  template <class T>
  const void* add_up(const T* values, std::size_t row_size);

  std::vector<std::pair<std::int64_t, std::size_t>> order_;  // each row and its place in the arguments
  std::vector<std::int64_t> rows_;
  std::vector<unsigned char> values_;
};

}  // namespace onepass
