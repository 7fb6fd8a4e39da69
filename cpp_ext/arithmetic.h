// What is computed for one pixel or one value, once for the CPU and for CUDA: the noise's Philox words, the Euler
// update, and levels from and to [-1, 1]. Both are compiled without contraction to fused multiply-adds, so both give
// the bits of the NumPy references in runtime/onedva_runtime/noise.py and sampler.py.

#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)
#define ONEDVA_BOTH __host__ __device__ inline
#else
#define ONEDVA_BOTH inline
#endif

namespace onedva {

constexpr std::size_t kChannels = 3;
constexpr std::size_t kTableSize = 65536;

// Philox4x32-10 of the counter (frame, y, x, 0); the high halves of words 0..2 are where the three channels look up
// their deviate. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
ONEDVA_BOTH void philox(std::uint64_t seed, std::uint32_t frame, std::uint32_t y, std::uint32_t x, std::uint32_t& first,
                        std::uint32_t& second, std::uint32_t& third) {
    std::uint32_t c0 = frame, c1 = y, c2 = x, c3 = 0;
    std::uint32_t k0 = static_cast<std::uint32_t>(seed), k1 = static_cast<std::uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        const std::uint64_t p0 = std::uint64_t{0xD2511F53} * c0;
        const std::uint64_t p1 = std::uint64_t{0xCD9E8D57} * c2;
        c0 = static_cast<std::uint32_t>(p1 >> 32) ^ c1 ^ k0;
        c1 = static_cast<std::uint32_t>(p1);
        c2 = static_cast<std::uint32_t>(p0 >> 32) ^ c3 ^ k1;
        c3 = static_cast<std::uint32_t>(p0);
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
    }
    first = c0 >> 16;
    second = c1 >> 16;
    third = c2 >> 16;
}

// One Euler step of one value: rounded after the product and after the sum.
ONEDVA_BOTH float stepped(float value, float velocity, float dt) { return value + dt * velocity; }

// Clipped to [0, 255], halves to even: adding and taking away 1.5 · 2^23 leaves a float no fraction. Not a number
// becomes 0.
ONEDVA_BOTH float whole_level(float value) {
    constexpr float kWhole = 12582912.0f;
    const float low = value > 0.0f ? value : 0.0f;
    const float clipped = low < 255.0f ? low : 255.0f;
    return (clipped + kWhole) - kWhole;
}

// (value + 1) · 127.5 as a whole level.
ONEDVA_BOTH float level(float value) { return whole_level((value + 1.0f) * 127.5f); }

// A level 0..255 as a value in [-1, 1].
ONEDVA_BOTH float unpacked(std::uint8_t level) { return static_cast<float>(level) / 127.5f - 1.0f; }

}  // namespace onedva
