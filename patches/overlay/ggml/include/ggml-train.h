// Operations for training that this project adds to ggml. Bound into `llama-sys` with the rest of ggml's API.
// Graph constructors live in ggml/src/qvac/, kernels in the backends' qvac/ folders.
#pragma once

#include "ggml.h"

#ifdef __cplusplus
extern "C" {
#endif

#ifdef __cplusplus
}
#endif
