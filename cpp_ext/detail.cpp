// What placement asks of a clip's pixels before it is encoded: sums of squared luma differences over each grid
// position. runtime/onedva_runtime/placement.py holds the reference in NumPy, checks every argument and is the only
// caller. All of it is integer, so results are equal on every machine.

#include "detail.h"

#include <nanobind/ndarray.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "clones.h"

namespace nb = nanobind;

namespace {

constexpr std::size_t kPatchFrames = 4, kPatchSize = 16;

// BT.601's luma of `count` packed RGB pixels, rounded down.
ONEDVA_CLONES void luma_row(std::int16_t* __restrict out, const std::uint8_t* __restrict pixels, std::size_t count) {
    for (std::size_t x = 0; x < count; ++x)
        out[x] =
            static_cast<std::int16_t>((77 * pixels[3 * x] + 150 * pixels[3 * x + 1] + 29 * pixels[3 * x + 2]) >> 8);
}

// Adds (row − other)² to the sum of each block of 16 pixels.
ONEDVA_CLONES void add_squares(std::int64_t* __restrict sums, const std::int16_t* row, const std::int16_t* other,
                               std::size_t blocks) {
    for (std::size_t block = 0; block < blocks; ++block) {
        std::int32_t sum = 0;
        for (std::size_t i = block * kPatchSize; i < (block + 1) * kPatchSize; ++i) {
            const std::int32_t difference = row[i] - other[i];
            sum += difference * difference;
        }
        sums[block] += sum;
    }
}

using Frames = nb::ndarray<const std::uint8_t, nb::ndim<4>, nb::c_contig, nb::device::cpu>;
using Sums = nb::ndarray<std::int64_t, nb::ndim<3>, nb::c_contig, nb::device::cpu>;

void texture_and_motion(const Frames& frames, const Sums& texture, const Sums& motion) {
    const std::size_t count = frames.shape(0), height = frames.shape(1), width = frames.shape(2);
    const std::size_t groups = texture.shape(0), rows = texture.shape(1), columns = texture.shape(2);
    if (frames.shape(3) != 3 || count != 1 + kPatchFrames * (groups - 1) || height != rows * kPatchSize ||
        width != columns * kPatchSize || groups != motion.shape(0) || rows != motion.shape(1) ||
        columns != motion.shape(2))
        throw std::invalid_argument("sums must be (Tg, Hg, Wg) for frames (T, H, W, 3)");
    const std::uint8_t* pixels = frames.data();
    std::int64_t *textures = texture.data(), *motions = motion.data();
    const std::size_t plane = height * width, positions = rows * columns;
    // a pixel before each row, so that the left neighbour of the first is itself
    const std::size_t stride = width + 1;
    std::vector<std::int16_t> now(height * stride), before(height * stride);

    nb::gil_scoped_release release;
    for (std::size_t t = 0; t < count; ++t) {
        const std::size_t group = t ? 1 + (t - 1) / kPatchFrames : 0;
        for (std::size_t y = 0; y < height; ++y) {
            std::int16_t* row = now.data() + y * stride + 1;
            luma_row(row, pixels + (t * plane + y * width) * 3, width);
            row[-1] = row[0];
            const std::size_t at = group * positions + y / kPatchSize * columns;
            add_squares(textures + at, row, row - 1, columns);
            if (y) add_squares(textures + at, row, row - stride, columns);
            if (t) add_squares(motions + at, row, before.data() + y * stride + 1, columns);
            if (t == 1) add_squares(motions + y / kPatchSize * columns, row, before.data() + y * stride + 1, columns);
        }
        now.swap(before);
    }
}

}  // namespace

void bind_detail(nb::module_& module) {
    module.def("texture_and_motion", &texture_and_motion, nb::arg("frames").noconvert(), nb::arg("texture").noconvert(),
               nb::arg("motion").noconvert(),
               "Adds to `texture` and `motion` what placement.reference_texture_and_motion defines; releases the GIL.");
}
