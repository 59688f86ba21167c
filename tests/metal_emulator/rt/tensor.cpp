// matmul2d of cooperative tensors: sum += left right, of 16 x 16 and 16 x 32 (or its transpose, 32 x 16).
//
// Matrices are squares of 16 x 16, numbered row by row. On an M5 a lane holds of each four neighbors of
// a row, and then the same of the row eight below.
#include "runtime.h"
#include "scalar.h"

#include <cstring>
#include <vector>

namespace {
struct Matrix {
  u32 rows, columns;
  std::vector<float> at;
  Matrix(u32 r, u32 c) : rows(r), columns(c), at(r * c) {}
  u32 held() const { return rows * columns / LANES; }

  // Element e of a lane. On another generation of GPUs lanes 2 and 4 have changed places.
  float& of(u32 lane, u32 e) {
    if (launch->tensor_layout) lane = (lane & ~6u) | (lane & 2) << 1 | (lane & 4) >> 1;
    const u32 square = e / 8, across = columns / 16;
    const u32 row = (lane >> 2 & 4) | (lane >> 1 & 3), column = ((lane >> 2 & 2) | (lane & 1)) * 4;
    return at[(square / across * 16 + row + e / 4 % 2 * 8) * columns + square % across * 16 +
              column + e % 4];
  }
};

// Variables start as ones in every bit: no number is so by chance.
bool is_unset(u32 type, const void* p, u32 e) {
  const u32 size = type == F32 ? 4 : 2;
  static const u8 ones[4] = {0xff, 0xff, 0xff, 0xff};
  return !memcmp((const u8*)p + e * size, ones, size);
}

void gather(Matrix& m, u32 type, const void* from, const Fiber* f) {
  for (u32 e = 0; e < m.held(); e++) {
    if (is_unset(type, from, e))
      report("uninitialised-value", format("element %u of a cooperative tensor was never set", e),
             {f->request.pc}, f);
    m.of(f->at.lane, e) = (float)load_number(type, from, e);
  }
}
}  // namespace

void multiply_tensors(Fiber** lanes, u32 count) {
  const Request& first = lanes[0]->request;
  if (count < LANES)
    report("simdgroup-matrix-divergent", "matmul2d::run executed by a partial simdgroup",
           {first.pc}, lanes[0]);
  const bool turned_left = first.op & 1, turned = first.op & 2, adds = first.op >> 3 & 1;
  const u32 types = first.type;
  Matrix left(16, 16), right(turned ? 32 : 16, turned ? 16 : 32), sum(16, 32);
  for (u32 i = 0; i < count; i++) {
    const Request& r = lanes[i]->request;
    gather(left, types >> 4 & 15, r.a, lanes[i]);
    gather(right, types >> 8 & 15, r.b, lanes[i]);
    if (adds) gather(sum, types & 15, r.value, lanes[i]);
  }
  for (u32 i = 0; i < 16; i++)
    for (u32 j = 0; j < 32; j++)
      for (u32 k = 0; k < 16; k++)
        sum.at[i * 32 + j] = __builtin_fmaf(left.at[turned_left ? k * 16 + i : i * 16 + k],
                                            right.at[turned ? j * 16 + k : k * 32 + j],
                                            sum.at[i * 32 + j]);
  for (u32 i = 0; i < count; i++)
    for (u32 e = 0; e < sum.held(); e++)
      store_number(types & 15, lanes[i]->request.value, e, sum.of(lanes[i]->at.lane, e));
}

EXPORT void __msl_tensor_multiply(void* sum, const void* left, const void* right, u32 modes,
                                  u32 types, u32 site) {
  Request& r = current->request;
  r.value = sum, r.a = left, r.b = right, r.op = modes, r.type = types;
  wait_for(State::AtCollective, Collective::Tensor, site, CALLER_PC);
}
