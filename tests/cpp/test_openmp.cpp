// Steps on the threads of another library's OpenMP runtime: a stub, whose teams are of any size and in any order.
#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "check.hpp"
#include "child.hpp"
#include "core/executor.hpp"
#include "core/openmp.hpp"
#include "gomp_stub.hpp"

using onepass::Executor;
using onepass::OpenMP;

namespace {

constexpr std::size_t worth_it = std::size_t{1} << 30;  // bytes

struct Counted {
  explicit Counted(std::size_t count) : seen(count) {}
  std::vector<std::atomic<int>> seen;
};

void count(const void* context, std::size_t begin, std::size_t end) noexcept {
  auto& all = *static_cast<Counted*>(const_cast<void*>(context));
  for (std::size_t i = begin; i < end; ++i) ++all.seen[i];
}

Executor team_of(std::size_t threads) { return {threads, onepass::torch_openmp()}; }

}  // namespace

TEST(the_openmp_runtime_of_pytorch_is_found) {
  const OpenMP* const runtime = onepass::torch_openmp();
  CHECK(runtime != nullptr);
  CHECK(runtime->path.find("libtorch_cpu") != std::string::npos, runtime->path);
}

TEST(every_item_is_processed_once_by_any_team) {
  for (const stub::Team team : stub::teams) {
    for (const int max_threads : {2, 3, 20}) {
      stub::set_team(team, max_threads);
      for (const std::size_t threads : {2U, 3U, 20U}) {
        for (const std::size_t items : {2U, 5U, 1000U}) {
          Counted counted(items);
          const int before = stub::regions();
          onepass::run_parts(team_of(threads), &count, &counted, items, worth_it);
          CHECK_EQUAL(stub::regions(), before + 1);
          CHECK_EQUAL(stub::requested(), static_cast<unsigned>(max_threads));
          for (const auto& times : counted.seen) CHECK_EQUAL(times.load(), 1, static_cast<int>(team), max_threads);
        }
      }
    }
  }
}

TEST(work_for_one_thread_starts_no_parallel_region) {
  stub::set_team(stub::Team::as_asked, 4);
  const int before = stub::regions();
  Counted few(100);
  onepass::run_parts(team_of(4), &count, &few, 100, onepass::parallel_from_bytes - 1);
  Counted single(100);
  onepass::run_parts(team_of(1), &count, &single, 100, worth_it);
  stub::set_team(stub::Team::as_asked, 1);
  Counted no_team(100);
  onepass::run_parts(team_of(4), &count, &no_team, 100, worth_it);
  CHECK_EQUAL(stub::regions(), before);
  for (const Counted* counted : {&few, &single, &no_team}) {
    for (const auto& times : counted->seen) CHECK_EQUAL(times.load(), 1);
  }
}

TEST(a_step_inside_a_parallel_region_runs_on_the_calling_thread) {
  stub::set_team(stub::Team::as_asked, 2);
  struct Inner {
    Counted counted{64};
    std::atomic_flag done = ATOMIC_FLAG_INIT;
  } inner;
  const auto nested = [](const void* context, std::size_t, std::size_t) noexcept {
    auto& all = *static_cast<Inner*>(const_cast<void*>(context));
    if (!all.done.test_and_set()) onepass::run_parts(team_of(2), &count, &all.counted, 64, worth_it);
  };
  const int before = stub::regions();
  onepass::run_parts(team_of(2), nested, &inner, 8, worth_it);
  CHECK_EQUAL(stub::regions(), before + 1);
  for (const auto& times : inner.counted.seen) CHECK_EQUAL(times.load(), 1);
}

TEST(a_step_inside_a_region_of_another_library_runs_on_the_calling_thread) {
  stub::set_team(stub::Team::serial, 2);
  Counted counted(64);
  const int before = stub::regions();
  GOMP_parallel(
      [](void* data) {
        auto& counted = *static_cast<Counted*>(data);
        if (counted.seen[0] == 0) onepass::run_parts(team_of(2), &count, &counted, 64, worth_it);
      },
      &counted, 2, 0);
  CHECK_EQUAL(stub::regions(), before + 1);
  for (const auto& times : counted.seen) CHECK_EQUAL(times.load(), 1);
}

TEST(at_most_the_requested_number_of_threads_work) {
  stub::set_team(stub::Team::as_asked, 8);
  struct Workers {
    std::mutex mutex;
    std::set<std::thread::id> ids;
  } workers;
  const auto note = [](const void* context, std::size_t, std::size_t) noexcept {
    auto& all = *static_cast<Workers*>(const_cast<void*>(context));
    std::this_thread::sleep_for(std::chrono::milliseconds(1));  // until all members have come
    const std::scoped_lock lock(all.mutex);
    all.ids.insert(std::this_thread::get_id());
  };
  onepass::run_parts(team_of(2), note, &workers, 64, worth_it);
  CHECK_EQUAL(workers.ids.size(), std::size_t{2});
}

TEST(concurrent_steps_do_not_share_a_team) {
  stub::set_team(stub::Team::as_asked, 3);
  std::vector<std::thread> callers;
  std::vector<std::unique_ptr<Counted>> all;
  for (int i = 0; i < 4; ++i) all.push_back(std::make_unique<Counted>(5000));
  for (const auto& counted : all) {
    callers.emplace_back([&counted] {
      for (int i = 0; i < 20; ++i) onepass::run_parts(team_of(3), &count, counted.get(), 5000, worth_it);
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (const auto& counted : all) {
    for (const auto& times : counted->seen) CHECK_EQUAL(times.load(), 20);
  }
}

TEST(a_step_is_bit_identical_on_any_team) {
  test::Large expected;
  expected.step();
  for (const stub::Team team : stub::teams) {
    stub::set_team(team, 4);
    test::Large large;
    large.step(team_of(4));
    CHECK_ARRAYS(large.param.data(), expected.param.data(), test::Large::size);
  }
}
