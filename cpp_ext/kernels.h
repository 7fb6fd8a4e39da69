// CUDA kernels of a decode's loop, launched on a stream. Pointers are device addresses; nothing waits, nothing is
// allocated, so every call may be captured into a graph. Each returns CUDA's error, 0 for none.

#pragma once

#include <cstddef>
#include <cstdint>

namespace onedva {

// The types that a velocity may have.
enum class Kind : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

struct Clip {
    std::uint32_t frames, height, width;
};

int launch_gaussian(float* out, const float* table, std::uint64_t seed, std::uint32_t first_frame, std::uint32_t top,
                    std::uint32_t left, Clip clip, void* stream);
int launch_unpack(float* out, const std::uint8_t* frame, Clip clip, void* stream);
int launch_begin(float* t, const float* generated, const float* times, std::int32_t* counter, std::size_t count,
                 void* stream);
int launch_advance(float* t, const float* generated, const float* times, std::int32_t* counter, std::size_t count,
                   void* stream);
int launch_update(float* video, const void* velocity, Kind kind, std::size_t count, const float* lengths,
                  const std::int32_t* counter, void* stream);
int launch_pack(std::uint8_t* out, const float* video, const void* velocity, Kind kind, const float* lengths,
                const std::int32_t* counter, std::uint32_t batch, Clip clip, void* stream);
const char* error_name(int error);

}  // namespace onedva
