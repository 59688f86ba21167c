// Division of integers, for which GPUs have no instruction.

// n / d for n >= 0, exactly, with reciprocals that may be 2.5 units of their last place off: a quotient
// of floats, a little too small, the same of what it leaves, and one more where that was too little.
NA_FN int na_quotient(int n, int d) {
  if (d == 1) return n;
  const float inverse = na_reciprocal(float(d)) * 0.9999995f;
  int quotient = int(float(n) * inverse);
  int rest = n - quotient * d;
  const int more = int(float(rest) * inverse);
  quotient += more;
  rest -= more * d;
  return rest >= d ? quotient + 1 : quotient;
}

// The same for n < 2^20, where half a unit is more than floats err.
NA_FN int na_small_quotient(int n, int d) {
  return int((float(n) + 0.5f) * na_reciprocal(float(d)));
}

// How far a place is from the first, where steps are of 32 or of 64 bits. No place is negative: for a GPU
// that is half of a signed product.
template <typename STEP>
NA_FN long na_stretch(int place, STEP step) {
  return sizeof(STEP) > 4 ? long(uint(place)) * long(step) : na_product(place, int(step));
}
