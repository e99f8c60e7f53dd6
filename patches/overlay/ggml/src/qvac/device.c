// Which devices are imitated by the CPU, and by what driver (see ggml-train.h). The backend itself is asked, through its registry, so that
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
