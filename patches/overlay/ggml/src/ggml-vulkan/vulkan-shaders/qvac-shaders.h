#pragma once

// The variants of our shaders. Included by vulkan-shaders-gen.cpp behind `string_to_spv`; a new shader is one line here
// and one in the file of its op in ggml-vulkan/qvac. Note that a change here makes the build generate every shader anew, a
// change of a .comp file only its own.

static void qvac_shaders() {
    for (const std::string type : { "f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q8_0", "q4_k", "q6_k", "tq1_0", "tq2_0" }) {
        string_to_spv("qvac_out_prod_" + type, "qvac_out_prod.comp",
            {{"DATA_A_" + to_uppercase(type), "1"}, {"FLOAT_TYPE", "float"}, {"FLOAT_TYPEV2", "vec2"}, {"FLOAT_TYPEV4", "vec4"}});
    }
    for (const std::string type : { "f16", "bf16", "q4_0", "q4_1", "q5_0", "q8_0", "q4_k", "q6_k", "tq1_0", "tq2_0" }) {
        const std::map<std::string, std::string> defines = {{"DATA_A_" + to_uppercase(type), "1"}};
        string_to_spv("qvac_out_prod_f16_" + type, "qvac_out_prod_f16.comp", defines);
#if defined(GGML_VULKAN_COOPMAT_GLSLC_SUPPORT)
        string_to_spv("qvac_out_prod_f16_" + type, "qvac_out_prod_f16.comp", merge_maps(defines, {{"COOPMAT", "1"}}), true, true);
#endif
    }
    string_to_spv("qvac_out_prod_scale",     "qvac_out_prod_scale.comp",     {});
    string_to_spv("qvac_out_prod_sum",       "qvac_out_prod_sum.comp",       {});
    string_to_spv("qvac_cross_entropy",      "qvac_cross_entropy.comp",      {});
    string_to_spv("qvac_cross_entropy_back", "qvac_cross_entropy_back.comp", {});
    const std::map<std::string, std::string> unpacked = {{"TQ_UNPACKED", "1"}};
    string_to_spv("qvac_tq_mul_mat_unpacked_plain", "qvac_tq_mul_mat.comp", unpacked);
    string_to_spv("qvac_tq_mul_mat_unpacked_dot", "qvac_tq_mul_mat.comp", merge_maps(unpacked, {{"TQ_DOT", "1"}}));
    string_to_spv("qvac_tq_mul_mat_unpacked", "qvac_tq_mul_mat.comp", merge_maps(unpacked, {{"TQ_COOPMAT", "1"}}), true, true); // _cm1
    for (const std::string type : { "tq1_0", "tq2_0" }) {
        const std::map<std::string, std::string> vec = {{"DATA_A_" + to_uppercase(type), "1"}};
        string_to_spv("qvac_tq_mul_mat_vec_" + type + "_plain", "qvac_tq_mul_mat_vec.comp", vec);
        string_to_spv("qvac_tq_mul_mat_vec_" + type + "_dot", "qvac_tq_mul_mat_vec.comp", merge_maps(vec, {{"TQ_DOT", "1"}}));
        string_to_spv("qvac_tq_program_" + type, "qvac_tq_program.comp", vec);
        string_to_spv("qvac_exact_program_" + type, "qvac_tq_program.comp", merge_maps(vec, {{"EXACT", "1"}}));
        for (const bool back : { false, true }) {
            std::map<std::string, std::string> defines = {{"DATA_A_" + to_uppercase(type), "1"}};
            if (back) {
                defines["TQ_BACK"] = "1";
            }
            string_to_spv((back ? "qvac_tq_unpack_back_" : "qvac_tq_unpack_") + type, "qvac_tq_unpack.comp", defines);
            const std::string name = (back ? "qvac_tq_mul_mat_back_" : "qvac_tq_mul_mat_") + type;
            string_to_spv(name + "_plain", "qvac_tq_mul_mat.comp", defines);
            string_to_spv(name + "_dot", "qvac_tq_mul_mat.comp", merge_maps(defines, {{"TQ_DOT", "1"}}));
            string_to_spv(name, "qvac_tq_mul_mat.comp", merge_maps(defines, {{"TQ_COOPMAT", "1"}}), true, true); // _cm1
        }
    }
    string_to_spv("qvac_low_rank_project",   "qvac_low_rank_project.comp",   {});
    string_to_spv("qvac_low_rank_project_along_k", "qvac_low_rank_project_along_k.comp", {});
    string_to_spv("qvac_low_rank_add",       "qvac_low_rank_add.comp",       {});
    string_to_spv("qvac_low_rank_grad",      "qvac_low_rank_grad.comp",      {});
    for (const std::string keep : { "2", "3", "6", "7", "14" }) {
        for (const std::string name : { "qvac_rms_norm", "qvac_rms_norm_mul_back", "qvac_tq_quantize", "qvac_tq_rms_norm",
                                        "qvac_tq_rms_norm_mul_back", "qvac_tq_swiglu_back" }) {
            string_to_spv(name + "_" + keep, name + ".comp", {{"KEEP", keep}, {"BLOCK", keep == "3" || keep == "7" ? "512" : "256"}});
        }
    }
    for (const std::string keep : { "1", "3" }) {
        string_to_spv("qvac_tq_rope_back_" + keep, "qvac_tq_rope_back.comp", {{"KEEP", keep}});
    }
    string_to_spv("qvac_rope",               "qvac_rope.comp",               {});
    for (const std::string keep : { "2", "6", "14" }) {
        string_to_spv("qvac_exact_rms_norm_" + keep, "qvac_exact_rms_norm.comp", {{"KEEP", keep}});
        string_to_spv("qvac_exact_rms_norm_back_" + keep, "qvac_exact_rms_norm_back.comp", {{"KEEP", keep}});
    }
    for (const std::string name : { "sum_rows", "cross_entropy", "values", "glu_back", "adamw", "copy", "rope" }) {
        string_to_spv("qvac_exact_" + name, "qvac_exact_" + name + ".comp", {});
    }
    string_to_spv("qvac_binary",             "qvac_binary.comp",             {});
    for (const std::string rank : { "8", "16", "24" }) {
        string_to_spv("qvac_low_rank_project_long_" + rank, "qvac_low_rank_project_long.comp", {{"RR", rank}});
        string_to_spv("qvac_low_rank_grad_long_" + rank, "qvac_low_rank_grad_long.comp", {{"RR", rank}});
    }
    string_to_spv("qvac_low_rank_add_long",  "qvac_low_rank_add_long.comp",  {});
    string_to_spv("qvac_low_rank_grad_sum",  "qvac_low_rank_grad_sum.comp",  {});
    string_to_spv("qvac_glu_back",           "qvac_glu_back.comp",           {});
    for (const std::string name : { "qvac_attention", "qvac_attention_back_q", "qvac_attention_back_kv" }) {
        string_to_spv(name, name + ".comp", {});
    }
    for (const std::string name : { "qvac_attention_matrix", "qvac_attention_matrix_back_q", "qvac_attention_matrix_back_kv" }) {
        string_to_spv(name + "_imitation", name + ".comp", {{"IMITATION", "1"}});
#if defined(GGML_VULKAN_COOPMAT_GLSLC_SUPPORT)
        string_to_spv(name, name + ".comp", {{"COOPMAT", "1"}}, true, true);
#endif
    }
    for (const std::string type : { "f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q8_0", "q4_k", "q6_k", "tq1_0", "tq2_0" }) {
        for (const std::string name : { "qvac_exact_product", "qvac_exact_product_narrow", "qvac_exact_product_vec", "qvac_exact_get_rows" }) {
            string_to_spv(name + "_" + type, name + ".comp", {{"A_" + to_uppercase(type), "1"}});
        }
    }
    string_to_spv("qvac_attention_stats",    "qvac_attention_stats.comp",    {});
    for (const std::string name : { "", "_back_q", "_back_kv", "_delta", "_join" }) {
        string_to_spv("qvac_exact_attention" + name, "qvac_exact_attention" + name + ".comp", {});
    }
    for (const std::string type : { "f32", "f16" }) {
        const std::map<std::string, std::string> defines = {{"KV_" + to_uppercase(type), "1"}};
        string_to_spv("qvac_exact_attention_cache_" + type, "qvac_exact_attention.comp", merge_maps(defines, {{"CACHE", "1"}}));
        string_to_spv("qvac_exact_attention_few_" + type, "qvac_exact_attention_few.comp", defines);
    }
}
