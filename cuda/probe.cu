// The smallest useful kernels: tests of the driver layer launch them to learn that
// code is found, loaded and run, that arguments arrive, and that memory and streams
// do what they should.

#include <cstdint>

// y = a * x + y, element by element.
extern "C" __global__ void probe_saxpy(float *y, const float *x, float a, int64_t n) {
	const int64_t step = (int64_t)gridDim.x * blockDim.x;
	for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step)
		y[i] = fmaf(a, x[i], y[i]);
}

// Each block writes how much dynamic shared memory it has, after touching all of it.
extern "C" __global__ void probe_shared(uint32_t *bytes) {
	extern __shared__ uint8_t shared[];
	uint32_t size;
	asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(size));
	for (uint32_t i = threadIdx.x; i < size; i += blockDim.x)
		shared[i] = (uint8_t)i;
	__syncthreads();
	if (threadIdx.x == 0)
		bytes[blockIdx.x] = shared[size - 1] == (uint8_t)(size - 1) ? size : 0;
}

// Keeps one thread busy for so many nanoseconds.
extern "C" __global__ void probe_wait(uint64_t nanoseconds) {
	uint64_t start, now;
	asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
	do
		asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
	while (now - start < nanoseconds);
}
