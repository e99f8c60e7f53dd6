// CMake makes upstream's; ggml.c asks for it.
#pragma once

#define GGML_VERSION "cpu_targets"
#define GGML_COMMIT  "cpu_targets"
