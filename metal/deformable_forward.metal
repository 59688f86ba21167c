// Weighted sums of the values of several maps at points between their pixels. LANES threads share a
// row, which is a query of a head; each has every LANES-th channel of D.
//
// template  T; D; LEVELS; POINTS; LANES
// inputs    values [B, N, M, D], points [B, Q, M, LEVELS, POINTS, 2] float, weights [B, Q, M, LEVELS, POINTS], maps [LEVELS, 3], params [5]
// outputs   out [B, Q, M, D]
// grid      B * Q * M rows, NA_THREADS / LANES a threadgroup
constexpr int CHANNELS = (D + LANES - 1) / LANES;
const int lane = int(thread_index_in_threadgroup) % LANES;
const int row = int(threadgroup_position_in_grid.x) * (NA_THREADS / LANES)
    + int(thread_index_in_threadgroup) / LANES;
const int queries = params[0], tokens = params[1], heads = params[2], rows = params[3];
if (row >= rows) return;
const int batch = row / (queries * heads), head = row % heads;

float sum[CHANNELS];
NA_UNROLL for (int i = 0; i < CHANNELS; i++) sum[i] = 0.0f;
for (int level = 0; level < LEVELS; level++) {
  const int height = maps[3 * level], width = maps[3 * level + 1];
  const int first = ((batch * tokens + maps[3 * level + 2]) * heads + head) * D;
  for (int point = 0; point < POINTS; point++) {
    const int at = (row * LEVELS + level) * POINTS + point;
    const na_spot spot = na_spot_at(points[2 * at], points[2 * at + 1], height, width);
    const float weight = float(weights[at]);
    NA_UNROLL for (int corner = 0; corner < 4; corner++) {
      const int y = spot.row + corner / 2, x = spot.column + corner % 2;
      if (y < 0 || y >= height || x < 0 || x >= width) continue;
      const int pixel = first + (y * width + x) * heads * D;
      const float share = weight * na_share(spot, corner);
      NA_UNROLL for (int i = 0; i < CHANNELS; i++) {
        const int channel = lane + i * LANES;
        if (channel < D) sum[i] += share * float(values[pixel + channel]);
      }
    }
  }
}
NA_UNROLL for (int i = 0; i < CHANNELS; i++) {
  const int channel = lane + i * LANES;
  if (channel < D) out[row * D + channel] = T(sum[i]);
}
