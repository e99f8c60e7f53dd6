#pragma once

// CPU kernels of cross entropy over class ids (see ggml-train.h). The dispatcher asks `is_labels` first, since the
// same two ops with F32 labels are upstream's.

#include "ggml.h"

struct ggml_compute_params;

#ifdef __cplusplus
extern "C" {
#endif

bool ggml_qvac_cross_entropy_is_labels(const struct ggml_tensor * op);
bool ggml_qvac_cross_entropy_supported(const struct ggml_tensor * op);

void ggml_qvac_cross_entropy_loss     (const struct ggml_compute_params * params, struct ggml_tensor * dst);
void ggml_qvac_cross_entropy_loss_back(const struct ggml_compute_params * params, struct ggml_tensor * dst);

#ifdef __cplusplus
}
#endif
