// onedva_runtime._sampler: the parts of decoding that are plain loops over pixels, in C++: the noise a decode starts
// from, the Euler update, and packing to uint8, on CPU threads and, where nvcc was found, on a GPU (kernels.cu). The
// NumPy references are in runtime/onedva_runtime/noise.py and sampler.py, bit for bit; these check every argument and,
// with backends/device_sampler.py, are the only callers. Built by `pip install .` (CMakeLists.txt), without contraction
// to fused multiply-adds: they would round once where the references round twice.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

#include "arithmetic.h"
#include "clones.h"
#include "detail.h"
#include "share.h"
#include "warp.h"
#if defined(ONEDVA_CUDA)
#include "kernels.h"
#endif

namespace nb = nanobind;

namespace {

using onedva::kChannels;
using onedva::kTableSize;
using onedva::level;
using onedva::share;
// Pixels per inner loop: long enough to fill vector registers, short enough that the indices stay in the L1 cache.
constexpr std::size_t kBlock = 512;

// `philox` for `count` pixels x, x+1, …
ONEDVA_CLONES void philox_row(std::uint64_t seed, std::uint32_t frame, std::uint32_t y, std::uint32_t x,
                              std::size_t count, std::uint32_t (*__restrict indices)[kBlock]) {
    for (std::size_t i = 0; i < count; ++i)
        onedva::philox(seed, frame, y, x + static_cast<std::uint32_t>(i), indices[0][i], indices[1][i], indices[2][i]);
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

ONEDVA_CLONES void update_range(float* __restrict video, const float* __restrict velocity, float dt, std::size_t first,
                                std::size_t last) {
    for (std::size_t i = first; i < last; ++i) video[i] = onedva::stepped(video[i], velocity[i], dt);
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
                    levels[channel][i] =
                        static_cast<std::uint8_t>(static_cast<int>(level(onedva::stepped(plane[i], speed[i], dt))));
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

#if defined(ONEDVA_CUDA)

// Device memory by its address, as cuda-python, TensorRT and ONNX Runtime have it.
using Address = std::uintptr_t;

template <typename T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

void check(int error, const char* what) {
    if (error) throw std::runtime_error(std::string("CUDA: ") + what + " failed: " + onedva::error_name(error));
}

void define_cuda(nb::module_& module) {
    using onedva::Clip;
    using onedva::Kind;
    using std::int32_t;
    using std::uint32_t;
    module.def("device_gaussian", [](Address out, Address table, std::uint64_t seed, uint32_t first_frame, uint32_t top,
                                     uint32_t left, uint32_t frames, uint32_t height, uint32_t width, Address stream) {
        check(onedva::launch_gaussian(at<float>(out), at<float>(table), seed, first_frame, top, left,
                                      Clip{frames, height, width}, at<void>(stream)),
              "gaussian");
    });
    module.def("device_unpack",
               [](Address out, Address frame, uint32_t frames, uint32_t height, uint32_t width, Address stream) {
                   check(onedva::launch_unpack(at<float>(out), at<std::uint8_t>(frame), Clip{frames, height, width},
                                               at<void>(stream)),
                         "unpack");
               });
    module.def("device_begin",
               [](Address t, Address generated, Address times, Address counter, std::size_t count, Address stream) {
                   check(onedva::launch_begin(at<float>(t), at<float>(generated), at<float>(times),
                                              at<int32_t>(counter), count, at<void>(stream)),
                         "begin");
               });
    module.def("device_advance",
               [](Address t, Address generated, Address times, Address counter, std::size_t count, Address stream) {
                   check(onedva::launch_advance(at<float>(t), at<float>(generated), at<float>(times),
                                                at<int32_t>(counter), count, at<void>(stream)),
                         "advance");
               });
    module.def("device_update", [](Address video, Address velocity, int kind, std::size_t count, Address lengths,
                                   Address counter, Address stream) {
        check(onedva::launch_update(at<float>(video), at<void>(velocity), static_cast<Kind>(kind), count,
                                    at<float>(lengths), at<int32_t>(counter), at<void>(stream)),
              "update");
    });
    module.def("device_pack",
               [](Address out, Address video, Address velocity, int kind, Address lengths, Address counter,
                  uint32_t batch, uint32_t frames, uint32_t height, uint32_t width, Address stream) {
                   check(onedva::launch_pack(at<std::uint8_t>(out), at<float>(video), at<void>(velocity),
                                             static_cast<Kind>(kind), at<float>(lengths), at<int32_t>(counter), batch,
                                             Clip{frames, height, width}, at<void>(stream)),
                         "pack");
               });
}

#endif

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
    bind_detail(module);
    bind_warp(module);
#if defined(ONEDVA_CUDA)
    define_cuda(module);
    module.attr("has_cuda") = true;
    module.attr("cuda_architectures") = ONEDVA_CUDA_ARCHITECTURES;
#else
    module.attr("has_cuda") = false;
#endif
}
