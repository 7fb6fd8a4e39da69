// Frames moved by fractions of a pixel, for a camera that is followed: every frame by its own filters along rows and
// along columns. runtime/onedva_runtime/camera.py holds the reference in NumPy, bit for bit, checks every argument and
// is the only caller.

#include "resample.h"

#include <nanobind/ndarray.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "arithmetic.h"
#include "clones.h"
#include "share.h"

namespace nb = nanobind;

namespace {

constexpr std::size_t kTaps = 17, kReach = kTaps / 2;

// out[i] = taps[0]·in[0][i] + taps[1]·in[1][i] + …, summed in that order.
ONEDVA_CLONES void filter(float* __restrict out, const float* const* in, const float* taps, std::size_t count) {
    const float* rows[kTaps];
    float weights[kTaps];
    for (std::size_t k = 0; k < kTaps; ++k) rows[k] = in[k], weights[k] = taps[k];
    for (std::size_t i = 0; i < count; ++i) {
        float sum = weights[0] * rows[0][i];
#pragma GCC unroll 17  // kTaps: or the outer loop would not be vectorised, and this takes six times as long
        for (std::size_t k = 1; k < kTaps; ++k) sum += weights[k] * rows[k][i];
        out[i] = sum;
    }
}

// Rounded to levels, halves to even.
ONEDVA_CLONES void narrow(std::uint8_t* __restrict out, const float* __restrict in, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i)
        out[i] = static_cast<std::uint8_t>(static_cast<int>(onedva::whole_level(in[i])));
}

ONEDVA_CLONES void widen(float* __restrict out, const std::uint8_t* __restrict in, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) out[i] = static_cast<float>(in[i]);
}

// Where place `at` − kReach of a line of `count` values is found: the line is mirrored at its ends, again and again.
std::size_t mirrored(std::size_t at, std::size_t count) {
    const std::size_t period = 2 * count;
    const std::size_t place = (at + kReach * (period - 1)) % period;  // at − kReach, modulo the period
    return place < count ? place : period - 1 - place;
}

using Frames = nb::ndarray<std::uint8_t, nb::ndim<4>, nb::c_contig, nb::device::cpu>;
using ConstFrames = nb::ndarray<const std::uint8_t, nb::ndim<4>, nb::c_contig, nb::device::cpu>;
using Filters = nb::ndarray<const float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;

struct Picture {
    std::size_t height, width, channels;

    // One frame; buffers are a thread's own.
    void move(std::uint8_t* out, const std::uint8_t* in, const float* down, const float* right,
              std::vector<float>& line, std::vector<float>& plane) const {
        const std::size_t row = width * channels;
        line.resize((width + 2 * kReach) * channels);
        plane.resize((height + 1) * row);  // and a row for sums
        const float* rows[kTaps];
        for (std::size_t y = 0; y < height; ++y) {
            const std::uint8_t* pixels = in + y * row;
            widen(line.data() + kReach * channels, pixels, row);
            for (std::size_t x = 0; x < kReach; ++x)
                for (std::size_t c = 0; c < channels; ++c) {
                    const std::size_t end = width + kReach + x;
                    line[x * channels + c] = static_cast<float>(pixels[mirrored(x, width) * channels + c]);
                    line[end * channels + c] = static_cast<float>(pixels[mirrored(end, width) * channels + c]);
                }
            for (std::size_t k = 0; k < kTaps; ++k) rows[k] = line.data() + k * channels;
            filter(plane.data() + y * row, rows, right, row);
        }
        float* sums = plane.data() + height * row;
        for (std::size_t y = 0; y < height; ++y) {
            for (std::size_t k = 0; k < kTaps; ++k) rows[k] = plane.data() + mirrored(y + k, height) * row;
            filter(sums, rows, down, row);
            narrow(out + y * row, sums, row);
        }
    }
};

void resample(const Frames& out, const ConstFrames& frames, const Filters& filters, std::size_t threads) {
    const std::size_t count = frames.shape(0);
    const Picture picture{frames.shape(1), frames.shape(2), frames.shape(3)};
    if (filters.shape(0) != count || filters.shape(1) != 2 || filters.shape(2) != kTaps)
        throw std::invalid_argument("filters must be (T, 2, 17) for frames (T, H, W, C)");
    for (std::size_t axis = 0; axis < 4; ++axis)
        if (out.shape(axis) != frames.shape(axis)) throw std::invalid_argument("out must have the shape of frames");
    if (!picture.height || !picture.width || !picture.channels) return;
    std::uint8_t* target = out.data();
    const std::uint8_t* source = frames.data();
    const float* taps = filters.data();
    const std::size_t size = picture.height * picture.width * picture.channels;

    nb::gil_scoped_release release;
    onedva::share(count, threads, [=](std::size_t first, std::size_t last) {
        std::vector<float> line, plane;
        for (std::size_t t = first; t < last; ++t)
            picture.move(target + t * size, source + t * size, taps + 2 * t * kTaps, taps + (2 * t + 1) * kTaps, line,
                         plane);
    });
}

}  // namespace

void bind_resample(nb::module_& module) {
    module.def("resample", &resample, nb::arg("out").noconvert(), nb::arg("frames").noconvert(),
               nb::arg("filters").noconvert(), nb::arg("threads"),
               "What camera.reference_resample defines; releases the GIL.");
}
