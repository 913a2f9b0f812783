// The queue of chunks, with workers in any number and order.
#include <cstdint>

#include "check.hpp"
#include "core/work_queue.hpp"

namespace {

void add(const void* context, std::size_t begin, std::size_t end) noexcept {
  *static_cast<std::uint64_t*>(const_cast<void*>(context)) += end - begin;
}

}  // namespace

TEST(one_worker_empties_the_queue_with_any_worker_number) {
  for (const std::size_t count : {0U, 1U, 2U, 1000U, 4097U}) {
    for (const std::size_t chunk : {0U, 1U, 7U, 5000U}) {
      for (const std::size_t workers : {0U, 1U, 2U, 64U, 65U, 4096U}) {
        for (const std::size_t worker : {0U, 1U, 63U, 64U, 5000U}) {
          std::uint64_t items = 0;
          onepass::WorkQueue queue(&add, &items, count, chunk, workers);
          queue.work(worker);
          CHECK_EQUAL(items, std::uint64_t{count}, chunk, workers, worker);
          queue.work(worker + 1);
          CHECK_EQUAL(items, std::uint64_t{count});
        }
      }
    }
  }
}

TEST(chunks_are_enlarged_if_the_queue_cannot_count_them) {
  if (sizeof(std::size_t) < 8) return;
  const auto count = static_cast<std::size_t>(std::uint64_t{1} << 40);
  std::uint64_t items = 0;
  onepass::WorkQueue queue(&add, &items, count, 1, 3);
  queue.work(2);
  CHECK_EQUAL(items, std::uint64_t{count});
}
