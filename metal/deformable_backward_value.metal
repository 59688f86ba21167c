// The gradient of the values, without atomics: each pixel of a head looks up who looked at it. The
// samples are sorted by the square of four pixels around them, of which a pixel is in four: two
// pairs of neighbors. Sums have the order of the samples, so that they are the same in every run.
//
// template  as deformable_forward
// inputs    points [B, Q, M, LEVELS, POINTS, 2] float, weights [B, Q, M, LEVELS, POINTS], d_out [B, Q, M, D], keys [S], order [S], maps [LEVELS, 3], params [5]; keys ascending: (batch * heads + head) * squares + square, those of a map from its first token + what borders the maps before; order: which sample each is
// outputs   d_values [B, N, M, D]
// grid      B * N * M pixels, NA_THREADS / LANES a threadgroup
constexpr int CHANNELS = (D + LANES - 1) / LANES;
const int lane = int(thread_index_in_threadgroup) % LANES;
const int mine = int(threadgroup_position_in_grid.x) * (NA_THREADS / LANES)
    + int(thread_index_in_threadgroup) / LANES;
const int tokens = params[1], heads = params[2], pixels = params[3], samples = params[4];
if (mine >= pixels) return;
const int head = mine % heads, token = mine / heads % tokens, batch = mine / heads / tokens;

int level = 0, border = 0, squares = 0;  // of the maps before, of all maps
for (int other = 0; other < LEVELS; other++) {
  const int around = maps[3 * other] + maps[3 * other + 1] + 1;
  squares += maps[3 * other] * maps[3 * other + 1] + around;
  if (other + 1 < LEVELS && token >= maps[3 * other + 5]) {
    level = other + 1;
    border += around;
  }
}
const int height = maps[3 * level], width = maps[3 * level + 1], first = maps[3 * level + 2];
const int y = (token - first) / width, x = (token - first) % width;

float sum[CHANNELS];
NA_UNROLL for (int i = 0; i < CHANNELS; i++) sum[i] = 0.0f;
for (int up = 1; up >= 0; up--) {  // squares whose lower, whose upper pixels it is among
  const int square = first + border + (y + 1 - up) * (width + 1) + x;
  const int key = (batch * heads + head) * squares + square;
  int low = 0, high = samples;
  while (low < high) {
    const int middle = low + (high - low) / 2;
    if (keys[middle] < key) low = middle + 1;
    else high = middle;
  }
  for (; low < samples && keys[low] <= key + 1; low++) {
    const int at = order[low], row = at / (LEVELS * POINTS);
    const na_spot spot = na_spot_at(points[2 * at], points[2 * at + 1], height, width);
    const int corner = 2 * (y - spot.row) + x - spot.column;
    const float share = float(weights[at]) * na_share(spot, corner);
    NA_UNROLL for (int i = 0; i < CHANNELS; i++) {
      const int channel = lane + i * LANES;
      if (channel < D) sum[i] += share * float(d_out[row * D + channel]);
    }
  }
}
NA_UNROLL for (int i = 0; i < CHANNELS; i++) {
  const int channel = lane + i * LANES;
  if (channel < D) d_values[mine * D + channel] = T(sum[i]);
}
