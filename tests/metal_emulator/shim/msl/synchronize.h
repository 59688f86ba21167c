// <metal_compute>: barriers. The runtime's scopes: 0 threadgroup, 1 simdgroup, 2 meeting only.
#pragma once

namespace metal {
enum class mem_flags : uint {
  mem_none = 0,
  mem_device = 1,
  mem_threadgroup = 2,
  mem_texture = 4,
  mem_threadgroup_imageblock = 8,
  mem_object_data = 16
};
constexpr mem_flags operator|(mem_flags a, mem_flags b) { return (mem_flags)((uint)a | (uint)b); }

METAL_FUNC void threadgroup_barrier(mem_flags flags, MSL_SITE) {
  __msl_barrier((uint)flags, 0, __site);
}
METAL_FUNC void simdgroup_barrier(mem_flags flags, MSL_SITE) {
  __msl_barrier((uint)flags, 1, __site);
}
}  // namespace metal
