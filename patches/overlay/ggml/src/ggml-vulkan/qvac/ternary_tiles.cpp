// Which variant of the ternary GEMM (qvac_tq_mul_mat.comp) and which tile shape serves a product.

#include "ops.h"

#include "ggml-vulkan-shaders.hpp"

namespace {

static_assert(sizeof(vk_qvac_tq_mul_mat_push_constants) <= 128, "Vulkan guarantees no more push constants than 128 bytes");

constexpr uint32_t LIMB_RUN = 16; // the shader's

struct tile_shape {
    uint32_t BM, BN, BK; // outputs, columns (token times limb), step of the sum: 64 or 128
    uint32_t TM, TN;     // of one invocation, without cooperative matrices; BN / TN is 8 or 16 (the shader's LIMB_RUN)
    uint32_t WM, WN;     // of one subgroup, with them; WN is 32 or more, so that it holds both limbs of its tokens
    // Where the product has at least so many tiles of 128 x 128 per core of the device, with and without cooperative
    // matrices; never where negative. The first shape that may be used is.
    float    coopmat_from, dot_from;

    uint32_t shared_bytes() const { return (BM + BN) * (BK + 16); }
    uint32_t invocations() const { return (BM / TM) * (BN / TN); }
    uint32_t subgroups() const { return (BM / WM) * (BN / WN); }
    // What the subgroups' sums pass through in the end, and a low-rank product's operands: the shader's OUT_ALL.
    uint32_t sum_bytes(uint32_t limbs) const {
        return 16 * (subgroups() * limbs * LIMB_RUN * (WM / 4 + 1) + 2 * (BM + BN / limbs));
    }
};

constexpr float NEVER = -1.0f;

// Measured on an H100 (docs/performance.md). Large products want large tiles, which read less; the smaller a product, the more
// tiles it must be cut into for every core to have some, and the more of its time unpacking before would take.
const tile_shape TILES[VK_QVAC_TERNARY_TILE_COUNT] = {
    {  64,  64, 128, 4, 8, 32, 32, 0.0f, NEVER },
    {  64,  64,  64, 4, 8, 32, 32, 0.0f, 0.2f  },
    {  64,  32,  64, 4, 4, 32, 32, 0.0f, 0.0f  },
    // Weights are unpacked before.
    { 128, 128, 128, 8, 8, 64, 64, 0.9f, NEVER },
    { 128,  64, 128, 8, 8, 64, 32, 0.4f, NEVER },
    {  64,  64, 128, 4, 8, 32, 32, 0.2f, NEVER },
};

// Where the device does not say how many cores it has.
constexpr uint32_t CORES_UNKNOWN = 16;

// Mixed scales take twice the registers for sums.
constexpr int FIRST_MIXED_TILE = 1;

// Bytes of the factors of a tile's tokens, and of the scales of a step's rows for mixed scales.
constexpr uint32_t FACTORS = 2 * 128 * sizeof(float);

bool available(const vk_device & device, vk_qvac_ternary_kernel kernel) {
    switch (kernel) {
        case VK_QVAC_TERNARY_DOT:
            return device->qvac_integer_dot;
        case VK_QVAC_TERNARY_COOPMAT:
            return device->coopmat_support && device->coopmat_int_support && device->subgroup_size_control &&
                   device->subgroup_require_full_support &&
                   // what the tiles above are multiples of
                   32 % device->coopmat_int_m == 0 && device->coopmat_int_n == LIMB_RUN &&
                   64 % device->coopmat_int_k == 0 && device->coopmat_int_k % 16 == 0;
        default:
            return true;
    }
}

bool fits(const vk_device & device, vk_qvac_ternary_kernel kernel, const tile_shape & tile, uint32_t limbs) {
    const auto &   limits      = device->properties.limits;
    const bool     coopmat     = kernel == VK_QVAC_TERNARY_COOPMAT;
    const uint32_t invocations = coopmat ? tile.subgroups() * device->subgroup_size : tile.invocations();
    const uint32_t shared      = std::max(tile.shared_bytes(), coopmat ? tile.sum_bytes(limbs) : 0) + FACTORS;
    return shared <= limits.maxComputeSharedMemorySize &&
           invocations <= limits.maxComputeWorkGroupInvocations && invocations <= limits.maxComputeWorkGroupSize[0];
}

std::vector<uint32_t> constants(const vk_device & device, vk_qvac_ternary_kernel kernel, const tile_shape & tile, uint32_t limbs, bool mixed,
                                bool low_rank) {
    // Shared memory for two short steps where the device has it; beside a long one, another workgroup is worth more.
    const uint32_t stages = tile.BK < 128 && 2 * tile.shared_bytes() + FACTORS <= device->properties.limits.maxComputeSharedMemorySize ? 2 : 1;
    if (kernel == VK_QVAC_TERNARY_COOPMAT) {
        return { tile.subgroups() * device->subgroup_size, tile.BM, tile.BN, tile.BK, limbs, 0, stages, low_rank, tile.WM, tile.WN,
                 device->coopmat_int_m, device->coopmat_int_n, device->coopmat_int_k };
    }
    return { tile.invocations(), tile.BM, tile.BN, tile.BK, limbs, mixed, stages, low_rank, tile.TM, tile.TN };
}

struct shader {
    const char * name;
    uint64_t     size;
    const void * data;
};

#define QVAC_TQ(name) { #name, name##_len, name##_data }

const shader UNPACKED_SHADERS[VK_QVAC_TERNARY_KERNEL_COUNT] = {
    QVAC_TQ(qvac_tq_mul_mat_unpacked_plain), QVAC_TQ(qvac_tq_mul_mat_unpacked_dot), QVAC_TQ(qvac_tq_mul_mat_unpacked_cm1),
};

const shader SHADERS[2][2][VK_QVAC_TERNARY_KERNEL_COUNT] = {
    { { QVAC_TQ(qvac_tq_mul_mat_tq1_0_plain), QVAC_TQ(qvac_tq_mul_mat_tq1_0_dot), QVAC_TQ(qvac_tq_mul_mat_tq1_0_cm1) },
      { QVAC_TQ(qvac_tq_mul_mat_back_tq1_0_plain), QVAC_TQ(qvac_tq_mul_mat_back_tq1_0_dot), QVAC_TQ(qvac_tq_mul_mat_back_tq1_0_cm1) } },
    { { QVAC_TQ(qvac_tq_mul_mat_tq2_0_plain), QVAC_TQ(qvac_tq_mul_mat_tq2_0_dot), QVAC_TQ(qvac_tq_mul_mat_tq2_0_cm1) },
      { QVAC_TQ(qvac_tq_mul_mat_back_tq2_0_plain), QVAC_TQ(qvac_tq_mul_mat_back_tq2_0_dot), QVAC_TQ(qvac_tq_mul_mat_back_tq2_0_cm1) } },
};

// QVAC_VK_TERNARY=[plain|dot|coopmat][:tile] overrides the choice, for tests and for measuring.
struct override_of_choice {
    std::optional<vk_qvac_ternary_kernel> kernel;
    std::optional<int>                    tile;
    bool                                  wrong = false;

    override_of_choice() {
        const char * env = getenv("QVAC_VK_TERNARY");
        if (!env) {
            return;
        }
        const std::string text  = env;
        const size_t      colon = text.find(':');
        const std::string name  = text.substr(0, colon);
        if (name == "plain") {
            kernel = VK_QVAC_TERNARY_PLAIN;
        } else if (name == "dot") {
            kernel = VK_QVAC_TERNARY_DOT;
        } else if (name == "coopmat") {
            kernel = VK_QVAC_TERNARY_COOPMAT;
        } else {
            wrong = !name.empty();
        }
        if (colon != std::string::npos) {
            tile  = atoi(text.c_str() + colon + 1);
            wrong = wrong || *tile < 0 || *tile >= VK_QVAC_TERNARY_TILE_COUNT;
        }
    }
};

std::optional<vk_qvac_ternary_kernel> kernel_of(const vk_device & device, const override_of_choice & wish, bool mixed) {
    if (wish.kernel && !available(device, *wish.kernel)) {
        return std::nullopt;
    }
    if (wish.kernel && !(mixed && *wish.kernel == VK_QVAC_TERNARY_COOPMAT)) {
        return wish.kernel;
    }
    for (const vk_qvac_ternary_kernel kernel : { VK_QVAC_TERNARY_COOPMAT, VK_QVAC_TERNARY_DOT }) {
        if (available(device, kernel) && !(mixed && kernel == VK_QVAC_TERNARY_COOPMAT)) {
            return kernel;
        }
    }
    return VK_QVAC_TERNARY_PLAIN;
}

bool serves(const vk_device & device, int tile, const vk_qvac_ternary_problem & problem) {
    if (tile < VK_QVAC_TERNARY_FIRST_UNPACKED) {
        return !problem.mixed || tile >= FIRST_MIXED_TILE;
    }
    return !problem.mixed && problem.tokens * problem.limbs >= TILES[tile].BN &&
           ggml_vk_qvac_can_unpack(device, problem.m, problem.k);
}

} // namespace

void ggml_vk_qvac_load_ternary(vk_device & device, const vk_qvac_create_pipeline & create) {
    vk_qvac_ternary_pipelines & pipelines = device->qvac->ternary;
    create(pipelines.quantize, "qvac_tq_quantize", qvac_tq_quantize_len, qvac_tq_quantize_data, 2,
           sizeof(vk_qvac_tq_quantize_push_constants), { 1, 1, 1 }, { 256 }, 0);

    for (int k = 0; k < VK_QVAC_TERNARY_KERNEL_COUNT; ++k) {
        const vk_qvac_ternary_kernel kernel = (vk_qvac_ternary_kernel) k;
        if (!available(device, kernel)) {
            continue;
        }
        const bool coopmat = kernel == VK_QVAC_TERNARY_COOPMAT;
        const auto load    = [&](vk_pipeline & pipeline, const shader & s, int t, uint32_t limbs, bool mixed, bool low_rank) {
            create(pipeline, s.name, s.size, s.data, 6, sizeof(vk_qvac_tq_mul_mat_push_constants),
                   { TILES[t].BM, TILES[t].BN / limbs, 1 }, constants(device, kernel, TILES[t], limbs, mixed, low_rank),
                   coopmat ? device->subgroup_size : 0);
        };
        for (int t = 0; t < VK_QVAC_TERNARY_TILE_COUNT; ++t) {
            for (int variant = 0; variant < 4; ++variant) {
                const uint32_t limbs    = 1 + variant % 2;
                const bool     low_rank = variant / 2;
                if (t >= VK_QVAC_TERNARY_FIRST_UNPACKED) {
                    load(pipelines.mul_mat_unpacked[k][t - VK_QVAC_TERNARY_FIRST_UNPACKED][limbs - 1][low_rank], UNPACKED_SHADERS[k],
                         t, limbs, false, low_rank);
                    continue;
                }
                for (int type = 0; type < 2; ++type) {
                    for (int back = limbs - 1; back < 2; ++back) {
                        for (int mixed = 0; mixed < (coopmat ? 1 : 2); ++mixed) {
                            load(pipelines.mul_mat[type][back][k][t][limbs - 1][mixed][low_rank], SHADERS[type][back][k], t, limbs, mixed, low_rank);
                        }
                    }
                }
            }
        }
    }
}

std::optional<vk_qvac_ternary_choice> ggml_vk_qvac_ternary_choose(const vk_device & device, const vk_qvac_ternary_problem & problem) {
    const override_of_choice wish;
    const auto               kernel = kernel_of(device, wish, problem.mixed);
    if (wish.wrong || !kernel) {
        return std::nullopt;
    }
    const int64_t cores   = device->shader_core_count ? device->shader_core_count : CORES_UNKNOWN;
    const int64_t columns = problem.tokens * problem.limbs;
    const float   tiles   = (float) (CEIL_DIV(problem.m, (int64_t) 128) * CEIL_DIV(columns, (int64_t) 128)) / (float) cores;

    std::optional<vk_qvac_ternary_choice> choice;
    for (int i = 0; i < VK_QVAC_TERNARY_TILE_COUNT && !choice; ++i) {
        const int   t    = (VK_QVAC_TERNARY_FIRST_UNPACKED + i) % VK_QVAC_TERNARY_TILE_COUNT; // unpacking before is best, where it may be
        const float from = *kernel == VK_QVAC_TERNARY_COOPMAT ? TILES[t].coopmat_from : TILES[t].dot_from;
        const bool  use  = wish.tile ? t == *wish.tile : from >= 0.0f && tiles >= from;
        if (use && fits(device, *kernel, TILES[t], problem.limbs) && serves(device, t, problem)) {
            choice = { *kernel, t };
        }
    }
    return choice;
}
