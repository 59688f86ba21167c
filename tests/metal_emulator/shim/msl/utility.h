// <metal_array>, <metal_uniform>, <metal_logging>: the parts that MLX's headers name.
#pragma once

namespace metal {
template <class T, size_t N>
struct array {
  T __elements[N];
  constexpr size_t size() const { return N; }
  thread T& operator[](size_t i) thread { return __elements[i]; }
  const thread T& operator[](size_t i) const thread { return __elements[i]; }
  const constant T& operator[](size_t i) const constant { return __elements[i]; }
};

template <class T>
struct uniform {
  T value;
  constexpr uniform(T x) : value(x) {}
  constexpr operator T() const { return value; }
};
template <class T> constexpr uniform<T> make_uniform(T x) { return uniform<T>(x); }

struct os_log {
  constexpr os_log(constant char*, constant char*) constant {}
  template <class... A> void log_debug(constant char*, A...) const thread {}
  template <class... A> void log_debug(constant char*, A...) const constant {}
};
}  // namespace metal
