// The elements' part of the executable specification, compiled: the oracle of the soak test. Plain loops, one element
// at a time, written from the formulas and from the definition of each format; it shares no code with the kernels. In
// loops, branches are selections or depend on no element, so that the compiler can vectorise them.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

// The coefficients, with their names from the specification. Missing coefficients are NaN, flags are 0 or 1. The names
// from `scale` on belong to the stages before and after every rule.
#define NUMBERS                                                                                                      \
  a, alpha, b, beta1, beta2, beta3, c, eps, first, k1, k2, lr, momentum, nesterov, one_minus_alpha, one_minus_beta1, \
      one_minus_beta2, one_minus_beta3, one_minus_dampening, one_minus_rho, r, rho, weight_decay, zero, scale,       \
      clip_value, penalty, shrink, w
#define TEXT_OF(...) #__VA_ARGS__
#define TEXT(...) TEXT_OF(__VA_ARGS__)

namespace {

constexpr std::size_t group = 128;  // elements that share a float8 scale
constexpr std::size_t max_states = 3;

template <class T>
struct Numbers {
  T NUMBERS;
};

enum Format : std::int32_t { absent, plain, bfloat16, float8, split24, split32 };

// An array in memory, with the scales of float8 or the lower bits of a parameter.
struct Stored {
  void* data;
  void* companion;
  std::int32_t format;
  std::int32_t slot;  // of its random bits; below 0: round to nearest
  std::int32_t is_divisor;
};

struct Step {
  Stored arrays[1 + max_states];  // the parameter and its states
  const void* grad;
  void* average;
  std::int64_t size;
  std::uint64_t seed;
  std::uint64_t t;
  std::int32_t flush;
};

template <class T>
bool present(T number) {
  return number == number;
}

// ---- Selections, of bits: a processor that flushes subnormal numbers would flush the result of its own minimum ----

template <class T>
T choose(bool condition, T yes, T no) {
  using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
  Bits chosen, other;
  std::memcpy(&chosen, &yes, sizeof chosen);
  std::memcpy(&other, &no, sizeof other);
  const Bits mask = Bits{0} - Bits{condition};
  chosen = (chosen & mask) | (other & ~mask);
  T result;
  std::memcpy(&result, &chosen, sizeof result);
  return result;
}

template <class T>
T larger(T x, T y) {
  return choose(x > y || !present(x), x, y);
}

template <class T>
T clamped(T x, T limit) {
  x = choose(x < -limit, -limit, x);
  return choose(x > limit, limit, x);
}

// ---- The rules ----

template <class T>
T mean(T decay, T one_minus_decay, T old, T now) {
  return decay * old + one_minus_decay * now;
}

// The states of an element, in the order of the specification; on: false for a state that an option switches off.
template <class T>
struct States {
  T (&value)[max_states];
  const bool (&on)[max_states];
};

template <class T>
void adam(const Numbers<T>& k, T& p, T g, States<T> s) {
  T &m = s.value[0], &v = s.value[1], &vmax = s.value[2];
  m = mean(k.beta1, k.one_minus_beta1, m, g);
  v = mean(k.beta2, k.one_minus_beta2, v, g * g);
  if (s.on[2]) vmax = larger(vmax, v);
  const T root = std::sqrt(s.on[2] ? vmax : v);
  const T d = (present(k.r) ? root * k.r : root) + k.eps;
  p = p - k.a * (m / d);
}

template <class T>
void adamax(const Numbers<T>& k, T& p, T g, States<T> s) {
  T &m = s.value[0], &u = s.value[1];
  m = mean(k.beta1, k.one_minus_beta1, m, g);
  u = larger(k.beta2 * u, std::fabs(g) + k.eps);
  p = p - k.a * (m / u);
}

template <class T>
void nadam(const Numbers<T>& k, T& p, T g, States<T> s) {
  T &m = s.value[0], &v = s.value[1];
  m = mean(k.beta1, k.one_minus_beta1, m, g);
  v = mean(k.beta2, k.one_minus_beta2, v, g * g);
  const T d = std::sqrt(v) * k.r + k.eps;
  p = (p - k.a * (g / d)) - k.b * (m / d);
}

template <class T>
void radam(const Numbers<T>& k, T& p, T g, States<T> s) {
  T &m = s.value[0], &v = s.value[1];
  m = mean(k.beta1, k.one_minus_beta1, m, g);
  v = mean(k.beta2, k.one_minus_beta2, v, g * g);
  p = p - k.a * (present(k.eps) ? m / (std::sqrt(v) + k.eps) : m);
}

template <class T>
void rmsprop(const Numbers<T>& k, T& p, T g, States<T> s) {
  T &v = s.value[0], &average = s.value[1], &b = s.value[2];
  v = mean(k.alpha, k.one_minus_alpha, v, g * g);
  T variance = v;
  if (s.on[1]) {
    average = mean(k.alpha, k.one_minus_alpha, average, g);
    variance = larger(v - average * average, T(0));
  }
  T x = g / (std::sqrt(variance) + k.eps);
  if (s.on[2]) x = b = k.momentum * b + x;
  p = p - k.lr * x;
}

template <class T>
void adagrad(const Numbers<T>& k, T& p, T g, States<T> s) {
  T& sum = s.value[0];
  sum = sum + g * g;
  p = p - k.a * (g / (std::sqrt(sum) + k.eps));
}

template <class T>
void adadelta(const Numbers<T>& k, T& p, T g, States<T> s) {
  T &v = s.value[0], &acc = s.value[1];
  v = mean(k.rho, k.one_minus_rho, v, g * g);
  const T x = (std::sqrt(acc + k.eps) / std::sqrt(v + k.eps)) * g;
  acc = mean(k.rho, k.one_minus_rho, acc, x * x);
  p = p - k.lr * x;
}

template <class T>
void sgd(const Numbers<T>& k, T& p, T g, States<T> s) {
  T& b = s.value[0];
  T x = g;
  if (s.on[0]) {
    b = choose(k.first == 1, g, mean(k.momentum, k.one_minus_dampening, b, g));
    x = k.nesterov == 1 ? g + k.momentum * b : b;
  }
  p = p - k.lr * x;
}

template <class T>
void lion(const Numbers<T>& k, T& p, T g, States<T> s) {
  T& m = s.value[0];
  const T x = mean(k.beta1, k.one_minus_beta1, m, g);
  const T sign = x > 0 ? T(1) : x < 0 ? T(-1) : present(x) ? T(0) : x;
  p = p - k.lr * sign;
  m = mean(k.beta2, k.one_minus_beta2, m, g);
}

template <class T>
void ademamix(const Numbers<T>& k, T& p, T g, States<T> s) {
  T &m = s.value[0], &v = s.value[1], &slow = s.value[2];
  m = mean(k.beta1, k.one_minus_beta1, m, g);
  v = mean(k.beta2, k.one_minus_beta2, v, g * g);
  slow = mean(k.beta3, k.one_minus_beta3, slow, g);
  p = p - (k.k1 * m + k.k2 * slow) / (std::sqrt(v) * k.r + k.eps);
}

template <class T>
void schedule_free_adamw(const Numbers<T>& k, T& y, T g, States<T> s) {
  T &v = s.value[0], &z = s.value[1];
  v = mean(k.beta2, k.one_minus_beta2, v, g * g);
  const T u = g / (std::sqrt(v) * k.r + k.eps) + k.weight_decay * y;
  y = k.c == 1 ? z : y + k.c * (z - y);
  y = y - k.a * u;
  z = z - k.lr * u;
}

// ---- Random bits ----

std::uint64_t mix(std::uint64_t x) {
  x += 0x9E3779B97F4A7C15;
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9;
  x = (x ^ x >> 27) * 0x94D049BB133111EB;
  return x ^ x >> 31;
}

// The key of two slots, for the first parameter.
std::uint64_t key_of(const Step& step, std::int32_t slot) {
  return mix(mix(mix(mix(step.seed) ^ step.t) ^ static_cast<std::uint64_t>(slot >> 1)));
}

// The 16 bits of element i, one of the first 2^32.
std::uint32_t random_bits(std::uint64_t key, std::int32_t slot, std::size_t i) {
  std::uint32_t x = static_cast<std::uint32_t>(i) * 0x9E3779B1 + static_cast<std::uint32_t>(key);
  x = (x ^ x >> 16) * 0x7FEB352D;
  x ^= static_cast<std::uint32_t>(key >> 32);
  x = (x ^ x >> 15) * 0x846CA68B;
  x ^= x >> 16;
  return x >> slot % 2 * 16 & 0xFFFF;
}

// ---- Formats ----

constexpr std::uint32_t sign_bit = 0x80000000, infinity = 0x7F800000, nan = 0x7FC00000, largest = 0x7F7FFFFF,
                        smallest_normal = 0x00800000;

std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

float float_of(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

std::uint16_t upper_half(std::uint32_t bits) { return static_cast<std::uint16_t>(bits >> 16); }

// The magnitude of a normal number, 0 for any other.
std::uint32_t normal(std::uint32_t magnitude) {
  return magnitude & (0u - std::uint32_t{magnitude - smallest_normal < infinity - smallest_normal});
}

// The bits of x, its magnitude rounded to a multiple of 2^dropped: at random with r below 2^dropped, or to nearest.
std::uint32_t rounded(float x, int dropped, bool at_random, std::uint32_t r, std::uint32_t half) {
  const std::uint32_t sign = bits_of(x) & sign_bit, magnitude = bits_of(x) & ~sign_bit;
  const std::uint32_t up = at_random ? std::min(magnitude + r, largest) : magnitude + half;
  return sign | (magnitude < infinity ? up >> dropped << dropped : magnitude == infinity ? infinity : nan);
}

// The values of the codes of e4m3: 3 bits of mantissa, 4 of exponent, bias 7, subnormal codes below 8. The last is NaN.
struct Float8Values {
  float value[128];
  Float8Values() {
    for (int code = 0; code < 127; ++code) {
      const int exponent = code >> 3, mantissa = code & 7;
      value[code] =
          static_cast<float>(exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10));
    }
    value[127] = std::numeric_limits<float>::quiet_NaN();
  }
};
const Float8Values float8_values;

float from_float8(std::uint8_t code, float scale) {
  const std::uint32_t sign = (code & 128u) << 24, magnitude = code & 127u;
  return float_of(sign | bits_of(float8_values.value[magnitude] * scale));
}

// The code of a magnitude that is scaled to at most 448. The distance to the code below, in units of 2^-20 of the
// distance between two codes, decides together with r.
inline std::uint32_t to_float8(float z, bool at_random, std::uint32_t r16) {
  const float smallest = 1.0f / 64;  // of the numbers with a full mantissa; below, codes are 2^-9 apart
  const float added = z < smallest ? smallest : 0;
  const std::int32_t exponent = std::max(static_cast<std::int32_t>(bits_of(z) >> 23) - 127, -6);
  const float spacing = float_of(static_cast<std::uint32_t>(exponent - 3 + 127) << 23);
  const float steps = (z + added) / spacing - 8;
  const std::int32_t below = static_cast<std::int32_t>(steps);
  const std::int32_t distance = static_cast<std::int32_t>((steps - static_cast<float>(below)) * (1 << 20));
  const std::int32_t half = 0x7FFFF + (below & 1);  // ties to even
  const bool up = distance + (at_random ? static_cast<std::int32_t>(r16) * 16 + 8 : half) >= 1 << 20;
  const std::int32_t code = (exponent + 7) * 8 - static_cast<std::int32_t>(added * 512) + below + (up ? 1 : 0);
  return static_cast<std::uint32_t>(code < 126 ? code : 126);
}

float joined(std::uint16_t high, std::int32_t low) {
  if ((high & 0x7FFF) == 0 && low < 0) low = 0;
  return float_of((static_cast<std::uint32_t>(high) << 16) + static_cast<std::uint32_t>(low));
}

template <class T>
T& element(void* data, std::size_t i) {
  return static_cast<T*>(data)[i];
}

// Loads the elements from a first one on, which starts a group.
template <class T>
void load(const Stored x, std::size_t start, std::size_t count, T* values) {
  const auto each = [&](auto value_of) {
    for (std::size_t i = 0; i < count; ++i) values[i] = value_of(start + i);
  };
  switch (x.format) {
    case plain:
      return each([&](std::size_t at) { return element<T>(x.data, at); });
    case bfloat16:
      return each([&](std::size_t at) { return joined(element<std::uint16_t>(x.data, at), 0); });
    case float8: {
      const float scale = element<float>(x.companion, start / group);
      return each([&](std::size_t at) { return from_float8(element<std::uint8_t>(x.data, at), scale); });
    }
    case split24:
      return each([&](std::size_t at) {
        return joined(element<std::uint16_t>(x.data, at), element<std::int8_t>(x.companion, at) * 256);
      });
    case split32:
      return each([&](std::size_t at) {
        return joined(element<std::uint16_t>(x.data, at), element<std::int16_t>(x.companion, at));
      });
    default:
      return;
  }
}

float scale_of(const float* values, std::size_t count) {
  std::uint32_t most = 0;
  for (std::size_t i = 0; i < count; ++i) most = std::max(most, normal(bits_of(values[i]) & ~sign_bit));
  return std::max(float_of(most) / 448, 0x1p-117f);
}

inline std::uint8_t float8_of(float value, float inverse_scale, std::uint32_t is_divisor, bool at_random,
                              std::uint32_t r) {
  const std::uint32_t magnitude = bits_of(value) & ~sign_bit, kept = normal(magnitude);
  const std::uint32_t code = to_float8(float_of(kept) * inverse_scale, at_random, r);
  const std::uint32_t least = std::min(kept, is_divisor), nan_code = magnitude < infinity ? 0 : 127;
  return static_cast<std::uint8_t>(bits_of(value) >> 31 << 7 | std::max(code, least) | nan_code);
}

// Stores the elements from a first one on, which starts a group.
template <bool at_random>
void store_narrow(const Step& step, const Stored x, std::size_t start, std::size_t count, const float* values) {
  const std::uint64_t key = key_of(step, x.slot);
  const auto each = [&](auto store_one) {
    for (std::size_t i = 0; i < count; ++i) {
      store_one(start + i, values[i], at_random ? random_bits(key, x.slot, start + i) : 0);
    }
  };
  switch (x.format) {
    case float8: {
      const float scale = scale_of(values, count), inverse_scale = 1 / scale;
      element<float>(x.companion, start / group) = scale;
      const std::uint32_t is_divisor = x.is_divisor == 0 ? 0 : 1;
      return each([&](std::size_t at, float value, std::uint32_t r) {
        element<std::uint8_t>(x.data, at) = float8_of(value, inverse_scale, is_divisor, at_random, r);
      });
    }
    case bfloat16:
      return each([&](std::size_t at, float value, std::uint32_t r) {
        const std::uint32_t half = 0x7FFF + (bits_of(value) >> 16) % 2;  // ties to even
        element<std::uint16_t>(x.data, at) = upper_half(rounded(value, 16, at_random, r, half));
      });
    case split24:
      return each([&](std::size_t at, float value, std::uint32_t r) {
        const std::uint32_t kept = rounded(value, 8, at_random, r >> 8, 0x80);
        element<std::uint16_t>(x.data, at) = upper_half(kept + 0x8000);
        element<std::uint8_t>(x.companion, at) = static_cast<std::uint8_t>(kept >> 8);
      });
    default:
      return each([&](std::size_t at, float value, std::uint32_t) {
        const std::uint32_t kept = (bits_of(value) & ~sign_bit) > infinity ? nan : bits_of(value);
        element<std::uint16_t>(x.data, at) = upper_half(kept + 0x8000);
        element<std::uint16_t>(x.companion, at) = static_cast<std::uint16_t>(kept);
      });
  }
}

template <class T>
void store(const Step& step, const Stored& x, std::size_t start, std::size_t count, const T* values) {
  if (x.format == plain) std::copy(values, values + count, static_cast<T*>(x.data) + start);
  if constexpr (std::is_same_v<T, float>) {
    if (x.format > plain) (x.slot < 0 ? store_narrow<false> : store_narrow<true>)(step, x, start, count, values);
  }
}

// ---- A step ----

// Lets the processor flush subnormal numbers, or not, until the end of the scope.
class Flushing {
 public:
#if defined(__SSE2__)
  explicit Flushing(bool flush) : before_(_mm_getcsr()) { _mm_setcsr(flush ? before_ | 0x8040 : before_); }
  ~Flushing() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#elif defined(__aarch64__)
  explicit Flushing(bool flush) {
    asm volatile("mrs %0, fpcr" : "=r"(before_)::"memory");
    asm volatile("msr fpcr, %0" ::"r"(flush ? before_ | std::uint64_t{1} << 24 : before_) : "memory");
  }
  ~Flushing() { asm volatile("msr fpcr, %0" ::"r"(before_) : "memory"); }

 private:
  std::uint64_t before_;
#else
  explicit Flushing(bool) {}
#endif
};

template <class T>
using Rule = void (*)(const Numbers<T>&, T&, T, States<T>);

template <class T, Rule<T> rule>
void update(const Step& step, const Numbers<T>& numbers) {
  const Flushing flushing(step.flush != 0);
  const Numbers<T> k = numbers;  // a copy, which no array can overlap
  const auto size = static_cast<std::size_t>(step.size);
  bool on[max_states];
  for (std::size_t j = 0; j < max_states; ++j) on[j] = step.arrays[1 + j].format != absent;
  T values[1 + max_states][group] = {}, grads[group];
  for (std::size_t start = 0; start < size; start += group) {
    const std::size_t count = std::min(group, size - start);
    const auto each = [&](auto change) {
      for (std::size_t i = 0; i < count; ++i) change(values[0][i], grads[i]);
    };
    for (std::size_t j = 0; j <= max_states; ++j) load(step.arrays[j], start, count, values[j]);
    std::copy_n(static_cast<const T*>(step.grad) + start, count, grads);
    if (k.scale != 1) each([&](T&, T& g) { g = g * k.scale; });
    if (present(k.clip_value)) each([&](T&, T& g) { g = clamped(g, k.clip_value); });
    if (present(k.penalty)) each([&](T& p, T& g) { g = g + k.penalty * p; });
    if (present(k.shrink)) each([&](T& p, T&) { p = p * k.shrink; });
    for (std::size_t i = 0; i < count; ++i) {
      T states[max_states] = {values[1][i], values[2][i], values[3][i]};
      rule(k, values[0][i], grads[i], {states, on});
      for (std::size_t j = 0; j < max_states; ++j) values[1 + j][i] = states[j];
    }
    if (step.average != nullptr) {
      for (std::size_t i = 0; i < count; ++i) {
        const T p = values[0][i];
        T& e = element<T>(step.average, start + i);
        e = k.w == 1 ? p : e + k.w * (p - e);
      }
    }
    for (std::size_t j = 0; j <= max_states; ++j) store(step, step.arrays[j], start, count, values[j]);
  }
}

}  // namespace

// The functions that tools/compiled_reference.py finds by the names of the specification's.
#define RULE(name)                                                                                                     \
  extern "C" void name##_float32(const Step* step, const Numbers<float>* k) { update<float, name<float>>(*step, *k); } \
  extern "C" void name##_float64(const Step* step, const Numbers<double>* k) {                                         \
    update<double, name<double>>(*step, *k);                                                                           \
  }
RULE(adam)
RULE(adamax)
RULE(nadam)
RULE(radam)
RULE(rmsprop)
RULE(adagrad)
RULE(adadelta)
RULE(sgd)
RULE(lion)
RULE(ademamix)
RULE(schedule_free_adamw)

extern "C" const char* number_names() { return TEXT(NUMBERS); }
