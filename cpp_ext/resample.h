#pragma once

#include <nanobind/nanobind.h>

// Adds what resample.cpp computes to the module.
void bind_resample(nanobind::module_& module);
