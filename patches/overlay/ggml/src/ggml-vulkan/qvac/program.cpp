// Programs: runs of a generating graph's nodes as one dispatch (qvac_tq_program.comp, program_nodes.cpp).
//
// All workgroups of a program must be at work at the same time, as they wait for each other: one for each core. So programs are
// for devices of which this is known. What goes wrong all the same (a workgroup waits in vain) ends the dispatch, makes the
// result NaN and the next graph fail.

#include "ops.h"

#include "ggml-vulkan-shaders.hpp"

namespace {

constexpr uint32_t BLOCK_SIZE = 512;
constexpr uint32_t ROWS       = 2;
constexpr uint32_t UNROLL     = 12;

// Polls until a workgroup gives up: some seconds. Those of a CPU are quick, and its workgroups share its cores.
constexpr uint32_t PATIENCE     = 1u << 22;
constexpr uint32_t CPU_PATIENCE = 1u << 28;

// The shader counts a head's workgroups in it, behind two words of its own.
constexpr size_t CONTROL_BYTES = 4096;

// What a lane group reads behind the last row, at most.
constexpr size_t MAX_BEHIND = 64 * sizeof(uint32_t);

// vkCmdUpdateBuffer takes no more at a time.
constexpr size_t MAX_UPDATE = 65536;

struct push_constants {
    uint32_t n_instructions;
};

bool can_run(const vk_device & device) {
    return device->qvac_integer_dot && device->subgroup_arithmetic && device->subgroup_shuffle && device->subgroup_size_control &&
           device->subgroup_require_full_support && device->subgroup_size >= 8 && device->subgroup_size <= 64 &&
           device->buffer_device_address && device->shader_int64 && device->qvac_int8 &&
           device->properties.limits.maxComputeWorkGroupInvocations >= BLOCK_SIZE &&
           device->properties.limits.maxComputeSharedMemorySize >= 32768;
}

// One for each core, where all are known to be at work at once. QVAC_VK_VEC=program=N: so many, on any device that can run
// them with one; 0: no programs.
uint32_t workgroups(const vk_device & device) {
    static const int asked = [] {
        const char * env = getenv("QVAC_VK_VEC");
        const char * at  = env ? strstr(env, "program=") : nullptr;
        return at ? std::max(0, atoi(at + strlen("program="))) : -1;
    }();
    const bool     known = device->vendor_id == VK_VENDOR_ID_NVIDIA && !device->uma;
    const uint32_t n     = asked >= 0 ? (uint32_t) asked : known ? device->shader_core_count : 0;
    // Rows of an odd number of halves are shared out to workgroups in twos.
    return n > 1 ? n / 2 * 2 : n;
}

vk_subbuffer whole(const vk_buffer & buffer) {
    return { buffer, 0, buffer->size };
}

void at_least(ggml_backend_vk_context * ctx, vk_buffer & buffer, size_t bytes) {
    if (buffer && buffer->size >= bytes) {
        return;
    }
    if (buffer) {
        ctx->qvac->program.outgrown.push_back(buffer);
    }
    buffer = ggml_vk_create_buffer_device(ctx->device, bytes);
}

} // namespace

void ggml_vk_qvac_load_program(vk_device & device, const vk_qvac_create_pipeline & create) {
    if (!can_run(device)) {
        return;
    }
    const uint32_t is_alone = workgroups(device) == 1;
    const bool     is_cpu   = device->properties.deviceType == vk::PhysicalDeviceType::eCpu;
    const bool     is_small = is_alone || is_cpu; // slow to compile
    const auto make = [&](vk_pipeline & pipeline, const char * name, uint64_t size, const void * data) {
        create(pipeline, name, size, data, 3, sizeof(push_constants), { 1, 1, 1 },
               { BLOCK_SIZE, device->subgroup_size, ROWS, is_small ? 2u : UNROLL, is_alone, is_cpu ? CPU_PATIENCE : PATIENCE },
               device->subgroup_size);
    };
    vk_qvac_program_pipelines & pipelines = device->qvac->program;
    make(pipelines.by_type[0], "qvac_tq_program_tq1_0", qvac_tq_program_tq1_0_len, qvac_tq_program_tq1_0_data);
    make(pipelines.by_type[1], "qvac_tq_program_tq2_0", qvac_tq_program_tq2_0_len, qvac_tq_program_tq2_0_data);
    make(pipelines.exact_by_type[0], "qvac_exact_program_tq1_0", qvac_exact_program_tq1_0_len, qvac_exact_program_tq1_0_data);
    make(pipelines.exact_by_type[1], "qvac_exact_program_tq2_0", qvac_exact_program_tq2_0_len, qvac_exact_program_tq2_0_data);
}

size_t ggml_vk_qvac_alloc_padding(const ggml_tensor * tensor) {
    return tensor->type == GGML_TYPE_TQ1_0 || tensor->type == GGML_TYPE_TQ2_0 ? MAX_BEHIND : 0;
}

bool ggml_vk_qvac_program_wanted(const ggml_backend_vk_context * ctx) {
    const vk_qvac_vec_wish & wish = ctx->qvac->vec_wish;
    return can_run(ctx->device) && workgroups(ctx->device) > 0 && !wish.plain && !wish.dot && !wish.tile;
}

uint64_t ggml_vk_qvac_program_scratch(ggml_backend_vk_context * ctx, size_t bytes) {
    vk_buffer & scratch = ctx->qvac->program.scratch;
    at_least(ctx, scratch, bytes);
    return scratch->bda_addr;
}

void ggml_vk_qvac_program_synchronized(ggml_backend_vk_context * ctx) {
    vk_qvac_program & program = ctx->qvac->program;
    if (!program.failed && program.failure && *(const volatile uint32_t *) program.failure->ptr != 0) {
        program.failed = true;
        GGML_LOG_ERROR("ggml_vulkan: workgroups on %s waited for each other in vain; QVAC_VK_VEC=program=0 does without\n",
                       ctx->device->name.c_str());
    }
}

bool ggml_vk_qvac_record_program(ggml_backend_vk_context * ctx, vk_context & subctx, const ggml_cgraph * cgraph, int node_idx) {
    vk_qvac_program & program = ctx->qvac->program;
    if (program.cgraph != cgraph || program.last != node_idx) {
        return false;
    }
    program.last = -1;
    // Upstream knows of the last node only.
    const auto wait = [&] {
        ctx->unsynced_nodes_written.clear();
        ctx->unsynced_nodes_read.clear();
        ggml_vk_sync_buffers(ctx, subctx);
    };
    // It may have left partial sums for the norm behind an ADD, and wants some of this one.
    ctx->do_add_rms_partials                    = false;
    ctx->do_add_rms_partials_offset_calculation = false;

    const size_t bytes = program.code.size() * sizeof(vk_qvac_program_instruction);
    if (!program.control) {
        program.control = ggml_vk_create_buffer_device(ctx->device, CONTROL_BYTES);
        ggml_vk_buffer_memset(program.control, 0, 0, CONTROL_BYTES);
        program.failure = ggml_vk_create_buffer_check(
            ctx->device, 256, vk::MemoryPropertyFlagBits::eHostVisible | vk::MemoryPropertyFlagBits::eHostCoherent);
        memset(program.failure->ptr, 0, 256);
    }
    wait();
    const vk_buffer before = program.code_buffer;
    at_least(ctx, program.code_buffer, bytes);
    if (program.code_buffer != before || program.uploaded.size() != program.code.size() ||
        memcmp(program.uploaded.data(), program.code.data(), bytes) != 0) {
        for (size_t at = 0; at < bytes; at += MAX_UPDATE) {
            subctx->s->buffer->buf.updateBuffer(program.code_buffer->buffer, at, std::min(MAX_UPDATE, bytes - at),
                                                (const char *) program.code.data() + at);
        }
        program.uploaded = program.code;
        wait();
    }
    const vk_qvac_program_pipelines & pipelines = ctx->device->qvac->program;
    vk_pipeline          pipeline = (program.is_exact ? pipelines.exact_by_type : pipelines.by_type)[program.type];
    const push_constants pc       = { (uint32_t) program.code.size() };
    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);
    ggml_vk_dispatch_pipeline(ctx, subctx, pipeline,
                              { whole(program.code_buffer), whole(program.control), whole(program.failure) }, pc,
                              { workgroups(ctx->device), 1, 1 });
    wait();
    return true;
}
