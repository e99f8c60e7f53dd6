#pragma once

// The variants of our shaders. Included by vulkan-shaders-gen.cpp behind `string_to_spv`; a new shader is one line here
// and one in the file of its op in ggml-vulkan/qvac. Note that a change here makes the build generate every shader anew, a
// change of a .comp file only its own.

static void qvac_shaders() {
    for (const std::string type : { "f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q8_0", "q4_k", "q6_k", "tq1_0", "tq2_0" }) {
        string_to_spv("qvac_out_prod_" + type, "qvac_out_prod.comp",
            {{"DATA_A_" + to_uppercase(type), "1"}, {"FLOAT_TYPE", "float"}, {"FLOAT_TYPEV2", "vec2"}, {"FLOAT_TYPEV4", "vec4"}});
    }
    string_to_spv("qvac_cross_entropy",      "qvac_cross_entropy.comp",      {});
    string_to_spv("qvac_cross_entropy_back", "qvac_cross_entropy_back.comp", {});
    for (const std::string name : { "qvac_attention", "qvac_attention_back_q", "qvac_attention_back_kv" }) {
        string_to_spv(name, name + ".comp", {});
        string_to_spv(name + "_imitation", name + ".comp", {{"IMITATION", "1"}});
#if defined(GGML_VULKAN_COOPMAT_GLSLC_SUPPORT)
        string_to_spv(name, name + ".comp", {{"COOPMAT", "1"}}, true, true);
#endif
    }
}
