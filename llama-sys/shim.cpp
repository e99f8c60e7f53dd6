#include "shim.h"

#include "ggml-impl.h"

#include <cstdio>
#include <cstring>
#include <exception>
#include <new>
#include <system_error>

namespace {

// VkResult's two kinds of exhausted memory. vulkan.hpp's exceptions are `std::system_error`s whose code is the
// VkResult, so they are told apart here without Vulkan's headers.
constexpr int VK_OUT_OF_HOST_MEMORY   = -1;
constexpr int VK_OUT_OF_DEVICE_MEMORY = -2;

void write_message(char * err, size_t err_size, const char * message) {
    if (err_size > 0) {
        std::snprintf(err, err_size, "%s", message);
    }
}

// Runs `f`, which returns a status; an exception becomes one.
template <typename F> qvac_status guarded(char * err, size_t err_size, F && f) {
    write_message(err, err_size, "");
    try {
        return f();
    } catch (const std::bad_alloc & e) {
        write_message(err, err_size, e.what());
        return QVAC_STATUS_OUT_OF_MEMORY;
    } catch (const std::system_error & e) {
        write_message(err, err_size, e.what());
        const bool vulkan = std::strcmp(e.code().category().name(), "vk::Result") == 0;
        const int  value  = e.code().value();
        return vulkan && (value == VK_OUT_OF_HOST_MEMORY || value == VK_OUT_OF_DEVICE_MEMORY) ?
                   QVAC_STATUS_OUT_OF_MEMORY :
                   QVAC_STATUS_EXCEPTION;
    } catch (const std::exception & e) {
        write_message(err, err_size, e.what());
        return QVAC_STATUS_EXCEPTION;
    } catch (...) {
        write_message(err, err_size, "exception that is not a std::exception");
        return QVAC_STATUS_EXCEPTION;
    }
}

// Runs `f`, which returns a pointer; NULL when it throws.
template <typename F> auto guarded_pointer(char * err, size_t err_size, F && f) -> decltype(f()) {
    decltype(f()) made = nullptr;
    guarded(err, err_size, [&] {
        made = f();
        return QVAC_STATUS_OK;
    });
    return made;
}

template <typename F> qvac_status guarded_void(char * err, size_t err_size, F && f) {
    return guarded(err, err_size, [&] {
        f();
        return QVAC_STATUS_OK;
    });
}

// Runs `f`, which returns whether it succeeded; `allocates` says that memory is the only reason for false.
template <typename F> qvac_status guarded_bool(char * err, size_t err_size, bool allocates, F && f) {
    return guarded(err, err_size, [&] {
        if (f()) {
            return QVAC_STATUS_OK;
        }
        return allocates ? QVAC_STATUS_OUT_OF_MEMORY : QVAC_STATUS_FAILED;
    });
}

qvac_status from_ggml(ggml_status status, char * err, size_t err_size) {
    if (status == GGML_STATUS_SUCCESS) {
        return QVAC_STATUS_OK;
    }
    write_message(err, err_size, ggml_status_to_string(status));
    return status == GGML_STATUS_ALLOC_FAILED ? QVAC_STATUS_OUT_OF_MEMORY : QVAC_STATUS_FAILED;
}

} // namespace

ggml_backend_t qvac_dev_init(ggml_backend_dev_t device, const char * params, char * err, size_t err_size) {
    return guarded_pointer(err, err_size, [&] { return ggml_backend_dev_init(device, params); });
}

ggml_backend_buffer_t qvac_buft_alloc_buffer(ggml_backend_buffer_type_t buft, size_t size, char * err, size_t err_size) {
    return guarded_pointer(err, err_size, [&] { return ggml_backend_buft_alloc_buffer(buft, size); });
}

ggml_backend_buffer_t qvac_alloc_ctx_tensors_from_buft(
        ggml_context * ctx, ggml_backend_buffer_type_t buft, char * err, size_t err_size) {
    return guarded_pointer(err, err_size, [&] { return ggml_backend_alloc_ctx_tensors_from_buft(ctx, buft); });
}

qvac_status qvac_tensor_set(
        ggml_tensor * tensor, const void * data, size_t offset, size_t size, char * err, size_t err_size) {
    return guarded_void(err, err_size, [&] { ggml_backend_tensor_set(tensor, data, offset, size); });
}

qvac_status qvac_tensor_get(
        const ggml_tensor * tensor, void * data, size_t offset, size_t size, char * err, size_t err_size) {
    return guarded_void(err, err_size, [&] { ggml_backend_tensor_get(tensor, data, offset, size); });
}

qvac_status qvac_tensor_memset(
        ggml_tensor * tensor, uint8_t value, size_t offset, size_t size, char * err, size_t err_size) {
    return guarded_void(err, err_size, [&] { ggml_backend_tensor_memset(tensor, value, offset, size); });
}

qvac_status qvac_tensor_copy(const ggml_tensor * src, ggml_tensor * dst, char * err, size_t err_size) {
    return guarded_void(err, err_size, [&] { ggml_backend_tensor_copy(src, dst); });
}

ggml_backend_event_t qvac_event_new(ggml_backend_dev_t device, char * err, size_t err_size) {
    return guarded_pointer(err, err_size, [&] { return ggml_backend_event_new(device); });
}

qvac_status qvac_wait(ggml_backend_t backend, ggml_backend_event_t event, char * err, size_t err_size) {
    return guarded_void(err, err_size, [&] {
        if (event) {
            ggml_backend_event_record(event, backend);
            ggml_backend_event_synchronize(event);
        }
        ggml_backend_synchronize(backend);
    });
}

qvac_status qvac_graph_compute_async(ggml_backend_t backend, ggml_cgraph * graph, char * err, size_t err_size) {
    return guarded(err, err_size,
        [&] { return from_ggml(ggml_backend_graph_compute_async(backend, graph), err, err_size); });
}

ggml_cgraph * qvac_graph_view(ggml_cgraph * graph, int i0, int i1) {
    if (i0 < 0 || i1 < i0 || i1 > graph->n_nodes) {
        return nullptr;
    }
    return new (std::nothrow) ggml_cgraph(ggml_graph_view(graph, i0, i1));
}

void qvac_graph_view_free(ggml_cgraph * view) {
    delete view;
}

ggml_gallocr_t qvac_gallocr_new(ggml_backend_buffer_type_t buft, char * err, size_t err_size) {
    return guarded_pointer(err, err_size, [&] { return ggml_gallocr_new(buft); });
}

qvac_status qvac_gallocr_reserve(ggml_gallocr_t galloc, ggml_cgraph * graph, char * err, size_t err_size) {
    return guarded_bool(err, err_size, true, [&] { return ggml_gallocr_reserve(galloc, graph); });
}

qvac_status qvac_gallocr_alloc_graph(ggml_gallocr_t galloc, ggml_cgraph * graph, char * err, size_t err_size) {
    return guarded_bool(err, err_size, true, [&] { return ggml_gallocr_alloc_graph(galloc, graph); });
}

ggml_backend_sched_t qvac_sched_new(ggml_backend_t * backends, ggml_backend_buffer_type_t * bufts, int n_backends,
        size_t graph_size, bool parallel, bool op_offload, char * err, size_t err_size) {
    return guarded_pointer(err, err_size,
        [&] { return ggml_backend_sched_new(backends, bufts, n_backends, graph_size, parallel, op_offload); });
}

qvac_status qvac_sched_reserve(ggml_backend_sched_t sched, ggml_cgraph * graph, char * err, size_t err_size) {
    return guarded_bool(err, err_size, true, [&] { return ggml_backend_sched_reserve(sched, graph); });
}

qvac_status qvac_sched_alloc_graph(ggml_backend_sched_t sched, ggml_cgraph * graph, char * err, size_t err_size) {
    return guarded_bool(err, err_size, true, [&] { return ggml_backend_sched_alloc_graph(sched, graph); });
}

qvac_status qvac_sched_graph_compute(ggml_backend_sched_t sched, ggml_cgraph * graph, char * err, size_t err_size) {
    return guarded(err, err_size,
        [&] { return from_ggml(ggml_backend_sched_graph_compute(sched, graph), err, err_size); });
}

gguf_context * qvac_gguf_init_from_file(const char * path, gguf_init_params params, char * err, size_t err_size) {
    return guarded_pointer(err, err_size, [&] { return gguf_init_from_file(path, params); });
}

qvac_status qvac_gguf_write_to_file(
        const gguf_context * ctx, const char * path, bool only_meta, char * err, size_t err_size) {
    return guarded_bool(err, err_size, false, [&] { return gguf_write_to_file(ctx, path, only_meta); });
}

llama_model * qvac_llama_model_load_from_file(
        const char * path, llama_model_params params, char * err, size_t err_size) {
    return guarded_pointer(err, err_size, [&] { return llama_model_load_from_file(path, params); });
}

llama_context * qvac_llama_init_from_model(
        llama_model * model, llama_context_params params, char * err, size_t err_size) {
    return guarded_pointer(err, err_size, [&] { return llama_init_from_model(model, params); });
}

llama_adapter_lora * qvac_llama_adapter_lora_init(llama_model * model, const char * path, char * err, size_t err_size) {
    return guarded_pointer(err, err_size, [&] { return llama_adapter_lora_init(model, path); });
}

qvac_status qvac_llama_decode(llama_context * ctx, llama_batch batch, int32_t * result, char * err, size_t err_size) {
    return guarded_bool(err, err_size, false, [&] {
        *result = llama_decode(ctx, batch);
        return *result == 0;
    });
}

qvac_status qvac_llama_tokenize(const llama_vocab * vocab, const char * text, int32_t text_len, llama_token * tokens,
        int32_t n_tokens_max, bool add_special, bool parse_special, int32_t * result, char * err, size_t err_size) {
    return guarded_void(err, err_size, [&] {
        *result = llama_tokenize(vocab, text, text_len, tokens, n_tokens_max, add_special, parse_special);
    });
}
