// onedva_runtime._sampler: the parts of decoding that are plain loops over pixels, in C++: the noise a decode starts
// from, the Euler update, and packing to uint8. runtime/onedva_runtime/noise.py and sampler.py hold the references in
// NumPy, bit for bit, check every argument and are the only callers. Built by `pip install .` (CMakeLists.txt), without
// contraction to fused multiply-adds: they would round once where the references round twice.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <vector>

namespace nb = nanobind;

// One build for every x86-64, and in it a copy of each hot loop for AVX2 and AVX-512, picked when the module loads.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define ONEDVA_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define ONEDVA_CLONES
#endif

namespace {

constexpr std::size_t kChannels = 3;
constexpr std::size_t kTableSize = 65536;
// Pixels per inner loop: long enough to fill vector registers, short enough that the indices stay in the L1 cache.
constexpr std::size_t kBlock = 512;

// Philox4x32-10 of counters (frame, y, x, 0) for `count` pixels x, x+1, …; the high halves of words 0..2 go to
// `indices`. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
ONEDVA_CLONES void philox_row(std::uint64_t seed, std::uint32_t frame, std::uint32_t y, std::uint32_t x,
                              std::size_t count, std::uint32_t (*__restrict indices)[kBlock]) {
    for (std::size_t i = 0; i < count; ++i) {
        std::uint32_t c0 = frame, c1 = y, c2 = x + static_cast<std::uint32_t>(i), c3 = 0;
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
        indices[0][i] = c0 >> 16;
        indices[1][i] = c1 >> 16;
        indices[2][i] = c2 >> 16;
    }
}

struct Noise {
    float* out;          // (3, frames, height, width)
    const float* table;  // (65536)
    std::size_t frames, height, width;
    std::uint64_t seed;
    std::uint32_t first_frame, top, left;

    // Rows are numbered over (frames, height), so that threads share the work evenly whatever the shape.
    void fill(std::size_t first_row, std::size_t last_row) const {
        std::uint32_t indices[kChannels][kBlock];
        for (std::size_t row = first_row; row < last_row; ++row) {
            const auto frame = first_frame + static_cast<std::uint32_t>(row / height);
            const auto y = top + static_cast<std::uint32_t>(row % height);
            for (std::size_t start = 0; start < width; start += kBlock) {
                const std::size_t count = std::min(kBlock, width - start);
                philox_row(seed, frame, y, left + static_cast<std::uint32_t>(start), count, indices);
                for (std::size_t channel = 0; channel < kChannels; ++channel) {
                    float* target = out + (channel * frames * height + row) * width + start;
                    for (std::size_t i = 0; i < count; ++i) target[i] = table[indices[channel][i]];
                }
            }
        }
    }
};

// Calls work(first, last) for equal shares of [0, count) on `threads` threads, this one among them.
template <typename Work>
void share(std::size_t count, std::size_t threads, const Work& work) {
    threads = std::clamp<std::size_t>(threads, 1, std::max<std::size_t>(count, 1));
    std::vector<std::thread> helpers;
    helpers.reserve(threads - 1);
    std::size_t begun = 1;
    try {
        for (; begun < threads; ++begun)
            helpers.emplace_back(
                [&work, count, threads, i = begun] { work(count * i / threads, count * (i + 1) / threads); });
    } catch (const std::system_error&) {  // containers bound how many threads there may be: the rest is done here
    }
    work(0, count / threads);
    if (begun < threads) work(count * begun / threads, count);
    for (std::thread& helper : helpers) helper.join();
}

ONEDVA_CLONES void update_range(float* __restrict video, const float* __restrict velocity, float dt, std::size_t first,
                                std::size_t last) {
    for (std::size_t i = first; i < last; ++i) video[i] += dt * velocity[i];
}

// (value + 1) · 127.5, clipped to [0, 255], halves to even: adding and taking away 1.5 · 2^23 leaves a float no
// fraction. Not a number becomes 0.
inline float level(float value) {
    constexpr float kWhole = 12582912.0f;
    const float scaled = (value + 1.0f) * 127.5f;
    const float low = scaled > 0.0f ? scaled : 0.0f;
    const float clipped = low < 255.0f ? low : 255.0f;
    return (clipped + kWhole) - kWhole;
}

// One row of three planes to packed pixels, `count` of them. With a velocity, of the planes after its update, which are
// not written back: the last step of a decode needs only its pixels.
ONEDVA_CLONES void pack_row(std::uint8_t* __restrict out, const float* const (&planes)[kChannels],
                            const float* const (&velocity)[kChannels], float dt, std::size_t count) {
    std::uint8_t levels[kChannels][kBlock];
    for (std::size_t start = 0; start < count; start += kBlock) {
        const std::size_t size = std::min(kBlock, count - start);
        for (std::size_t channel = 0; channel < kChannels; ++channel) {
            const float* plane = planes[channel] + start;
            if (velocity[channel]) {
                const float* speed = velocity[channel] + start;
                for (std::size_t i = 0; i < size; ++i)
                    levels[channel][i] = static_cast<std::uint8_t>(static_cast<int>(level(plane[i] + dt * speed[i])));
            } else {
                for (std::size_t i = 0; i < size; ++i)
                    levels[channel][i] = static_cast<std::uint8_t>(static_cast<int>(level(plane[i])));
            }
        }
        for (std::size_t i = 0; i < size; ++i)
            for (std::size_t channel = 0; channel < kChannels; ++channel)
                out[(start + i) * kChannels + channel] = levels[channel][i];
    }
}

using Noise4 = nb::ndarray<float, nb::ndim<4>, nb::c_contig, nb::device::cpu>;
using Video = nb::ndarray<float, nb::ndim<5>, nb::c_contig, nb::device::cpu>;
using ConstVideo = nb::ndarray<const float, nb::ndim<5>, nb::c_contig, nb::device::cpu>;
using Frames = nb::ndarray<std::uint8_t, nb::ndim<5>, nb::c_contig, nb::device::cpu>;
using Table = nb::ndarray<const float, nb::shape<kTableSize>, nb::c_contig, nb::device::cpu>;

void gaussian(const Noise4& out, const Table& table, std::uint64_t seed, std::uint32_t first_frame, std::uint32_t top,
              std::uint32_t left, std::size_t threads) {
    if (out.shape(0) != kChannels) throw std::invalid_argument("out must have 3 channels first");
    const Noise noise{out.data(), table.data(), out.shape(1), out.shape(2), out.shape(3), seed, first_frame, top, left};
    const std::size_t rows = noise.frames * noise.height;

    nb::gil_scoped_release release;
    share(rows, threads, [&noise](std::size_t first, std::size_t last) { noise.fill(first, last); });
}

template <typename A, typename B>
void check_same(const A& a, const B& b) {
    for (std::size_t axis = 0; axis < 5; ++axis)
        if (a.shape(axis) != b.shape(axis)) throw std::invalid_argument("video and velocity must have one shape");
}

void update(const Video& video, const ConstVideo& velocity, float dt, std::size_t threads) {
    check_same(video, velocity);
    float* target = video.data();
    const float* speed = velocity.data();
    const std::size_t count = video.size();

    nb::gil_scoped_release release;
    share(count, threads, [=](std::size_t first, std::size_t last) { update_range(target, speed, dt, first, last); });
}

void pack(const Frames& frames, const ConstVideo& video, const std::optional<ConstVideo>& velocity, float dt,
          std::size_t threads) {
    const std::size_t channels = video.shape(1), count = video.shape(2), height = video.shape(3),
                      width = video.shape(4);
    if (channels != kChannels || frames.shape(0) != video.shape(0) || frames.shape(1) != count ||
        frames.shape(2) != height || frames.shape(3) != width || frames.shape(4) != kChannels)
        throw std::invalid_argument("frames must be (B, T, H, W, 3) for a video (B, 3, T, H, W)");
    if (velocity) check_same(video, *velocity);
    std::uint8_t* out = frames.data();
    const float* source = video.data();
    const float* speed = velocity ? velocity->data() : nullptr;
    const std::size_t plane = count * height * width, rows = count * height;

    nb::gil_scoped_release release;
    share(video.shape(0) * rows, threads, [=](std::size_t first, std::size_t last) {
        for (std::size_t row = first; row < last; ++row) {
            const std::size_t base = row / rows * kChannels * plane + row % rows * width;
            const float* planes[kChannels] = {source + base, source + base + plane, source + base + 2 * plane};
            const float* speeds[kChannels] = {};
            if (speed)
                for (std::size_t channel = 0; channel < kChannels; ++channel)
                    speeds[channel] = speed + base + channel * plane;
            pack_row(out + row * width * kChannels, planes, speeds, dt, width);
        }
    });
}

}  // namespace

NB_MODULE(_sampler, module) {
    module.doc() =
        "Pixel loops of onedva_runtime in C++. Private: use onedva_runtime.noise and onedva_runtime.sampler.";
    module.def("gaussian", &gaussian, nb::arg("out").noconvert(), nb::arg("table").noconvert(), nb::arg("seed"),
               nb::arg("first_frame"), nb::arg("top"), nb::arg("left"), nb::arg("threads"),
               "Fills `out` with the noise that noise.reference_gaussian defines; releases the GIL.");
    module.def("update", &update, nb::arg("video").noconvert(), nb::arg("velocity").noconvert(), nb::arg("dt"),
               nb::arg("threads"), "video += dt * velocity, in place; releases the GIL.");
    module.def("pack", &pack, nb::arg("frames").noconvert(), nb::arg("video").noconvert(),
               nb::arg("velocity").noconvert().none(), nb::arg("dt"), nb::arg("threads"),
               "Packs video, or video + dt * velocity, into uint8 frames; releases the GIL.");
}
