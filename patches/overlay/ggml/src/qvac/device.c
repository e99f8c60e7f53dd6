// Which devices are imitated by the CPU, by what driver, and where pipelines are kept (see ggml-train.h). The backend itself is asked, through its registry, so that
// this works whether it is linked in or loaded at run time.

#include "ggml-train.h"

bool ggml_backend_dev_is_software(ggml_backend_dev_t dev) {
    ggml_backend_dev_is_software_t ask = (ggml_backend_dev_is_software_t)
        ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(dev), GGML_BACKEND_DEV_IS_SOFTWARE_PROC);
    return ask && ask(dev);
}

const char * ggml_backend_dev_driver(ggml_backend_dev_t dev) {
    ggml_backend_dev_driver_t ask = (ggml_backend_dev_driver_t)
        ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(dev), GGML_BACKEND_DEV_DRIVER_PROC);
    return ask ? ask(dev) : NULL;
}

void ggml_backend_set_pipeline_cache(const char * folder) {
    for (size_t i = 0; i < ggml_backend_reg_count(); ++i) {
        ggml_backend_set_pipeline_cache_t set = (ggml_backend_set_pipeline_cache_t)
            ggml_backend_reg_get_proc_address(ggml_backend_reg_get(i), GGML_BACKEND_SET_PIPELINE_CACHE_PROC);
        if (set) {
            set(folder);
        }
    }
}
