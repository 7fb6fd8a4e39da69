#pragma once

#include <algorithm>
#include <cstddef>
#include <system_error>
#include <thread>
#include <vector>

namespace onedva {

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

}  // namespace onedva
