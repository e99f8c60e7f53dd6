#version 450

// A run of graph nodes of one generated token as one dispatch: a program of instructions (program_nodes.cpp), each of which
// all workgroups carry out before any begins the next. What does not change meanwhile (weights, norms) is asked for before
// a workgroup waits for the others, so that memory is at work across that.
//
//     product:   qvac_tq_program_product.glsl
//     attention: qvac_tq_program_attention.glsl, qvac_tq_program_head.glsl
//
// EXACT: in exact arithmetic (docs/exactness.md); qvac_exact_program.glsl, qvac_exact_program_attention.glsl.

#extension GL_EXT_control_flow_attributes : enable
#extension GL_GOOGLE_include_directive : enable
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_integer_dot_product : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_arithmetic : require
#extension GL_KHR_shader_subgroup_ballot : require
#extension GL_KHR_shader_subgroup_shuffle : require
#extension GL_EXT_shader_explicit_arithmetic_types_int8 : require
#extension GL_EXT_shader_explicit_arithmetic_types_int64 : require
#define TQ_DOT 1
#define TQ_BYTES 1

#if defined(EXACT)
#include "../../qvac/exact-math.h"
#include "../../qvac/exact-angle.h"
#endif

layout(constant_id = 0) const uint BLOCK_SIZE = 512;
layout(constant_id = 1) const uint LANES      = 32; // of a lane group, which is a subgroup
layout(constant_id = 2) const uint ROWS       = 2;  // a lane group makes at a time; even
layout(constant_id = 3) const uint UNROLL     = 12; // words of each row that a lane has under way
layout(constant_id = 4) const uint ALONE      = 0;  // there is one workgroup, on a device where small code counts
layout(constant_id = 5) const uint PATIENCE   = 1u << 22; // polls until a workgroup gives up

layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;

layout(push_constant) uniform parameter {
    uint n_instructions;
} p;

const uint CODE_WORDS = 40;

layout(binding = 0) readonly buffer Program { uint program[]; };
layout(binding = 1) coherent volatile buffer Control { uint arrived; uint left; uint done[]; } control; // zeros between programs; `done` by head
layout(binding = 2) buffer Failure { uint failed; };

// Memory by address: what no instruction writes, and what they hand on.
layout(buffer_reference, std430, buffer_reference_align = 4)  readonly buffer words_at { uint v[]; };
layout(buffer_reference, std430, buffer_reference_align = 4)  readonly buffer constants_at { float v[]; };
layout(buffer_reference, std430, buffer_reference_align = 16) readonly buffer constants4_at { vec4 v[]; };
layout(buffer_reference, std430, buffer_reference_align = 16) readonly buffer words4_at { uvec4 v[]; };
layout(buffer_reference, std430, buffer_reference_align = 4)  writeonly buffer results_at { uint v[]; };
layout(buffer_reference, std430, buffer_reference_align = 4)  coherent buffer floats_at { float v[]; };
layout(buffer_reference, std430, buffer_reference_align = 16) coherent buffer floats4_at { vec4 v[]; };

#include "qvac_tq_stream.glsl"
#include "qvac_tq_token.glsl"

const uint GROUPS     = BLOCK_SIZE / LANES;
const uint MAX_HEAD   = 128;
const uint MAX_SHARES = 8; // workgroups of a head
const uint MAX_ROW    = 14336;
const uint VALUES4    = MAX_ROW / 4 / BLOCK_SIZE; // of a token, four at a time, that an invocation has in registers
const uint PLANE      = 960;                      // words of the longest row, a multiple of any LANES

const uint PRODUCT   = 0; // kinds of instructions
const uint ATTENTION = 1;

const uint GIVEN_UP = 1u << 31;

// Words of an instruction (program.h): the common one, and a product's.
const uint CODE_kind = 0, CODE_flags = 1, CODE_n = 2, CODE_row_halves = 3, CODE_units = 4, CODE_begin1 = 5, CODE_begin2 = 6, CODE_eps = 7;
const uint CODE_d = 8, CODE_w = 12, CODE_y = 18, CODE_s = 24, CODE_x = 30, CODE_norm = 32, CODE_add = 34;

shared uint  codes[2 * CODE_WORDS]; // this instruction and the next
shared uint  tokens[DIGITS * PLANE > 8 * BLOCK_SIZE ? DIGITS * PLANE : 8 * BLOCK_SIZE]; // a product's token; in attention partial sums
shared float partial[GROUPS];
shared uint  partial_top[GROUPS];
shared uint  scaling[3]; // the bits of a token_scaling
shared uint  go_on;

uint slot; // of `codes`

uint code(const uint at) {
    return codes[slot * CODE_WORDS + at];
}

uvec2 address(const uint at) {
    return uvec2(code(at), code(at + 1));
}

#define PARAM(name)   code(CODE_##name)
#define FLOAT(name)   uintBitsToFloat(code(CODE_##name))
#define ADDRESS(name) address(CODE_##name)

bool exists(const uvec2 a) {
    return (a.x | a.y) != 0;
}

uint lane() {
    return gl_SubgroupInvocationID;
}

uint group() {
    return gl_SubgroupID;
}

// Over the workgroup, the same in all invocations. A barrier must lie between two of these.
//
// One lane group makes the scale of the largest magnitude for all: sixteen would be in each other's way.
token_scaling scaling_of_all(uint top) {
    top = subgroupMax(top);
    if (lane() == 0) {
        partial_top[group()] = top;
    }
    barrier();
    if (group() == 0) {
        [[unroll]] for (uint g = 0; g < GROUPS; g += LANES) {
            top = max(top, g + lane() < GROUPS ? partial_top[g + lane()] : 0);
        }
        const token_scaling s = scaling_of(subgroupMax(top));
        if (lane() == 0) {
            scaling[0] = floatBitsToUint(s.value);
            scaling[1] = floatBitsToUint(s.tiny);
            scaling[2] = floatBitsToUint(s.factor);
        }
    }
    barrier();
    return token_scaling(uintBitsToFloat(scaling[0]), uintBitsToFloat(scaling[1]), uintBitsToFloat(scaling[2]));
}

#if defined(EXACT)
#include "qvac_exact_program.glsl"
#else
float sum_of_all(float sum) {
    sum = subgroupAdd(sum);
    if (lane() == 0) {
        partial[group()] = sum;
    }
    barrier();
    sum = 0.0;
    [[unroll]] for (uint g = 0; g < GROUPS; ++g) {
        sum += partial[g];
    }
    return sum;
}

float norm_scale_of(const vec4 xs[VALUES4]) {
    float sum = 0.0;
    [[unroll]] for (uint j = 0; j < VALUES4; ++j) {
        sum += dot(xs[j], xs[j]);
    }
    return inversesqrt(sum_of_all(sum) / float(PARAM(n)) + FLOAT(eps));
}
#endif

#include "qvac_tq_program_product.glsl"
#include "qvac_tq_program_head.glsl"
#if defined(EXACT)
#include "qvac_exact_program_attention.glsl"
#else
#include "qvac_tq_program_attention.glsl"
#endif

// Waits until all workgroups have come so far. Then the code of the next instruction is no longer the one of before.
bool all_arrive(const uint target, const uint next) {
    if (gl_LocalInvocationID.x == 0) {
        uint arrived = control.arrived;
        for (uint polls = 0; arrived < target && polls < PATIENCE; ++polls) {
            arrived = control.arrived;
        }
        go_on = arrived >= target && arrived < GIVEN_UP ? 1 : 0;
    }
    barrier();
    if (gl_LocalInvocationID.x < CODE_WORDS && next < p.n_instructions) {
        codes[(slot ^ 1) * CODE_WORDS + gl_LocalInvocationID.x] = program[next * CODE_WORDS + gl_LocalInvocationID.x];
    }
    return go_on != 0;
}

// The last result, so that nobody takes it for one.
void give_up() {
    const uint at = (p.n_instructions - 1) * CODE_WORDS;
    const bool product = program[at + CODE_kind] == PRODUCT;
    const uint n = product ? program[at + CODE_units] : program[at + CODE_head] * program[at + CODE_heads];
    for (uint i = gl_LocalInvocationID.x; i < n; i += BLOCK_SIZE) {
        floats_at(uvec2(program[at + CODE_y], program[at + CODE_y + 1])).v[i] = uintBitsToFloat(NAN_BITS);
    }
    if (gl_LocalInvocationID.x == 0) {
        atomicOr(control.arrived, GIVEN_UP); // so that the others wait no longer
        failed = 1;
    }
}

void main() {
    const uint tid = gl_LocalInvocationID.x;
    slot = 1;
    if (tid < CODE_WORDS) {
        codes[tid] = program[tid];
    }
    for (uint i = 0; i < p.n_instructions; ++i) {
        // What was written before goes out, and the code of this instruction is there.
        controlBarrier(gl_ScopeWorkgroup, gl_ScopeWorkgroup, gl_StorageSemanticsBuffer | gl_StorageSemanticsShared, gl_SemanticsAcquireRelease);
        if (tid == 0) {
            memoryBarrierBuffer(); // for all of the workgroup's: its invocations wait for none of their own
            atomicAdd(control.arrived, 1);
        }
        slot ^= 1;
        clear_tokens();
        // What one kind has under way takes no registers of the other's, as each begins with nothing.
        const uint target = (i + 1) * gl_NumWorkGroups.x;
        if (PARAM(kind) == PRODUCT) {
            prepare_product();
            if (!all_arrive(target, i + 1)) {
                break;
            }
            make_product();
        } else {
            prepare_attention();
            if (!all_arrive(target, i + 1)) {
                break;
            }
            attend();
        }
    }
    if (go_on == 0) {
        give_up();
    } else if (tid == 0 && atomicAdd(control.left, 1) == gl_NumWorkGroups.x - 1) {
        // The next dispatch finds zeros.
        control.arrived = 0;
        control.left    = 0;
    }
}
