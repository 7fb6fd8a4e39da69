// Frames drawn anew through affine maps, for a camera that is followed, and what they do not show filled from other
// frames. runtime/onedva_runtime/warp.py holds the references in NumPy, bit for bit, checks every argument and is
// the only caller.

#include "warp.h"

#include <nanobind/ndarray.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "arithmetic.h"
#include "clones.h"
#include "share.h"

namespace nb = nanobind;

namespace {

constexpr std::size_t kTaps = 16, kFewTaps = 4;  // that a place is made of: half of them before it
constexpr std::size_t kPad = kTaps / 2;          // values that a line has more on both sides
constexpr std::size_t kBlock = 16;               // columns that are done together
constexpr int kBits = 32, kPhaseBits = 7;        // places are in 2^-32 pixels, filters in 128ths of one
constexpr std::int64_t kPhases = 1 << kPhaseBits, kHalf = std::int64_t{1} << (kBits - 1);

// Lanes of a register, or of a few, where the machine's are shorter.
using Eight = float __attribute__((vector_size(32)));
using Four = float __attribute__((vector_size(16)));

template <typename Lanes>
inline Lanes loaded(const float* from) {
    Lanes lanes;
    std::memcpy(&lanes, from, sizeof lanes);
    return lanes;
}

// The sum of N products, halves onto halves: an order that NumPy has, too.
template <std::size_t N>
inline float dot(const float* a, const float* b) {
    Four four;
    if constexpr (N == kTaps) {
        const Eight eight = loaded<Eight>(a) * loaded<Eight>(b) + loaded<Eight>(a + 8) * loaded<Eight>(b + 8);
        float lanes[8];
        std::memcpy(lanes, &eight, sizeof eight);
        four = loaded<Four>(lanes) + loaded<Four>(lanes + 4);
    } else {
        static_assert(N == kFewTaps);
        four = loaded<Four>(a) * loaded<Four>(b);
    }
    return (four[0] + four[2]) + (four[1] + four[3]);
}

// out[i · stride] = the line at start + i · step, held inside its edges; `line` has kPad more values on both sides.
template <std::size_t N>
inline void sample_by(float* out, std::size_t stride, std::size_t count, const float* line, std::size_t length,
                      const float* taps, std::int64_t start, std::int64_t step) {
    const std::int64_t last = (static_cast<std::int64_t>(length) << kBits) - kHalf;
    const float* first = line + kPad + 1 - N / 2;
    for (std::size_t i = 0; i < count; ++i) {
        const std::int64_t at = std::clamp(start + static_cast<std::int64_t>(i) * step, -kHalf, last);
        const std::int64_t rounded = (at + (std::int64_t{1} << (kBits - kPhaseBits - 1))) >> (kBits - kPhaseBits);
        out[i * stride] = dot<N>(first + (rounded >> kPhaseBits), taps + (rounded & (kPhases - 1)) * N);
    }
}

ONEDVA_CLONES void sample_few(float* out, std::size_t stride, std::size_t count, const float* line, std::size_t length,
                              const float* taps, std::int64_t start, std::int64_t step) {
    sample_by<kFewTaps>(out, stride, count, line, length, taps, start, step);
}

ONEDVA_CLONES void sample_many(float* out, std::size_t stride, std::size_t count, const float* line, std::size_t length,
                               const float* taps, std::int64_t start, std::int64_t step) {
    sample_by<kTaps>(out, stride, count, line, length, taps, start, step);
}

// A block of up to kBlock columns of `height` values, one after the other, as bytes of rows.
ONEDVA_CLONES void narrow(std::uint8_t* out, std::size_t row, std::size_t channels, const float* in, std::size_t height,
                          std::size_t columns) {
    for (std::size_t y = 0; y < height; ++y)
        for (std::size_t x = 0; x < columns; ++x)
            out[y * row + x * channels] =
                static_cast<std::uint8_t>(static_cast<int>(onedva::whole_level(in[x * height + y])));
}

// Mirrors a line of `length` values into the kPad before and after it, again and again where it is shorter.
void mirror(float* line, std::size_t length) {
    const std::size_t period = 2 * length;
    const auto fold = [&](std::size_t place) { return place < length ? place : period - 1 - place; };
    for (std::size_t i = 0; i < kPad; ++i) {
        line[kPad - 1 - i] = line[kPad + fold(i % period)];
        line[kPad + length + i] = line[kPad + fold((length + i) % period)];
    }
}

using Frames = nb::ndarray<std::uint8_t, nb::ndim<4>, nb::c_contig, nb::device::cpu>;
using ConstFrames = nb::ndarray<const std::uint8_t, nb::ndim<4>, nb::c_contig, nb::device::cpu>;
using Maps = nb::ndarray<const std::int64_t, nb::shape<-1, 2, 3>, nb::c_contig, nb::device::cpu>;
using Taps = nb::ndarray<const float, nb::shape<kPhases, -1>, nb::c_contig, nb::device::cpu>;

struct Picture {
    std::size_t height, width, channels;
    decltype(&sample_many) sample;

    // One channel of one frame: along rows, into columns, and along these. `map` is (2, 3): where a row is read, at its
    // start, by column and by row; where a column is, at its start, by row and by column. Buffers are a thread's own.
    void warp(std::uint8_t* out, const std::uint8_t* in, const std::int64_t* map, const float* along_rows,
              const float* along_columns, std::vector<float>& line, std::vector<float>& columns,
              std::vector<float>& block) const {
        const std::size_t tall = height + 2 * kPad, row = width * channels;
        line.resize(width + 2 * kPad);
        columns.resize(width * tall);
        block.resize(kBlock * height);
        for (std::size_t y = 0; y < height; ++y) {
            for (std::size_t x = 0; x < width; ++x) line[kPad + x] = static_cast<float>(in[y * row + x * channels]);
            mirror(line.data(), width);
            sample(columns.data() + kPad + y, tall, width, line.data(), width, along_rows,
                   map[0] + static_cast<std::int64_t>(y) * map[2], map[1]);
        }
        for (std::size_t left = 0; left < width; left += kBlock) {
            const std::size_t count = std::min(kBlock, width - left);
            for (std::size_t i = 0; i < count; ++i) {
                float* column = columns.data() + (left + i) * tall;
                mirror(column, height);
                sample(block.data() + i * height, 1, height, column, height, along_columns,
                       map[3] + static_cast<std::int64_t>(left + i) * map[5], map[4]);
            }
            narrow(out + left * channels, row, channels, block.data(), height, count);
        }
    }
};

void check(bool holds, const char* message) {
    if (!holds) throw std::invalid_argument(message);
}

void warp(const Frames& out, const ConstFrames& frames, const Maps& maps, const Taps& rows, const Taps& columns,
          std::size_t threads) {
    const std::size_t count = frames.shape(0);
    const bool many = rows.shape(1) == kTaps;
    check(rows.shape(1) == columns.shape(1) && (many || rows.shape(1) == kFewTaps), "filters must be (128, 4 or 16)");
    const Picture picture{frames.shape(1), frames.shape(2), frames.shape(3), many ? &sample_many : &sample_few};
    check(maps.shape(0) == count, "maps must be (T, 2, 3) for frames (T, H, W, C)");
    for (std::size_t axis = 0; axis < 4; ++axis)
        check(out.shape(axis) == frames.shape(axis), "out must have the shape of frames");
    if (!picture.height || !picture.width || !picture.channels) return;
    std::uint8_t* target = out.data();
    const std::uint8_t* source = frames.data();
    const std::int64_t* map = maps.data();
    const float *along_rows = rows.data(), *along_columns = columns.data();
    const std::size_t size = picture.height * picture.width * picture.channels;

    nb::gil_scoped_release release;
    onedva::share(count, threads, [=](std::size_t first, std::size_t last) {
        std::vector<float> line, plane, block;
        for (std::size_t t = first; t < last; ++t)
            for (std::size_t c = 0; c < picture.channels; ++c)
                picture.warp(target + t * size + c, source + t * size + c, map + 6 * t, along_rows, along_columns, line,
                             plane, block);
    });
}

// What lies outside of a frame's view becomes what the frame nearest in time shows there, the earlier of two; what no
// frame shows stays. `views` are (T, 2, 3): where a frame is read, across and down, by column, by row, at the start.
void fill(const Frames& frames, const Maps& views) {
    const std::size_t count = frames.shape(0), height = frames.shape(1), width = frames.shape(2);
    const std::size_t channels = frames.shape(3), row = width * channels, size = height * row;
    check(views.shape(0) == count, "views must be (T, 2, 3) for frames (T, H, W, C)");
    if (!size || !count) return;
    std::uint8_t* pixels = frames.data();
    const std::int64_t* view = views.data();
    const std::int64_t right = (static_cast<std::int64_t>(width) << kBits) - kHalf;
    const std::int64_t bottom = (static_cast<std::int64_t>(height) << kBits) - kHalf;

    nb::gil_scoped_release release;
    const auto shows = [=](std::size_t t, std::size_t y, std::size_t x) {
        const std::int64_t* at = view + 6 * t;
        const auto place = [&](std::size_t axis) {
            return at[3 * axis] * static_cast<std::int64_t>(x) + at[3 * axis + 1] * static_cast<std::int64_t>(y) +
                   at[3 * axis + 2];
        };
        const std::int64_t across = place(0), down = place(1);
        return across >= -kHalf && across < right && down >= -kHalf && down < bottom;
    };
    struct Span {
        std::size_t first, last;  // what a frame shows of a row: a view is convex
    };
    std::vector<Span> spans(count);
    for (std::size_t y = 0; y < height; ++y) {
        std::size_t first = 0, last = width;  // what all frames show
        for (std::size_t t = 0; t < count; ++t) {
            Span& span = spans[t];
            span = {0, width};
            while (span.first < width && !shows(t, y, span.first)) ++span.first;
            while (span.last > span.first && !shows(t, y, span.last - 1)) --span.last;
            first = std::max(first, span.first);
            last = std::min(last, span.last);
        }
        for (std::size_t t = 0; t < count; ++t) {
            for (std::size_t x = 0; x < width; ++x) {
                if (x >= first && x < last) {  // nothing to do up to `last`
                    x = last - 1;
                    continue;
                }
                if (x >= spans[t].first && x < spans[t].last) continue;
                for (std::size_t away = 1; away < count; ++away) {
                    std::size_t from = count;
                    if (away <= t && x >= spans[t - away].first && x < spans[t - away].last) {
                        from = t - away;
                    } else if (t + away < count && x >= spans[t + away].first && x < spans[t + away].last) {
                        from = t + away;
                    } else {
                        continue;
                    }
                    std::memcpy(pixels + t * size + y * row + x * channels,
                                pixels + from * size + y * row + x * channels, channels);
                    break;
                }
            }
        }
    }
}

}  // namespace

void bind_warp(nb::module_& module) {
    module.def("warp", &warp, nb::arg("out").noconvert(), nb::arg("frames").noconvert(), nb::arg("maps").noconvert(),
               nb::arg("rows").noconvert(), nb::arg("columns").noconvert(), nb::arg("threads"),
               "What warp.reference_warp defines; releases the GIL.");
    module.def("fill", &fill, nb::arg("frames").noconvert(), nb::arg("views").noconvert(),
               "What warp.reference_fill defines, in place; releases the GIL.");
}
