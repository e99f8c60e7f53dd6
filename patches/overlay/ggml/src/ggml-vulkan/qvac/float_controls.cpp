// Kernels of exact arithmetic take denormals for the numbers that they are. Some drivers leave that to the shader, which has to
// ask for it (SPV_KHR_float_controls) where it is on offer; so the request is put into the SPIR-V here. NVIDIA's driver does
// not offer it (580.159), flushes where it is not asked, and does not where it is.

#include "ops.h"

#include "ggml-train.h"

namespace {

bool wants_denormals(const vk_device & device, const std::string & pipeline) {
    const bool exact = pipeline.rfind("qvac_exact_", 0) == 0 || (ggml_is_exact() && pipeline.rfind("qvac_tq_", 0) == 0);
    if (!exact) {
        return false;
    }
    vk::PhysicalDeviceFloatControlsProperties controls;
    vk::PhysicalDeviceProperties2             all;
    all.pNext = &controls;
    device->physical_device.getProperties2(&all);
    return controls.shaderDenormPreserveFloat32 || device->vendor_id == VK_VENDOR_ID_NVIDIA;
}

uint32_t first_word(uint32_t n_words, spv::Op op) {
    return (n_words << spv::WordCountShift) | op;
}

} // namespace

void ggml_vk_qvac_float_controls(
        const vk_device & device, const std::string & pipeline, std::vector<uint32_t> & spirv, vk::ShaderModuleCreateInfo & info) {
    if (!wants_denormals(device, pipeline)) {
        return;
    }
    std::vector<uint32_t> code(info.pCode, info.pCode + info.codeSize / sizeof(uint32_t));
    // A module lies in the order capabilities, extensions, imports, memory model, entry points, execution modes.
    size_t extensions = 0;
    size_t modes      = 0;
    uint32_t entry    = 0;
    for (size_t at = 5; at < code.size(); at += code[at] >> spv::WordCountShift) {
        const uint32_t op = code[at] & spv::OpCodeMask;
        const size_t behind = at + (code[at] >> spv::WordCountShift);
        if (op == spv::OpCapability) {
            extensions = behind;
        } else if (op == spv::OpEntryPoint) {
            modes = behind;
            entry = code[at + 2];
        } else if (op == spv::OpFunction) {
            break;
        }
    }
    GGML_ASSERT(extensions != 0 && modes != 0);
    const uint32_t mode[] = { first_word(4, spv::OpExecutionMode), entry, spv::ExecutionModeDenormPreserve, 32 };
    code.insert(code.begin() + modes, std::begin(mode), std::end(mode));

    const char name[] = "SPV_KHR_float_controls";
    std::vector<uint32_t> request = { first_word(2, spv::OpCapability), spv::CapabilityDenormPreserve };
    const size_t n_name = (sizeof(name) + 3) / 4;
    request.push_back(first_word((uint32_t) (1 + n_name), spv::OpExtension));
    request.resize(request.size() + n_name, 0);
    memcpy(&request[3], name, sizeof(name));
    code.insert(code.begin() + extensions, request.begin(), request.end());

    spirv = std::move(code);
    info.setCodeSize(spirv.size() * sizeof(uint32_t));
    info.setPCode(spirv.data());
}
