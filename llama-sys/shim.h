// The header that bindgen reads: ggml, gguf and llama, plus what they lack for use from Rust.
//
// C++ exceptions must not cross into Rust. Backends throw (Vulkan on a lost device, any of them on failed
// allocations), so each call that may reach one has a `qvac_` variant that catches, and writes the exception's
// message to `err` (always terminated; `err` may be NULL when `err_size` is 0). `qvac_X` does what `ggml_X`,
// `ggml_backend_X` or `llama_X` does; a NULL or false result means failure.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "ggml.h"
#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml-train.h"
#include "gguf.h"
#include "llama.h"
#ifdef QVAC_VULKAN
#include "ggml-vulkan.h"
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum qvac_status {
    QVAC_STATUS_OK = 0,
    // The call reported failure itself.
    QVAC_STATUS_FAILED = 1,
    // The host or the device has no memory left.
    QVAC_STATUS_OUT_OF_MEMORY = 2,
    // The call threw.
    QVAC_STATUS_EXCEPTION = 3,
};

// Backends, buffers and tensors.
ggml_backend_t qvac_dev_init(ggml_backend_dev_t device, const char * params, char * err, size_t err_size);
ggml_backend_buffer_t qvac_buft_alloc_buffer(ggml_backend_buffer_type_t buft, size_t size, char * err, size_t err_size);
ggml_backend_buffer_t qvac_alloc_ctx_tensors_from_buft(
    struct ggml_context * ctx, ggml_backend_buffer_type_t buft, char * err, size_t err_size);
enum qvac_status qvac_tensor_set(
    struct ggml_tensor * tensor, const void * data, size_t offset, size_t size, char * err, size_t err_size);
enum qvac_status qvac_tensor_get(
    const struct ggml_tensor * tensor, void * data, size_t offset, size_t size, char * err, size_t err_size);
enum qvac_status qvac_tensor_memset(
    struct ggml_tensor * tensor, uint8_t value, size_t offset, size_t size, char * err, size_t err_size);
enum qvac_status qvac_tensor_copy(
    const struct ggml_tensor * src, struct ggml_tensor * dst, char * err, size_t err_size);
// NULL where the device has no events, too.
ggml_backend_event_t qvac_event_new(ggml_backend_dev_t device, char * err, size_t err_size);
// Returns when the backend has computed all that it was given. With an event of its device, the thread sleeps until
// then; without, upstream may have it spin.
enum qvac_status qvac_wait(ggml_backend_t backend, ggml_backend_event_t event, char * err, size_t err_size);

// Graphs.
// May return before the graph is computed; graph, tensors and memory must stay until `qvac_wait`.
enum qvac_status qvac_graph_compute_async(
    ggml_backend_t backend, struct ggml_cgraph * graph, char * err, size_t err_size);
// The nodes [i0, i1) of `graph`, sharing its tensors; freed with `qvac_graph_view_free`, before `graph`'s context.
// NULL when the range is not within the graph.
struct ggml_cgraph * qvac_graph_view(struct ggml_cgraph * graph, int i0, int i1);
void qvac_graph_view_free(struct ggml_cgraph * view);

ggml_gallocr_t qvac_gallocr_new(ggml_backend_buffer_type_t buft, char * err, size_t err_size);
enum qvac_status qvac_gallocr_reserve(ggml_gallocr_t galloc, struct ggml_cgraph * graph, char * err, size_t err_size);
enum qvac_status qvac_gallocr_alloc_graph(
    ggml_gallocr_t galloc, struct ggml_cgraph * graph, char * err, size_t err_size);

ggml_backend_sched_t qvac_sched_new(ggml_backend_t * backends, ggml_backend_buffer_type_t * bufts, int n_backends,
    size_t graph_size, bool parallel, bool op_offload, char * err, size_t err_size);
enum qvac_status qvac_sched_reserve(
    ggml_backend_sched_t sched, struct ggml_cgraph * graph, char * err, size_t err_size);
enum qvac_status qvac_sched_alloc_graph(
    ggml_backend_sched_t sched, struct ggml_cgraph * graph, char * err, size_t err_size);
enum qvac_status qvac_sched_graph_compute(
    ggml_backend_sched_t sched, struct ggml_cgraph * graph, char * err, size_t err_size);

// GGUF files.
struct gguf_context * qvac_gguf_init_from_file(
    const char * path, struct gguf_init_params params, char * err, size_t err_size);
enum qvac_status qvac_gguf_write_to_file(
    const struct gguf_context * ctx, const char * path, bool only_meta, char * err, size_t err_size);

// libllama.
struct llama_model * qvac_llama_model_load_from_file(
    const char * path, struct llama_model_params params, char * err, size_t err_size);
struct llama_context * qvac_llama_init_from_model(
    struct llama_model * model, struct llama_context_params params, char * err, size_t err_size);
struct llama_adapter_lora * qvac_llama_adapter_lora_init(
    struct llama_model * model, const char * path, char * err, size_t err_size);
// `result` receives what `llama_decode` returned; the status is OK only when that is 0.
enum qvac_status qvac_llama_decode(
    struct llama_context * ctx, struct llama_batch batch, int32_t * result, char * err, size_t err_size);
// `result` receives what `llama_tokenize` returned: the number of tokens, or minus the number needed.
enum qvac_status qvac_llama_tokenize(const struct llama_vocab * vocab, const char * text, int32_t text_len,
    llama_token * tokens, int32_t n_tokens_max, bool add_special, bool parse_special, int32_t * result, char * err,
    size_t err_size);

#ifdef __cplusplus
}
#endif
