// simdgroup_matrix: D = A B + C on 8x8 fragments, two elements a lane, accumulated in float.
#include "runtime.h"
#include "scalar.h"

namespace {
using Matrix = float[8][8];

// The first of a lane's two elements, as in shim/msl/matrix.h.
float* element(Matrix& m, u32 lane) {
  u32 quad = lane / 4, row = (quad & 4) + (lane / 2) % 4, column = (quad & 2) * 2 + (lane % 2) * 2;
  return &m[row][column];
}

void load_pair(u32 type, const void* p, float* to) {
  if (type == F32) {
    to[0] = ((const float*)p)[0];
    to[1] = ((const float*)p)[1];
  } else {
    to[0] = (float)load_number(type, p, 0);
    to[1] = (float)load_number(type, p, 1);
  }
}

void store_pair(u32 type, void* p, const float* from) {
  if (type == F32) {
    ((float*)p)[0] = from[0];
    ((float*)p)[1] = from[1];
  } else {
    store_number(type, p, 0, from[0]);
    store_number(type, p, 1, from[1]);
  }
}

void multiply_add(const Matrix& a, const Matrix& b, Matrix& c) {
  for (int i = 0; i < 8; i++)
    for (int k = 0; k < 8; k++)
      for (int j = 0; j < 8; j++) c[i][j] = __builtin_fmaf(a[i][k], b[k][j], c[i][j]);
}
}  // namespace

void multiply_matrices(Fiber** lanes, u32 count) {
  if (count < LANES)
    report("simdgroup-matrix-divergent",
           "simdgroup_matrix operation executed by a partial simdgroup", {lanes[0]->request.pc},
           lanes[0]);
  u32 types = lanes[0]->request.type;
  Matrix a = {}, b = {}, c = {};
  for (u32 i = 0; i < count; i++) {
    const Request& r = lanes[i]->request;
    u32 lane = lanes[i]->at.lane;
    load_pair(types >> 4 & 15, r.a, element(a, lane));
    load_pair(types >> 8 & 15, r.b, element(b, lane));
    load_pair(types >> 12 & 15, r.c, element(c, lane));
  }
  multiply_add(a, b, c);
  for (u32 i = 0; i < count; i++)
    store_pair(types & 15, lanes[i]->request.value, element(c, lanes[i]->at.lane));
}

EXPORT void __msl_matrix_multiply(void* d, const void* a, const void* b, const void* c, u32 types,
                                  u32 site) {
  Request& r = current->request;
  r.value = d, r.a = a, r.b = b, r.c = c, r.type = types;
  wait_for(State::AtCollective, Collective::Multiply, site, CALLER_PC);
}

EXPORT __bf16 __truncsfbf2(float value) {
  u32 bits = __builtin_bit_cast(u32, value);
  bool nan = value != value;
  u32 rounded = nan ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1);
  return __builtin_bit_cast(__bf16, (u16)(rounded >> 16));
}

EXPORT __bf16 __truncdfbf2(double value) { return __truncsfbf2((float)value); }
