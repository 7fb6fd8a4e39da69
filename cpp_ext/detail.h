#pragma once

#include <nanobind/nanobind.h>

// Adds what detail.cpp computes to the module.
void bind_detail(nanobind::module_& module);
