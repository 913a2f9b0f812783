#include "core/row_sums.hpp"

#include <algorithm>
#include <functional>

namespace onepass {
namespace {

// Addresses for gradients without rows: null means that there is no gradient.
constexpr std::int64_t no_row = 0;
constexpr double no_value = 0;

}  // namespace

Gradient RowSums::of(const std::int64_t* rows, std::size_t count, const void* values, DType dtype,
                     std::size_t row_size) {
  if (count == 0) return {&no_value, &no_row, 0};
  if (row_size == 0) values = &no_value;
  if (std::adjacent_find(rows, rows + count, std::greater_equal<>()) == rows + count) return {values, rows, count};
  order_.clear();
  for (std::size_t i = 0; i < count; ++i) order_.emplace_back(rows[i], i);
  std::sort(order_.begin(), order_.end());
  rows_.clear();
  for (const auto& [row, place] : order_) {
    if (rows_.empty() || rows_.back() != row) rows_.push_back(row);
  }
  values_.resize(rows_.size() * row_size * bytes_of(dtype));
  const void* const sums = dtype == float32 ? add_up(static_cast<const float*>(values), row_size)
                                            : add_up(static_cast<const double*>(values), row_size);
  return {row_size == 0 ? &no_value : sums, rows_.data(), rows_.size()};
}

template <class T>
const void* RowSums::add_up(const T* values, std::size_t row_size) {
  T* const sums = reinterpret_cast<T*>(values_.data());
  T* sum = sums;
  for (std::size_t i = 0; i < order_.size(); ++i) {
    const T* const value = values + order_[i].second * row_size;
    const bool is_new = i == 0 || order_[i].first != order_[i - 1].first;
    if (is_new) {
      sum = i == 0 ? sums : sum + row_size;
      std::copy(value, value + row_size, sum);
    } else {
      std::transform(sum, sum + row_size, value, sum, std::plus<>());
    }
  }
  return sums;
}

}  // namespace onepass
