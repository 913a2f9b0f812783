// Steps on several threads: bit-identical for any number of threads, for concurrent optimizers, and while options
// change.
#include <atomic>
#include <limits>
#include <thread>
#include <vector>

#include "check.hpp"
#include "core/executor.hpp"
#include "core/float_mode.hpp"
#include "twin.hpp"

namespace {

using onepass::float32;
using onepass::float64;
using test::Given;
using test::Random;
using test::Twin;
using test::Values;

onepass::CommonOptions plain(double lr) {
  return {lr, 0, std::numeric_limits<double>::infinity(), 0, false, false, false, false, false};
}

struct Threads {
  explicit Threads(int count) : before_(onepass::get_num_threads()) { onepass::set_num_threads(count); }
  ~Threads() { onepass::set_num_threads(before_); }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

 private:
  int before_;
};

// Large enough for several threads.
struct Large {
  static constexpr std::size_t size = 650000;
  std::vector<float> param, grad, m, v;
  onepass::Optimizer optimizer{false};

  explicit Large(std::size_t count = size, double lr = 0.1) : param(count), grad(count), m(count), v(count) {
    for (std::size_t i = 0; i < count; ++i) {
      param[i] = static_cast<float>(i % 97);
      grad[i] = static_cast<float>(i % 89) - 44;
    }
    onepass::Parameter parameter{float32, count, 1, {}, 0, 0, {}};
    parameter.operands = {param.data(), nullptr, {m.data(), v.data()}, nullptr};
    const std::vector<double> options{0.9, 0.999, 1e-8, 1, 0};
    optimizer.add_group(std::make_shared<onepass::Group>(test::rule_named("adam"), options, plain(lr)), {parameter});
  }

  void step() {
    const onepass::Gradient gradient{grad.data(), nullptr, 0};
    optimizer.take_options();
    optimizer.measure(&gradient, 1, true, true);
    optimizer.plan(&gradient, 1);
    optimizer.apply();
  }
};

}  // namespace

TEST(any_number_of_threads_matches_single_elements_bit_for_bit) {
  for (const int count : {1, 2, 3, 5, 16}) {
    const Threads threads(count);
    Random random(30);
    Twin twin(false);
    const onepass::RuleEntry& rule = test::rule_named("amsgrad");
    twin.add_group("amsgrad", test::any_options(rule, random), plain(0.1),
                   {{float32, 600007, 1}, {float64, 5, 1}, {float32, 0, 1}, {float64, 200001, 1}, {float32, 4097, 1}},
                   Values::ordinary, random);
    for (int step = 0; step < 2; ++step) {
      std::vector<Given> given;
      for (std::size_t i = 0; i < twin.parameter_count(); ++i) {
        given.push_back(twin.gradient(i, Values::ordinary, random, i == 3 ? 3 : 0));
      }
      twin.measure(given, 0.5, true, true);
      CHECK(twin.step(given, 0.5));
      twin.compare(test::words(count, "threads"));
    }
  }
}

TEST(every_item_is_processed_once_with_any_number_of_threads) {
  for (const int count : {1, 2, 3, 7, 64}) {
    const Threads threads(count);
    for (const std::size_t items : {0U, 1U, 2U, 63U, 64U, 1000U}) {
      std::vector<std::atomic<int>> seen(items);
      onepass::run_parts(
          onepass::pool_executor(),
          [](const void* context, std::size_t begin, std::size_t end) noexcept {
            auto& all = *static_cast<std::vector<std::atomic<int>>*>(const_cast<void*>(context));
            for (std::size_t i = begin; i < end; ++i) ++all[i];
          },
          &seen, items, std::size_t{1} << 31);
      for (std::size_t i = 0; i < items; ++i) CHECK_EQUAL(seen[i].load(), 1, count, items);
    }
  }
}

TEST(optimizers_in_several_threads_do_not_disturb_each_other) {
  const Threads threads(2);
  Large alone;
  for (int i = 0; i < 4; ++i) alone.step();
  std::vector<Large> all(4);
  std::vector<std::thread> workers;
  for (Large& one : all) {
    workers.emplace_back([&one] {
      for (int i = 0; i < 4; ++i) one.step();
    });
  }
  for (std::thread& worker : workers) worker.join();
  for (const Large& one : all) CHECK_ARRAYS(one.param.data(), alone.param.data(), Large::size);
}

TEST(a_call_that_finds_the_pool_busy_runs_on_its_own_thread) {
  const Threads threads(2);
  struct Nested {
    Large inner;
    std::atomic<int> parts{0};
  } nested;
  // The first part steps another optimizer while the pool is busy with this call.
  onepass::run_parts(
      onepass::pool_executor(),
      [](const void* context, std::size_t begin, std::size_t) noexcept {
        auto& all = *static_cast<Nested*>(const_cast<void*>(context));
        ++all.parts;
        if (begin == 0) all.inner.step();
      },
      &nested, 2, std::size_t{1} << 31);
  Large alone;
  alone.step();
  CHECK_EQUAL(nested.parts.load(), 2);
  CHECK_ARRAYS(nested.inner.param.data(), alone.param.data(), Large::size);
}

TEST(options_set_by_another_thread_are_read_atomically) {
  // Gradients are clamped to 1 with lr 1, or to 0.5 with lr 2: each step must be by exactly 1.
  const onepass::RuleEntry& rule = test::rule_named("sgd");
  const std::vector<double> options{0, 0, 0};
  onepass::CommonOptions one = plain(1);
  one.clip_value = 1;
  onepass::CommonOptions two = plain(2);
  two.clip_value = 0.5;
  auto group = std::make_shared<onepass::Group>(rule, options, one);
  double param = 0;
  const double grad = 8;
  onepass::Parameter parameter{float64, 1, 1, {}, 0, 0, {}};
  parameter.operands.param = &param;
  onepass::Optimizer optimizer(false);
  optimizer.add_group(group, {parameter});
  std::atomic<bool> stop{false};
  std::thread other([&] {
    for (bool first = false; !stop; first = !first) group->set(options, first ? one : two);
  });
  const onepass::Gradient gradient{&grad, nullptr, 0};
  for (int i = 0; i < 3000; ++i) {
    optimizer.take_options();
    optimizer.plan(&gradient, 1);
    optimizer.apply();
  }
  stop = true;
  other.join();
  CHECK_EQUAL(param, -3000.0);
}

TEST(the_number_of_threads_may_change_while_others_step) {
  const Threads before(2);
  Large alone;
  for (int i = 0; i < 6; ++i) alone.step();
  std::atomic<bool> stop{false};
  std::thread other([&] {
    for (int count = 1; !stop; count = count % 5 + 1) onepass::set_num_threads(count);
  });
  Large one;
  for (int i = 0; i < 6; ++i) one.step();
  stop = true;
  other.join();
  CHECK_ARRAYS(one.param.data(), alone.param.data(), Large::size);
}

TEST(pool_threads_flush_only_during_steps_that_flush) {
  if (test::flush_modes().size() < 2) return;
  const Threads threads(3);
  const std::size_t size = 600000;
  std::vector<float> param(size), grad(size, std::numeric_limits<float>::denorm_min() * 8);
  onepass::Parameter parameter{float32, size, 1, {}, 0, 1, {}};
  parameter.operands.param = param.data();
  parameter.operands.grad = grad.data();
  const double options[3] = {};
  for (int i = 0; i < 10; ++i) {
    const bool flush = i % 2 == 0;
    std::fill(param.begin(), param.end(), 0.0F);
    CHECK(onepass::step_once(test::rule_named("sgd"), options, plain(1), 1, parameter, flush));
    for (const float p : param) {
      if (p != (flush ? 0 : -grad[0])) {
        CHECK(false, "flush", flush, p);
        break;
      }
    }
  }
}

TEST(a_number_of_threads_below_one_becomes_one) {
  const Threads before(2);
  onepass::set_num_threads(0);
  CHECK_EQUAL(onepass::get_num_threads(), 1);
  onepass::set_num_threads(-7);
  CHECK_EQUAL(onepass::get_num_threads(), 1);
}
