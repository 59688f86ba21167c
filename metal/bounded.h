// MLX writes [[kernel]] before a kernel. This has it say how many threads there are at most, or Apple's
// compiler plans for 1024, for which registers are few. Never one simdgroup alone: with that bound it
// has miscompiled products of 8x8 matrices.
#define kernel kernel, max_total_threads_per_threadgroup(NA_THREADS)
