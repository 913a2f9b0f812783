// Main program of the tests: runs all tests, or the tests whose names contain a given word.
#include "check.hpp"

#include <atomic>
#include <cstdio>
#include <exception>
#include <vector>

namespace test {
namespace {

struct Test {
  const char* name;
  void (*function)();
};

std::vector<Test>& all() {
  static std::vector<Test> tests;
  return tests;
}

std::atomic<int> failures{0};

}  // namespace

Registration::Registration(const char* name, void (*function)()) { all().push_back({name, function}); }

void fail(const char* file, int line, const std::string& what) {
  constexpr int enough = 20;
  const int so_far = ++failures;
  if (so_far <= enough) std::printf("%s:%d: %s\n", file, line, what.c_str());
  if (so_far == enough) std::printf("further failures are counted only\n");
  std::fflush(stdout);
}

}  // namespace test

int main(int count, char** arguments) {
  int run = 0;
  for (const test::Test& one : test::all()) {
    if (count > 1 && std::string(one.name).find(arguments[1]) == std::string::npos) continue;
    ++run;
    const int before = test::failures;
    try {
      one.function();
    } catch (const std::exception& error) {
      test::fail(one.name, 0, std::string("threw ") + error.what());
    }
    std::printf("%s %s\n", test::failures == before ? "ok    " : "FAILED", one.name);
    std::fflush(stdout);
  }
  if (run == 0) std::printf("no such test\n");
  std::printf("%d tests, %d failures\n", run, test::failures.load());
  return run != 0 && test::failures == 0 ? 0 : 1;
}
