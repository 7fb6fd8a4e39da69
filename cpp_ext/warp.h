#pragma once

#include <nanobind/nanobind.h>

// Adds what warp.cpp computes to the module.
void bind_warp(nanobind::module_& module);
