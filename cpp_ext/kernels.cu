// See kernels.h. One thread per pixel or value, grids that stride, so any size is taken. These kernels move memory: the
// arithmetic, arithmetic.h's, is small beside it.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "arithmetic.h"
#include "kernels.h"

namespace onedva {
namespace {

constexpr unsigned kThreads = 256;
constexpr std::size_t kMostBlocks = 65535;

unsigned blocks_for(std::size_t count) {
    return static_cast<unsigned>(std::clamp<std::size_t>((count + kThreads - 1) / kThreads, 1, kMostBlocks));
}

__device__ std::size_t first_index() { return std::size_t{blockIdx.x} * blockDim.x + threadIdx.x; }
__device__ std::size_t stride() { return std::size_t{gridDim.x} * blockDim.x; }

__device__ float as_float(float value) { return value; }
__device__ float as_float(__half value) { return __half2float(value); }
__device__ float as_float(__nv_bfloat16 value) { return __bfloat162float(value); }

__global__ void gaussian(float* out, const float* table, std::uint64_t seed, std::uint32_t first_frame,
                         std::uint32_t top, std::uint32_t left, Clip clip) {
    const std::size_t rows = std::size_t{clip.frames} * clip.height, pixels = rows * clip.width;
    for (std::size_t i = first_index(); i < pixels; i += stride()) {
        const std::size_t row = i / clip.width;
        const auto x = static_cast<std::uint32_t>(i % clip.width);
        std::uint32_t index[kChannels];
        philox(seed, first_frame + static_cast<std::uint32_t>(row / clip.height),
               top + static_cast<std::uint32_t>(row % clip.height), left + x, index[0], index[1], index[2]);
        for (std::size_t channel = 0; channel < kChannels; ++channel)
            out[channel * pixels + i] = __ldg(table + index[channel]);
    }
}

__global__ void unpack(float* out, const std::uint8_t* frame, Clip clip) {
    const std::size_t plane = std::size_t{clip.height} * clip.width;
    for (std::size_t i = first_index(); i < plane * kChannels; i += stride())
        out[i % kChannels * clip.frames * plane + i / kChannels] = unpacked(frame[i]);
}

// Times of all groups at a step; `move` is 0 to begin, 1 to go on. One block: the counter has one writer.
__global__ void set_time(float* t, const float* generated, const float* times, std::int32_t* counter, std::size_t count,
                         bool move) {
    const std::int32_t step = move ? *counter + 1 : 0;
    for (std::size_t i = threadIdx.x; i < count; i += blockDim.x) t[i] = generated[i] * times[step];
    __syncthreads();  // everyone has read the counter
    if (threadIdx.x == 0) *counter = step;
}

template <typename T>
__global__ void update(float* video, const T* velocity, std::size_t count, const float* lengths,
                       const std::int32_t* counter) {
    const float dt = lengths[*counter];
    for (std::size_t i = first_index(); i < count; i += stride())
        video[i] = stepped(video[i], as_float(velocity[i]), dt);
}

template <typename T>
__global__ void pack(std::uint8_t* out, const float* video, const T* velocity, const float* lengths,
                     const std::int32_t* counter, std::uint32_t batch, std::size_t plane) {
    const float dt = lengths[*counter];
    for (std::size_t i = first_index(); i < std::size_t{batch} * plane; i += stride()) {
        const std::size_t base = i / plane * kChannels * plane + i % plane;
        for (std::size_t channel = 0; channel < kChannels; ++channel) {
            const std::size_t at = base + channel * plane;
            const float value = stepped(video[at], as_float(velocity[at]), dt);
            out[i * kChannels + channel] = static_cast<std::uint8_t>(static_cast<int>(level(value)));
        }
    }
}

cudaStream_t as_stream(void* stream) { return static_cast<cudaStream_t>(stream); }

// Calls work(typed pointer) with the velocity as what `kind` says it is.
template <typename Work>
int with_kind(const void* velocity, Kind kind, const Work& work) {
    if (kind == Kind::kFloat16)
        work(static_cast<const __half*>(velocity));
    else if (kind == Kind::kBFloat16)
        work(static_cast<const __nv_bfloat16*>(velocity));
    else
        work(static_cast<const float*>(velocity));
    return static_cast<int>(cudaGetLastError());
}

}  // namespace

int launch_gaussian(float* out, const float* table, std::uint64_t seed, std::uint32_t first_frame, std::uint32_t top,
                    std::uint32_t left, Clip clip, void* stream) {
    const std::size_t pixels = std::size_t{clip.frames} * clip.height * clip.width;
    gaussian<<<blocks_for(pixels), kThreads, 0, as_stream(stream)>>>(out, table, seed, first_frame, top, left, clip);
    return static_cast<int>(cudaGetLastError());
}

int launch_unpack(float* out, const std::uint8_t* frame, Clip clip, void* stream) {
    const std::size_t values = std::size_t{clip.height} * clip.width * kChannels;
    unpack<<<blocks_for(values), kThreads, 0, as_stream(stream)>>>(out, frame, clip);
    return static_cast<int>(cudaGetLastError());
}

int launch_begin(float* t, const float* generated, const float* times, std::int32_t* counter, std::size_t count,
                 void* stream) {
    set_time<<<1, kThreads, 0, as_stream(stream)>>>(t, generated, times, counter, count, false);
    return static_cast<int>(cudaGetLastError());
}

int launch_advance(float* t, const float* generated, const float* times, std::int32_t* counter, std::size_t count,
                   void* stream) {
    set_time<<<1, kThreads, 0, as_stream(stream)>>>(t, generated, times, counter, count, true);
    return static_cast<int>(cudaGetLastError());
}

int launch_update(float* video, const void* velocity, Kind kind, std::size_t count, const float* lengths,
                  const std::int32_t* counter, void* stream) {
    return with_kind(velocity, kind, [=](const auto* typed) {
        update<<<blocks_for(count), kThreads, 0, as_stream(stream)>>>(video, typed, count, lengths, counter);
    });
}

int launch_pack(std::uint8_t* out, const float* video, const void* velocity, Kind kind, const float* lengths,
                const std::int32_t* counter, std::uint32_t batch, Clip clip, void* stream) {
    const std::size_t plane = std::size_t{clip.frames} * clip.height * clip.width;
    return with_kind(velocity, kind, [=](const auto* typed) {
        pack<<<blocks_for(batch * plane), kThreads, 0, as_stream(stream)>>>(out, video, typed, lengths, counter, batch,
                                                                            plane);
    });
}

const char* error_name(int error) { return cudaGetErrorName(static_cast<cudaError_t>(error)); }

}  // namespace onedva
