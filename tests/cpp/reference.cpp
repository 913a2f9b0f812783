#include "reference.hpp"

#include <cmath>

#include "core/float_mode.hpp"
#include "kernels/power.hpp"

namespace test {
namespace {

// A selection copies a number as it is; not being inlined, it cannot become a minimum or a maximum, which would take a
// subnormal number for zero.
template <class T>
__attribute__((noinline)) T select(bool first, T a, T b) {
  return first ? a : b;
}

template <class T>
T maximum(T a, T b) {
  return select(a > b || std::isnan(a), a, b);
}

template <class T>
T sign(T x) {
  if (std::isnan(x)) return x;
  if (x > 0) return 1;
  return x < 0 ? T(-1) : T(0);
}

// Finds options by their names, and rounds coefficients to the dtype.
template <class T>
class Rounding {
 public:
  Rounding(const onepass::RuleEntry& rule, const double* options) : rule_(rule), options_(options) {}

  double operator()(const std::string& name) const {
    for (std::size_t i = 0; i < rule_.option_count; ++i) {
      if (name == rule_.options[i]) return options_[i];
    }
    std::abort();
  }

  T number(double exact) {
    const T rounded = static_cast<T>(exact);
    if (!std::isfinite(rounded)) overflows = true;
    return rounded;
  }

  bool overflows = false;

 private:
  const onepass::RuleEntry& rule_;
  const double* options_;
};

template <class T>
using Core = std::function<void(T& p, T g, T* s)>;

template <class T>
Core<T> adam(Rounding<T>& o, double lr, std::int64_t t, bool amsgrad) {
  const bool corrected = o("bias_correction") != 0;
  const double c1 = corrected ? 1 - onepass::power(o("beta1"), t) : 1;
  const double c2 = corrected ? 1 - onepass::power(o("beta2"), t) : 1;
  const bool hat = o("hat") != 0;
  const T b1 = o.number(o("beta1")), rest1 = o.number(1 - o("beta1"));
  const T b2 = o.number(o("beta2")), rest2 = o.number(1 - o("beta2"));
  const T a = o.number(hat ? lr * std::sqrt(c2) / c1 : lr / c1);
  const T r = o.number(hat ? 1 : 1 / std::sqrt(c2));
  const T eps = o.number(o("eps"));
  return [=](T& p, T g, T* s) {
    T& m = s[0];
    T& v = s[1];
    m = b1 * m + rest1 * g;
    v = b2 * v + rest2 * (g * g);
    T u = v;
    if (amsgrad) u = s[2] = maximum(s[2], v);
    const T d = hat ? std::sqrt(u) + eps : std::sqrt(u) * r + eps;
    p = p - a * (m / d);
  };
}

template <class T>
Core<T> adamax(Rounding<T>& o, double lr, std::int64_t t) {
  const T b1 = o.number(o("beta1")), rest1 = o.number(1 - o("beta1"));
  const T b2 = o.number(o("beta2"));
  const T eps = o.number(o("eps"));
  const T a = o.number(lr / (1 - onepass::power(o("beta1"), t)));
  return [=](T& p, T g, T* s) {
    T& m = s[0];
    T& u = s[1];
    m = b1 * m + rest1 * g;
    u = maximum(b2 * u, std::fabs(g) + eps);
    p = p - a * (m / u);
  };
}

template <class T>
Core<T> nadam(Rounding<T>& o, double lr, std::int64_t t, double& product) {
  const auto momentum = [&](std::int64_t step) {
    return o("beta1") * (1 - 0.5 * std::pow(0.96, static_cast<double>(step) * o("momentum_decay")));
  };
  const double mu = momentum(t);
  const double next = momentum(t + 1);
  product = product * mu;
  const T b1 = o.number(o("beta1")), rest1 = o.number(1 - o("beta1"));
  const T b2 = o.number(o("beta2")), rest2 = o.number(1 - o("beta2"));
  const T A = o.number(lr * (1 - mu) / (1 - product));
  const T B = o.number(lr * next / (1 - product * next));
  const T r = o.number(1 / std::sqrt(1 - onepass::power(o("beta2"), t)));
  const T eps = o.number(o("eps"));
  return [=](T& p, T g, T* s) {
    T& m = s[0];
    T& v = s[1];
    m = b1 * m + rest1 * g;
    v = b2 * v + rest2 * (g * g);
    const T d = std::sqrt(v) * r + eps;
    p = (p - A * (g / d)) - B * (m / d);
  };
}

template <class T>
Core<T> rmsprop(Rounding<T>& o, double lr, bool centered, bool with_momentum) {
  const T alpha = o.number(o("alpha")), rest = o.number(1 - o("alpha"));
  const T eps = o.number(o("eps"));
  const T mu = o.number(o("momentum"));
  const T step_size = o.number(lr);
  return [=](T& p, T g, T* state) {
    T& v = state[0];
    v = alpha * v + rest * (g * g);
    T variance = v;
    if (centered) {
      T& s = state[1];
      s = alpha * s + rest * g;
      variance = maximum(v - s * s, T(0));
    }
    const T x = g / (std::sqrt(variance) + eps);
    if (with_momentum) {
      T& b = state[centered ? 2 : 1];
      b = mu * b + x;
      p = p - step_size * b;
    } else {
      p = p - step_size * x;
    }
  };
}

template <class T>
Core<T> adagrad(Rounding<T>& o, double lr, std::int64_t t) {
  const T a = o.number(lr / (1 + static_cast<double>(t - 1) * o("lr_decay")));
  const T eps = o.number(o("eps"));
  return [=](T& p, T g, T* s) {
    s[0] = s[0] + g * g;
    p = p - a * (g / (std::sqrt(s[0]) + eps));
  };
}

template <class T>
Core<T> adadelta(Rounding<T>& o, double lr) {
  const T rho = o.number(o("rho")), rest = o.number(1 - o("rho"));
  const T eps = o.number(o("eps"));
  const T step_size = o.number(lr);
  return [=](T& p, T g, T* state) {
    T& s = state[0];
    T& acc = state[1];
    s = rho * s + rest * (g * g);
    const T x = (std::sqrt(acc + eps) / std::sqrt(s + eps)) * g;
    acc = rho * acc + rest * (x * x);
    p = p - step_size * x;
  };
}

template <class T>
Core<T> sgd(Rounding<T>& o, double lr, std::int64_t t, bool with_momentum) {
  const T step_size = o.number(lr);
  if (!with_momentum) return [=](T& p, T g, T*) { p = p - step_size * g; };
  const T mu = o.number(o("momentum"));
  const T rest = o.number(1 - o("dampening"));
  const bool nesterov = o("nesterov") != 0;
  return [=](T& p, T g, T* s) {
    T& b = s[0];
    if (t == 1) {
      b = g;
    } else {
      b = mu * b + rest * g;
    }
    p = p - step_size * (nesterov ? g + mu * b : b);
  };
}

template <class T>
Core<T> lion(Rounding<T>& o, double lr) {
  const T b1 = o.number(o("beta1")), rest1 = o.number(1 - o("beta1"));
  const T b2 = o.number(o("beta2")), rest2 = o.number(1 - o("beta2"));
  const T step_size = o.number(lr);
  return [=](T& p, T g, T* s) {
    T& m = s[0];
    p = p - step_size * sign(b1 * m + rest1 * g);
    m = b2 * m + rest2 * g;
  };
}

template <class T>
Core<T> core(Rounding<T>& o, const std::string& rule, double lr, std::int64_t t, double& product) {
  if (rule == "adam") return adam(o, lr, t, false);
  if (rule == "amsgrad") return adam(o, lr, t, true);
  if (rule == "adamax") return adamax(o, lr, t);
  if (rule == "nadam") return nadam(o, lr, t, product);
  if (rule == "rmsprop") return rmsprop(o, lr, false, false);
  if (rule == "rmsprop_momentum") return rmsprop(o, lr, false, true);
  if (rule == "rmsprop_centered") return rmsprop(o, lr, true, false);
  if (rule == "rmsprop_centered_momentum") return rmsprop(o, lr, true, true);
  if (rule == "adagrad") return adagrad(o, lr, t);
  if (rule == "adadelta") return adadelta(o, lr);
  if (rule == "sgd") return sgd(o, lr, t, false);
  if (rule == "sgd_momentum") return sgd(o, lr, t, true);
  if (rule == "lion") return lion(o, lr);
  std::abort();  // a rule that these tests do not know
}

}  // namespace

template <class T>
Element<T> make_element(const onepass::RuleEntry& rule, const double* options, const onepass::CommonOptions& common,
                        onepass::StepContext& step) {
  const onepass::FloatMode mode(false);
  Rounding<T> o(rule, options);
  const Core<T> update = core(o, rule.name, step.lr, step.t, step.scalars.values[0]);

  const double scale = common.maximize ? -step.grad_scale : step.grad_scale;
  const T s = std::isnan(scale) ? static_cast<T>(scale) : o.number(scale);
  const bool clamped = std::isfinite(common.clip_value);
  const T c = clamped ? o.number(common.clip_value) : T(0);
  const double wd = common.weight_decay;
  const T decay = o.number(common.decoupled ? 0 : wd);
  const T shrink = o.number(common.decoupled ? 1 - step.lr * wd : 1);
  const bool coupled = wd != 0 && !common.decoupled;
  const bool decoupled = wd != 0 && common.decoupled;
  const bool averaged = common.averaged;
  const T w = averaged ? o.number(1 - common.ema_decay) : T(0);
  if (o.overflows) return {};
  return [=](T& p, T g, T* state, T* average) {
    if (s != 1) {
      const volatile T scaled = g * s;  // Clang would make a product with 1 of the other case, which flushes
      g = scaled;
    }
    if (clamped) g = select(g < -c, -c, g);
    if (clamped) g = select(g > c, c, g);
    if (coupled) g = g + decay * p;
    if (decoupled) p = p * shrink;
    update(p, g, state);
    if (averaged) *average = select(w == 1, p, *average + w * (p - *average));
  };
}

template <class T>
void update(const Element<T>& element, const onepass::Operands& x, std::size_t begin, std::size_t end, bool flush) {
  const onepass::FloatMode mode(flush);
  for (std::size_t i = begin; i < end; ++i) {
    T state[onepass::max_states] = {};
    for (std::size_t k = 0; k < onepass::max_states; ++k) {
      if (x.state[k] != nullptr) state[k] = static_cast<const T*>(x.state[k])[i];
    }
    element(static_cast<T*>(x.param)[i], static_cast<const T*>(x.grad)[i], state,
            x.average == nullptr ? nullptr : static_cast<T*>(x.average) + i);
    for (std::size_t k = 0; k < onepass::max_states; ++k) {
      if (x.state[k] != nullptr) static_cast<T*>(x.state[k])[i] = state[k];
    }
  }
}

template <class T>
double squares(const T* grad, std::size_t count) {
  double total = 0;
  for (std::size_t from = 0; from < count; from += 4096) {
    double sums[16] = {};
    for (std::size_t i = from; i < count && i < from + 4096; ++i) {
      const auto x = static_cast<double>(grad[i]);
      double& sum = sums[(i - from) % 16];
      sum = sum + x * x;
    }
    for (const int half : {8, 4, 2, 1}) {
      for (int i = 0; i < half; ++i) sums[i] = sums[i] + sums[i + half];
    }
    total = total + sums[0];
  }
  return total;
}

template <class T>
bool finite(const T* grad, std::size_t count, double scale, bool squared) {
  const T s = static_cast<T>(scale);
  for (std::size_t i = 0; i < count; ++i) {
    const T g = grad[i] * s;
    if (!std::isfinite(g) || (squared && !std::isfinite(g * g))) return false;
  }
  return true;
}

template Element<float> make_element(const onepass::RuleEntry&, const double*, const onepass::CommonOptions&,
                                     onepass::StepContext&);
template Element<double> make_element(const onepass::RuleEntry&, const double*, const onepass::CommonOptions&,
                                      onepass::StepContext&);
template void update(const Element<float>&, const onepass::Operands&, std::size_t, std::size_t, bool);
template void update(const Element<double>&, const onepass::Operands&, std::size_t, std::size_t, bool);
template double squares(const float*, std::size_t);
template double squares(const double*, std::size_t);
template bool finite(const float*, std::size_t, double, bool);
template bool finite(const double*, std::size_t, double, bool);

}  // namespace test
