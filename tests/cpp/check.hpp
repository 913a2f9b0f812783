// Tests without a framework: functions whose names are sentences, and checks that print both sides.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iomanip>
#include <limits>
#include <sstream>
#include <string>

namespace test {

struct Registration {
  Registration(const char* name, void (*function)());
};

// Reports a failure; after many failures, only counts them.
void fail(const char* file, int line, const std::string& what);

template <class T>
std::string shown(const T& value) {
  std::ostringstream text;
  if constexpr (std::is_floating_point_v<T>) {
    text << std::hexfloat << value << " (" << std::defaultfloat
         << std::setprecision(std::numeric_limits<T>::max_digits10) << value << ")";
  } else {
    text << std::boolalpha << value;
  }
  return text.str();
}

// Join the values into the message of a failed check. A value is anything that a stream takes.
template <class... Words>
std::string words(const Words&... said) {
  std::ostringstream text;
  ((text << said << ' '), ...);
  return text.str();
}

template <class... Words>
void check(const char* file, int line, const char* what, bool good, const Words&... said) {
  if (!good) fail(file, line, std::string(what) + "  " + words(said...));
}

template <class A, class B, class... Words>
void equal(const char* file, int line, const char* what, const A& actual, const B& expected, const Words&... said) {
  if (actual == expected) return;
  fail(file, line, std::string(what) + ": " + shown(actual) + " should be " + shown(expected) + "  " + words(said...));
}

// Compares bits, except that all NaNs are equal.
template <class T>
bool same_bits(T a, T b) {
  return std::memcmp(&a, &b, sizeof a) == 0 || (a != a && b != b);
}

template <class T, class... Words>
void same(const char* file, int line, const char* what, T actual, T expected, const Words&... said) {
  if (same_bits(actual, expected)) return;
  fail(file, line, std::string(what) + ": " + shown(actual) + " should be " + shown(expected) + "  " + words(said...));
}

template <class T, class... Words>
void same_arrays(const char* file, int line, const char* what, const T* actual, const T* expected, std::size_t count,
                 const Words&... said) {
  for (std::size_t i = 0; i < count; ++i) {
    if (same_bits(actual[i], expected[i])) continue;
    return same(file, line, what, actual[i], expected[i], "element", i, "of", count, said...);
  }
}

}  // namespace test

#define TEST(name)                                             \
  static void name();                                          \
  static const test::Registration name##_test(#name, &(name)); \
  static void name()

// Further arguments are values for the message of a failed check.
#define CHECK(...) test::check(__FILE__, __LINE__, #__VA_ARGS__, __VA_ARGS__)
#define CHECK_EQUAL(...) test::equal(__FILE__, __LINE__, #__VA_ARGS__, __VA_ARGS__)
#define CHECK_BITS(...) test::same(__FILE__, __LINE__, #__VA_ARGS__, __VA_ARGS__)
#define CHECK_ARRAYS(...) test::same_arrays(__FILE__, __LINE__, #__VA_ARGS__, __VA_ARGS__)
