// <metal_simdgroup> and <metal_quadgroup>: reductions, shuffles and votes.
#pragma once

namespace metal {
// Codes of element types in calls of the runtime (rt/scalar.h).
template <class T> constant constexpr uint __type_code = 0;
template <> constant constexpr uint __type_code<half> = 1;
template <> constant constexpr uint __type_code<bfloat> = 2;
template <> constant constexpr uint __type_code<int> = 3;
template <> constant constexpr uint __type_code<uint> = 4;
template <> constant constexpr uint __type_code<short> = 5;
template <> constant constexpr uint __type_code<ushort> = 6;
template <> constant constexpr uint __type_code<char> = 7;
template <> constant constexpr uint __type_code<signed char> = 7;
template <> constant constexpr uint __type_code<uchar> = 8;

// No bool, nothing of 64 bits; bfloat comes from MLX's bf16_math.h.
template <class T>
constant constexpr bool __simd_number =
    is_same_v<__element<T>, float> || __type_code<__element<T>> == 1 || __type_code<__element<T>> > 2;
template <class T> constant constexpr bool __simd_integer = __type_code<__element<T>> > 2;

#define MSL_REDUCE(NAME, OP, WIDTH, ALLOWED)                                                    \
  template <class T> METAL_FUNC enable_if_t<ALLOWED<T>, T> NAME(T x, MSL_SITE) {                \
    __msl_reduce(&x, OP, __type_code<__element<T>>, __shape<T>::size, WIDTH, __site);           \
    return x;                                                                                   \
  }
MSL_REDUCE(simd_sum, 0, 32, __simd_number)
MSL_REDUCE(simd_product, 1, 32, __simd_number)
MSL_REDUCE(simd_min, 2, 32, __simd_number)
MSL_REDUCE(simd_max, 3, 32, __simd_number)
MSL_REDUCE(simd_and, 4, 32, __simd_integer)
MSL_REDUCE(simd_or, 5, 32, __simd_integer)
MSL_REDUCE(simd_xor, 6, 32, __simd_integer)
MSL_REDUCE(simd_prefix_inclusive_sum, 8, 32, __simd_number)
MSL_REDUCE(simd_prefix_exclusive_sum, 9, 32, __simd_number)
MSL_REDUCE(simd_prefix_inclusive_product, 10, 32, __simd_number)
MSL_REDUCE(simd_prefix_exclusive_product, 11, 32, __simd_number)
MSL_REDUCE(quad_sum, 0, 4, __simd_number)
MSL_REDUCE(quad_product, 1, 4, __simd_number)
MSL_REDUCE(quad_min, 2, 4, __simd_number)
MSL_REDUCE(quad_max, 3, 4, __simd_number)
#undef MSL_REDUCE

// Modes: 0 lane, 1 xor, 2 up, 3 down, 4 rotate up, 5 rotate down, 6 first active lane.
#define MSL_SHUFFLE(NAME, MODE, WIDTH)                                                        \
  template <class T> METAL_FUNC enable_if_t<__simd_number<T>, T> NAME(T x, ushort k, MSL_SITE) { \
    __msl_shuffle(&x, sizeof(T), (int)k, MODE, WIDTH, __site);                                \
    return x;                                                                                 \
  }
MSL_SHUFFLE(simd_shuffle, 0, 32)
MSL_SHUFFLE(simd_broadcast, 0, 32)
MSL_SHUFFLE(simd_shuffle_xor, 1, 32)
MSL_SHUFFLE(simd_shuffle_up, 2, 32)
MSL_SHUFFLE(simd_shuffle_down, 3, 32)
MSL_SHUFFLE(simd_shuffle_rotate_up, 4, 32)
MSL_SHUFFLE(simd_shuffle_rotate_down, 5, 32)
MSL_SHUFFLE(quad_shuffle, 0, 4)
MSL_SHUFFLE(quad_broadcast, 0, 4)
MSL_SHUFFLE(quad_shuffle_xor, 1, 4)
MSL_SHUFFLE(quad_shuffle_up, 2, 4)
MSL_SHUFFLE(quad_shuffle_down, 3, 4)
#undef MSL_SHUFFLE

template <class T>
METAL_FUNC enable_if_t<__simd_number<T>, T> simd_broadcast_first(T x, MSL_SITE) {
  __msl_shuffle(&x, sizeof(T), 0, 6, 32, __site);
  return x;
}
template <class T>
METAL_FUNC enable_if_t<__simd_number<T>, T> simd_shuffle_and_fill_up(T x, T fill, ushort delta,
                                                                     MSL_SITE) {
  __msl_shuffle(&x, sizeof(T), (int)delta, 4, 32, __site);
  __msl_shuffle(&fill, sizeof(T), (int)delta, 4, 32, __site);
  return __msl_lane() < delta ? fill : x;
}
template <class T>
METAL_FUNC enable_if_t<__simd_number<T>, T> simd_shuffle_and_fill_down(T x, T fill, ushort delta,
                                                                       MSL_SITE) {
  __msl_shuffle(&x, sizeof(T), (int)delta, 5, 32, __site);
  __msl_shuffle(&fill, sizeof(T), (int)delta, 5, 32, __site);
  return __msl_lane() + delta >= 32 ? fill : x;
}

struct simd_vote {
  ulong lanes;
  explicit operator ulong() const { return lanes; }
  bool all() const { return lanes == 0xfffffffful; }
  bool any() const { return lanes != 0; }
};
METAL_FUNC simd_vote simd_ballot(bool p, MSL_SITE) { return simd_vote{__msl_ballot(p, 32, __site)}; }
METAL_FUNC bool simd_any(bool p, MSL_SITE) { return __msl_ballot(p, 32, __site) != 0; }
METAL_FUNC bool simd_all(bool p, MSL_SITE) { return __msl_ballot(!p, 32, __site) == 0; }
METAL_FUNC bool quad_any(bool p, MSL_SITE) { return __msl_ballot(p, 4, __site) != 0; }
METAL_FUNC bool quad_all(bool p, MSL_SITE) { return __msl_ballot(!p, 4, __site) == 0; }
METAL_FUNC simd_vote simd_active_threads_mask(MSL_SITE) {
  return simd_vote{__msl_ballot(1, 32, __site)};
}
METAL_FUNC bool simd_is_first(MSL_SITE) {
  return __msl_lane() == (uint)__builtin_ctzl(__msl_ballot(1, 32, __site));
}
METAL_FUNC bool simd_is_helper_thread() { return false; }
}  // namespace metal
