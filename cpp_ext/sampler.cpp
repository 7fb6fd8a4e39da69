// onedva_runtime._sampler: the parts of decoding that are plain loops over pixels, in C++. Today that is the noise a
// decode starts from. runtime/onedva_runtime/noise.py holds the reference in NumPy, checks every argument and is the
// only caller. Built by `pip install .` (CMakeLists.txt).

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <thread>
#include <vector>

namespace nb = nanobind;

namespace {

constexpr std::size_t kChannels = 3;
constexpr std::size_t kTableSize = 65536;
// Pixels per inner loop: long enough to fill vector registers, short enough that the indices stay in the L1 cache.
constexpr std::size_t kBlock = 512;

// Philox4x32-10 of counters (frame, y, x, 0) for `count` pixels x, x+1, …; the high halves of words 0..2 go to
// `indices`. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
void philox_row(std::uint64_t seed, std::uint32_t frame, std::uint32_t y, std::uint32_t x, std::size_t count,
                std::uint32_t (*__restrict indices)[kBlock]) {
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

using Video = nb::ndarray<float, nb::ndim<4>, nb::c_contig, nb::device::cpu>;
using Table = nb::ndarray<const float, nb::shape<kTableSize>, nb::c_contig, nb::device::cpu>;

void gaussian(const Video& out, const Table& table, std::uint64_t seed, std::uint32_t first_frame, std::uint32_t top,
              std::uint32_t left, std::size_t threads) {
    if (out.shape(0) != kChannels) throw std::invalid_argument("out must have 3 channels first");
    const Noise noise{out.data(), table.data(), out.shape(1), out.shape(2), out.shape(3), seed, first_frame, top, left};
    const std::size_t rows = noise.frames * noise.height;

    nb::gil_scoped_release release;
    threads = std::clamp<std::size_t>(threads, 1, std::max<std::size_t>(rows, 1));
    std::vector<std::thread> helpers;
    helpers.reserve(threads - 1);
    try {
        for (std::size_t i = 1; i < threads; ++i)
            helpers.emplace_back(
                [&noise, rows, threads, i] { noise.fill(rows * i / threads, rows * (i + 1) / threads); });
    } catch (...) {  // the system has no thread left; destroying a joinable thread would end the process
        for (std::thread& helper : helpers) helper.join();
        throw;
    }
    noise.fill(0, rows / threads);
    for (std::thread& helper : helpers) helper.join();
}

}  // namespace

NB_MODULE(_sampler, module) {
    module.doc() = "Pixel loops of onedva_runtime in C++. Private: use onedva_runtime.noise.";
    module.def("gaussian", &gaussian, nb::arg("out").noconvert(), nb::arg("table").noconvert(), nb::arg("seed"),
               nb::arg("first_frame"), nb::arg("top"), nb::arg("left"), nb::arg("threads"),
               "Fills `out` with the noise that noise.reference_gaussian defines; releases the GIL.");
}
