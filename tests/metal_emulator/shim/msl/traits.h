// <metal_type_traits>, plus what the shim itself asks about vectors.
#pragma once

namespace metal {
template <class T, T v>
struct integral_constant {
  static constexpr constant T value = v;
  using value_type = T;
  using type = integral_constant;
  constexpr operator T() const { return v; }
};
template <bool B> using bool_constant = integral_constant<bool, B>;
using true_type = bool_constant<true>;
using false_type = bool_constant<false>;

template <bool B, class T = void> struct enable_if {};
template <class T> struct enable_if<true, T> { using type = T; };
template <bool B, class T = void> using enable_if_t = typename enable_if<B, T>::type;
template <bool B, class T, class F> struct conditional { using type = T; };
template <class T, class F> struct conditional<false, T, F> { using type = F; };
template <bool B, class T, class F> using conditional_t = typename conditional<B, T, F>::type;

template <class A, class B> struct is_same : false_type {};
template <class A> struct is_same<A, A> : true_type {};
template <class A, class B> constant constexpr bool is_same_v = is_same<A, B>::value;

template <class T> struct remove_addrspace { using type = T; };
template <class T> struct remove_addrspace<device T> { using type = T; };
template <class T> struct remove_addrspace<threadgroup T> { using type = T; };
template <class T> struct remove_addrspace<thread T> { using type = T; };
template <class T> struct remove_addrspace<constant T> { using type = T; };
template <class T> using remove_addrspace_t = typename remove_addrspace<T>::type;
template <class T> struct remove_const { using type = T; };
template <class T> struct remove_const<const T> { using type = T; };
template <class T> using remove_const_t = typename remove_const<T>::type;
template <class T> struct remove_volatile { using type = T; };
template <class T> struct remove_volatile<volatile T> { using type = T; };
template <class T> struct remove_cv {
  using type = typename remove_const<typename remove_volatile<T>::type>::type;
};
template <class T> using remove_cv_t = typename remove_cv<T>::type;
template <class T> using remove_reference_t = __remove_reference_t(T);
template <class T> struct remove_reference { using type = remove_reference_t<T>; };
template <class T> using remove_pointer_t = __remove_pointer(T);
template <class T> struct remove_pointer { using type = remove_pointer_t<T>; };
template <class T> using __bare = remove_addrspace_t<remove_cv_t<remove_addrspace_t<T>>>;

template <class T> struct __integer : false_type {};
template <class T> struct __floating : false_type {};
#define MSL_IS(TRAIT, T) template <> struct TRAIT<T> : true_type {};
MSL_IS(__integer, bool)
MSL_IS(__integer, char)
MSL_IS(__integer, signed char)
MSL_IS(__integer, uchar)
MSL_IS(__integer, short)
MSL_IS(__integer, ushort)
MSL_IS(__integer, int)
MSL_IS(__integer, uint)
MSL_IS(__integer, long)
MSL_IS(__integer, ulong)
MSL_IS(__floating, half)
MSL_IS(__floating, float)
MSL_IS(__floating, bfloat)
#undef MSL_IS
template <class T> struct is_integral : __integer<__bare<T>> {};
template <class T> struct is_floating_point : __floating<__bare<T>> {};
template <class T> constant constexpr bool is_integral_v = is_integral<T>::value;
template <class T> constant constexpr bool is_floating_point_v = is_floating_point<T>::value;
template <class T>
constant constexpr bool is_arithmetic_v = is_integral_v<T> || is_floating_point_v<T>;
template <class T> struct is_arithmetic : bool_constant<is_arithmetic_v<T>> {};
template <class T> constant constexpr bool is_signed_v = T(-1) < T(0);
template <class T> constant constexpr bool is_unsigned_v = !is_signed_v<T>;
template <class T> struct is_signed : bool_constant<is_signed_v<T>> {};
template <class T> struct is_unsigned : bool_constant<is_unsigned_v<T>> {};
template <class A, class B> constant constexpr bool is_convertible_v = __is_convertible(A, B);
template <class A, class B> struct is_convertible : bool_constant<is_convertible_v<A, B>> {};
template <class T> constant constexpr bool is_pointer_v = __is_pointer(T);
template <class T> struct is_pointer : bool_constant<is_pointer_v<T>> {};
template <class T> using make_unsigned_t = __make_unsigned(T);
template <class T> struct make_unsigned { using type = make_unsigned_t<T>; };
template <class T> using make_signed_t = __make_signed(T);
template <class T> struct make_signed { using type = make_signed_t<T>; };

template <class... T> struct disjunction : bool_constant<(T::value || ...)> {};
template <class... T> using _disjunction = disjunction<T...>;  // the name MLX's headers use

template <class T, int N> using vec = T __attribute__((__ext_vector_type__(N)));
template <class T>
struct __shape {
  static constexpr constant int size = 1;
  static constexpr constant bool is_vector = false;
  using element = T;
};
template <class T, int N>
struct __shape<T __attribute__((ext_vector_type(N)))> {
  static constexpr constant int size = N;
  static constexpr constant bool is_vector = true;
  using element = T;
};
template <class T> using __element = typename __shape<T>::element;
}  // namespace metal
