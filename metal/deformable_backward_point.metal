// The gradients of points and weights: the products of d_out with the four pixels around each point,
// summed over the channels of a row by its LANES threads together.
//
// template  as deformable_forward
// inputs    values [B, N, M, D], points [B, Q, M, LEVELS, POINTS, 2] float, weights [B, Q, M, LEVELS, POINTS], d_out [B, Q, M, D], maps [LEVELS, 3], params [5]
// outputs   d_points [B, Q, M, LEVELS, POINTS, 2] float, d_weights [B, Q, M, LEVELS, POINTS]
// grid      B * Q * M rows, NA_THREADS / LANES a threadgroup
constexpr int CHANNELS = (D + LANES - 1) / LANES;
const int lane = int(thread_index_in_threadgroup) % LANES;
const int mine = int(threadgroup_position_in_grid.x) * (NA_THREADS / LANES)
    + int(thread_index_in_threadgroup) / LANES;
const int queries = params[0], tokens = params[1], heads = params[2], rows = params[3];
const int row = mine < rows ? mine : rows - 1;  // all take part in sums
const int batch = row / (queries * heads), head = row % heads;

float given[CHANNELS];
NA_UNROLL for (int i = 0; i < CHANNELS; i++) {
  const int channel = lane + i * LANES;
  given[i] = channel < D ? float(d_out[row * D + channel]) : 0.0f;
}
for (int level = 0; level < LEVELS; level++) {
  const int height = maps[3 * level], width = maps[3 * level + 1];
  const int first = ((batch * tokens + maps[3 * level + 2]) * heads + head) * D;
  for (int point = 0; point < POINTS; point++) {
    const int at = (row * LEVELS + level) * POINTS + point;
    const na_spot spot = na_spot_at(points[2 * at], points[2 * at + 1], height, width);
    float product[4];
    NA_UNROLL for (int corner = 0; corner < 4; corner++) {
      product[corner] = 0.0f;
      const int y = spot.row + corner / 2, x = spot.column + corner % 2;
      if (y >= 0 && y < height && x >= 0 && x < width) {
        const int pixel = first + (y * width + x) * heads * D;
        NA_UNROLL for (int i = 0; i < CHANNELS; i++) {
          const int channel = lane + i * LANES;
          if (channel < D) product[corner] += given[i] * float(values[pixel + channel]);
        }
      }
    }
    simdgroup_barrier(mem_flags::mem_none);  // together again for the sums
    NA_UNROLL for (int corner = 0; corner < 4; corner++) {
      NA_UNROLL for (int bits = LANES / 2; bits > 0; bits /= 2)
        product[corner] += na_lane_xor(product[corner], bits);
    }
    if (lane == 0 && mine < rows) {
      float sum = 0.0f;
      NA_UNROLL for (int corner = 0; corner < 4; corner++)
        sum += na_share(spot, corner) * product[corner];
      const float upper = product[1] - product[0], lower = product[3] - product[2];
      const float left = product[2] - product[0], right = product[3] - product[1];
      const float weight = spot.inside ? float(weights[at]) : 0.0f;
      d_weights[at] = T(sum);
      d_points[2 * at] = weight * (upper + spot.down * (lower - upper));
      d_points[2 * at + 1] = weight * (left + spot.right * (right - left));
    }
  }
}
