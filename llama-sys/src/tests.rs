//! The bindings against the library they were made for: a pin that moved must not pass unseen.

use std::ffi::CStr;

use super::*;

/// Type, its number in GGUF files, weights per block, bytes per block.
const TYPES: &[(ggml_type, u32, i64, usize)] = &[
    (GGML_TYPE_F32, 0, 1, 4),
    (GGML_TYPE_F16, 1, 1, 2),
    (GGML_TYPE_Q4_0, 2, 32, 18),
    (GGML_TYPE_Q4_1, 3, 32, 20),
    (GGML_TYPE_Q5_0, 6, 32, 22),
    (GGML_TYPE_Q8_0, 8, 32, 34),
    (GGML_TYPE_Q4_K, 12, 256, 144),
    (GGML_TYPE_Q6_K, 14, 256, 210),
    (GGML_TYPE_I32, 26, 1, 4),
    (GGML_TYPE_BF16, 30, 1, 2),
    (GGML_TYPE_TQ1_0, 34, 256, 54),
    (GGML_TYPE_TQ2_0, 35, 256, 66),
];

#[test]
fn type_numbers_and_block_sizes() {
    for &(kind, number, block, bytes) in TYPES {
        assert_eq!(kind as u32, number);
        // SAFETY: both calls only look `kind` up in ggml's table of types.
        let found = unsafe { (ggml_blck_size(kind), ggml_type_size(kind)) };
        assert_eq!(found, (block, bytes), "type {number}");
    }
}

#[test]
fn a_graph_view_outside_its_graph_is_refused() {
    let params = ggml_init_params { mem_size: 1 << 20, mem_buffer: std::ptr::null_mut(), no_alloc: true };
    // SAFETY: the context outlives every use of its tensors and graph, and is freed once.
    unsafe {
        let ctx = ggml_init(params);
        let a = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, 4); // [4]
        let graph = ggml_new_graph(ctx);
        ggml_build_forward_expand(graph, ggml_sqr(ctx, ggml_neg(ctx, a))); // [4]
        assert_eq!(ggml_graph_n_nodes(graph), 2);
        let view = qvac_graph_view(graph, 1, 2);
        assert_eq!(ggml_graph_n_nodes(view), 1);
        assert_eq!((*ggml_graph_node(view, 0)).op, GGML_OP_SQR);
        qvac_graph_view_free(view);
        assert!(qvac_graph_view(graph, 1, 3).is_null());
        assert!(qvac_graph_view(graph, -1, 1).is_null());
        ggml_free(ctx);
    }
}

#[test]
fn a_missing_model_is_reported_not_thrown() {
    let mut err = [0_i8; 256];
    // SAFETY: the path is terminated, `err` is writable for its length.
    let model = unsafe {
        qvac_llama_model_load_from_file(
            c"/nonexistent/model.gguf".as_ptr(),
            llama_model_default_params(),
            err.as_mut_ptr().cast(),
            err.len(),
        )
    };
    assert!(model.is_null());
    // SAFETY: the shim always terminates `err`.
    let message = unsafe { CStr::from_ptr(err.as_ptr().cast()) };
    assert!(message.to_bytes().len() < err.len());
}

#[test]
#[cfg(all(feature = "vulkan", any(target_os = "linux", target_os = "windows", target_os = "android")))]
fn the_vulkan_backend_is_linked_in() {
    // SAFETY: fills and reads ggml's registry; the name is terminated.
    let vulkan = unsafe {
        ggml_backend_load_all();
        ggml_backend_reg_by_name(c"Vulkan".as_ptr())
    };
    assert!(!vulkan.is_null());
}
