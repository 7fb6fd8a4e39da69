#pragma once

// One build for every x86-64, and in it a copy of each hot loop for AVX2 and AVX-512, picked when the module loads.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define ONEDVA_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define ONEDVA_CLONES
#endif
