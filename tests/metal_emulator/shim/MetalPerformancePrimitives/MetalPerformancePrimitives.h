// matmul2d of MetalPerformancePrimitives, as far as kernels fill cooperative tensors themselves.
//
// It holds a kernel to what Apple's header promises: Metal 4, or it is empty; the types that a product
// takes; tensors made by the operation that they are given to; all lanes of the scope together. Of the
// layout, which is the implementation's, it has that of one product on one generation of GPUs: 16 x 32
// x 16 on an M5, as MLX's kernels rely on it. Another device's is another (Options.tensor_layout).
#pragma once
#include <metal_stdlib>

#if __METAL_VERSION__ >= 400
namespace metal {
constexpr constant int dynamic_extent = -1;
struct execution_thread {};
struct execution_simdgroup {};
template <int N> struct execution_simdgroups {};
}  // namespace metal

namespace mpp {
namespace tensor_ops {
// C++17 has no template arguments of a class: a descriptor is a number, and the class names its modes.
enum class __mode { multiply, multiply_accumulate };
struct matmul2d_descriptor {
  typedef __mode mode;
};
constexpr ulong matmul2d_descriptor(int m, int n, int k = metal::dynamic_extent,
                                    bool transpose_left = false, bool transpose_right = false,
                                    bool relaxed_precision = false,
                                    __mode mode = __mode::multiply) {
  return ulong(m & 0xffff) | ulong(n & 0xffff) << 16 | ulong(k & 0xffff) << 32 |
         ulong(transpose_left) << 48 | ulong(transpose_right) << 49 |
         ulong(relaxed_precision) << 50 | ulong(mode) << 51;
}

// What a lane holds of a matrix: of the left (0), the right (1) or the result (2) of an operation.
template <ulong Descriptor, int Operand, class T, int Size>
struct __cooperative_tensor {
  typedef T element;
  T __elements[Size];
  thread T& operator[](int i) thread { return __elements[i]; }
  const thread T& operator[](int i) const thread { return __elements[i]; }
  ushort get_capacity() const thread { return Size; }
};

template <class Left, class Right, class Sum>
constexpr constant bool __can_multiply =
    (metal::is_same_v<Sum, float> || metal::is_same_v<Sum, Left>) &&
    (metal::is_same_v<Left, half> || metal::is_same_v<Left, bfloat> ||
     metal::is_same_v<Left, float>) &&
    (metal::is_same_v<Right, half> || metal::is_same_v<Right, bfloat> ||
     metal::is_same_v<Right, float>);

template <ulong Descriptor, class Scope>
struct matmul2d {
  static constexpr constant int M = Descriptor & 0xffff, N = Descriptor >> 16 & 0xffff,
                                K = Descriptor >> 32 & 0xffff;
  static_assert(metal::is_same_v<Scope, metal::execution_simdgroup>,
                "matmul2d: inputs are cooperative tensors in the scope of a simdgroup alone");
  static_assert(M == 32 || N == 32 || K == 32,
                "At least one of M, N, or K must be 32 if both inputs are cooperative tensors");
  static_assert(M == 16 && N == 32 && K == 16,
                "matmul2d: nobody knows which lanes hold what but for 16 x 32 x 16");
  template <class L, class R, class S>
  using __left = __cooperative_tensor<Descriptor, 0, L, M * K / 32>;
  template <class L, class R, class S>
  using __right = __cooperative_tensor<Descriptor, 1, R, K * N / 32>;
  template <class S>
  using __sum = __cooperative_tensor<Descriptor, 2, S, M * N / 32>;

  template <class L, class R, class S>
  __left<L, R, S> get_left_input_cooperative_tensor() const thread {
    static_assert(__can_multiply<L, R, S>, "matmul2d: these types are not multiplied");
    __left<L, R, S> tensor;
    return tensor;
  }
  template <class L, class R, class S>
  __right<L, R, S> get_right_input_cooperative_tensor() const thread {
    static_assert(__can_multiply<L, R, S>, "matmul2d: these types are not multiplied");
    __right<L, R, S> tensor;
    return tensor;
  }
  template <class L, class R, class S>
  __sum<S> get_destination_cooperative_tensor() const thread {
    static_assert(metal::is_same_v<L, __left<typename L::element, int, int>> &&
                      metal::is_same_v<R, __right<int, typename R::element, int>>,
                  "matmul2d: inputs are of another operation, or in another's place");
    __sum<S> tensor;
    return tensor;
  }

  template <class L, class R, class S>
  void run(const thread __cooperative_tensor<Descriptor, 0, L, M * K / 32>& left,
           const thread __cooperative_tensor<Descriptor, 1, R, K * N / 32>& right,
           thread __cooperative_tensor<Descriptor, 2, S, M * N / 32>& sum,
           MSL_SITE) const thread {
    static_assert(__can_multiply<L, R, S>, "matmul2d: these types are not multiplied");
    __msl_tensor_multiply(&sum.__elements, &left.__elements, &right.__elements, Descriptor >> 48,
                          metal::__type_code<S> | metal::__type_code<L> << 4 |
                              metal::__type_code<R> << 8,
                          __site);
  }
};
}  // namespace tensor_ops
}  // namespace mpp
#endif
