// A point of a map between its pixels; there are zeros around the map.

struct na_spot {
  int row, column;  // of the upper left of the four pixels around it
  float down, right;  // from there, between 0 and 1
  bool inside;  // where moving it changes anything
};

NA_FN int na_floor(float x) {
  const int toward_zero = int(x);
  return float(toward_zero) > x ? toward_zero - 1 : toward_zero;
}

// Points beyond the ring of zeros are moved onto it.
NA_FN na_spot na_spot_at(float x, float y, int height, int width) {
  const float across = na_fmin(na_fmax(x, -1.0f), float(width));
  const float along = na_fmin(na_fmax(y, -1.0f), float(height));
  na_spot spot;
  spot.row = na_floor(along) < height ? na_floor(along) : height - 1;
  spot.column = na_floor(across) < width ? na_floor(across) : width - 1;
  spot.down = along - float(spot.row);
  spot.right = across - float(spot.column);
  spot.inside = -1.0f < x && x < float(width) && -1.0f < y && y < float(height);
  return spot;
}

// The share of a pixel of the four: bit 0 says right, bit 1 down.
NA_FN float na_share(na_spot spot, int corner) {
  const float across = corner & 1 ? spot.right : 1.0f - spot.right;
  return across * (corner & 2 ? spot.down : 1.0f - spot.down);
}
