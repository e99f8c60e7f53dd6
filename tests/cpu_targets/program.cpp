// Runs ops of ggml-cpu/qvac on the target it was compiled for: requests come in on stdin, results go out on stdout (the
// other side is program.rs). It takes the place of ggml-cpu.c: the threads, and what the kernels ask of them.
//
// Every operand, the result and the work buffer end where memory ends and begin behind memory that cannot be touched; what
// remains of their first page is compared afterwards. The result is filled with a pattern before.
//
// A new op is one more case of `make`.

#include "ggml-cpu-impl.h"
#include "ggml-train.h"
#include "ggml.h"
#include "qvac/qvac-cpu.h"

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

struct ggml_threadpool {
    std::mutex              mutex;
    std::condition_variable all_here;
    int                     n       = 0;
    int                     waiting = 0;
    uint64_t                round   = 0;
    std::atomic<int>        chunk{ 0 };
};

extern "C" {

void ggml_barrier(ggml_threadpool * tp) {
    std::unique_lock<std::mutex> lock(tp->mutex);
    const uint64_t               round = tp->round;
    if (++tp->waiting == tp->n) {
        tp->waiting = 0;
        ++tp->round;
        tp->all_here.notify_all();
        return;
    }
    tp->all_here.wait(lock, [&] { return tp->round != round; });
}

void ggml_threadpool_chunk_set(ggml_threadpool * tp, int value) {
    tp->chunk = value;
}

int ggml_threadpool_chunk_add(ggml_threadpool * tp, int value) {
    return tp->chunk.fetch_add(value);
}

void ggml_cpu_fp16_to_fp32(const ggml_fp16_t * x, float * y, int64_t n) {
    ggml_fp16_to_fp32_row(x, y, n);
}

void ggml_cpu_bf16_to_fp32(const ggml_bf16_t * x, float * y, int64_t n) {
    ggml_bf16_to_fp32_row(x, y, n);
}

}  // extern "C"

namespace {

constexpr int pattern = 0xA5;

[[noreturn]] void fail(const char * what) {
    fprintf(stderr, "cpu_targets: %s\n", what);
    exit(1);
}

class guarded {
  public:
    explicit guarded(size_t size) : size_(size) {
        const size_t page   = (size_t) sysconf(_SC_PAGESIZE);
        const size_t middle = (size + page - 1) / page * page;
        map_size_           = middle + 2 * page;
        void * map          = mmap(nullptr, map_size_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (map == MAP_FAILED) {
            fail("no memory");
        }
        map_   = (char *) map;
        begin_ = map_ + page;
        data_  = begin_ + middle - size;
        if (middle > 0 && mprotect(begin_, middle, PROT_READ | PROT_WRITE) != 0) {
            fail("no memory");
        }
        memset(begin_, pattern, middle);
    }

    ~guarded() { munmap(map_, map_size_); }

    guarded(const guarded &)             = delete;
    guarded & operator=(const guarded &) = delete;

    char * data() const { return data_; }

    size_t size() const { return size_; }

    void must_be_whole() const {
        for (const char * p = begin_; p < data_; ++p) {
            if ((unsigned char) *p != pattern) {
                fail("wrote before its memory");
            }
        }
    }

  private:
    size_t size_;
    size_t map_size_;
    char * map_;
    char * begin_;
    char * data_;
};

bool read_some(void * to, size_t size) {
    const size_t got = fread(to, 1, size, stdin);
    if (got != 0 && got != size) {
        fail("a request ends early");
    }
    return got == size;
}

template <typename T> T read() {
    T x;
    if (!read_some(&x, sizeof(x))) {
        fail("a request ends early");
    }
    return x;
}

enum op {
    mul_mat, tq_quantize, tq_quantize_half, tq_mul_mat, tq_mul_mat_back,
    // from here on in exact arithmetic
    exact_mul_mat, exact_out_prod, exact_get_rows, exact_project, exact_rms_norm, exact_rms_norm_mul_back, exact_swiglu,
    exact_swiglu_back, exact_relu_sqr_glu_back, exact_cross_entropy, exact_cross_entropy_back, exact_rope, exact_attention,
    exact_attention_back, exact_log, exact_sqrt, exact_to_f16,
};

constexpr int64_t head = 32; // values

// [head, n_heads, T] of [head * n_heads, T]
ggml_tensor * heads(ggml_context * ctx, ggml_tensor * t) {
    return ggml_reshape_3d(ctx, t, head, t->ne[0] / head, t->ne[1]);
}

// Operands with their bytes in place, and the op's result without.
ggml_tensor * make(ggml_context * ctx, uint32_t op, int limbs, const std::vector<ggml_tensor *> & src) {
    switch (op) {
        case mul_mat:
            return ggml_mul_mat(ctx, src[0], src[1]);
        case tq_quantize:
            return ggml_tq_quantize(ctx, src[0], limbs);
        case tq_quantize_half: {
            const int64_t n = src[0]->ne[0] / 2;
            return ggml_tq_quantize(ctx, ggml_view_2d(ctx, src[0], n, src[0]->ne[1], src[0]->nb[1], n * src[0]->nb[0]), limbs);
        }
        case tq_mul_mat:
            return ggml_tq_mul_mat(ctx, src[0], src[1]);
        case tq_mul_mat_back:
            return ggml_tq_mul_mat_back(ctx, src[0], src[1], src.size() > 2 ? src[2] : nullptr);
        case exact_mul_mat:
            return ggml_mul_mat(ctx, src[0], src[1]);
        case exact_out_prod:
            return ggml_out_prod(ctx, src[0], src[1]);
        case exact_get_rows:
            return ggml_get_rows(ctx, src[0], src[1]);
        case exact_project:
            return ggml_low_rank_project(ctx, src[0], src[1], 0.5f);
        case exact_rms_norm:
            return ggml_rms_norm(ctx, src[0], 1e-5f);
        case exact_rms_norm_mul_back:
            return ggml_rms_norm_mul_back(ctx, src[0], src[1], src[2], src[3], 1e-5f);
        case exact_swiglu:
            return ggml_swiglu_split(ctx, src[0], src[1]);
        case exact_swiglu_back:
            return ggml_swiglu_back(ctx, src[0], src[1], src[2]);
        case exact_relu_sqr_glu_back:
            return ggml_relu_sqr_glu_back(ctx, src[0], src[1], src[2]);
        case exact_cross_entropy:
            return ggml_cross_entropy_loss_labels(ctx, src[0], src[1], 1.0f);
        case exact_cross_entropy_back:
            return ggml_cross_entropy_loss_labels_back(ctx, src[2], src[0], src[1], 1.0f);
        case exact_rope:
            return ggml_rope_ext(ctx, heads(ctx, src[0]), src[1], nullptr, head, GGML_ROPE_TYPE_NEOX, 4096, 10000.0f, 1.0f, 0.0f, 1.0f, 32.0f, 1.0f);
        case exact_attention:
            return ggml_attention(ctx, heads(ctx, src[0]), heads(ctx, src[1]), heads(ctx, src[2]), src[3], 0.25f);
        case exact_attention_back:
            return ggml_attention_back(
                ctx, heads(ctx, src[0]), heads(ctx, src[1]), heads(ctx, src[2]), src[3], src[4], heads(ctx, src[5]), 0.25f);
        case exact_log:
            return ggml_log(ctx, src[0]);
        case exact_sqrt:
            return ggml_sqrt(ctx, src[0]);
        case exact_to_f16:
            return ggml_cast(ctx, src[0], GGML_TYPE_F16);
        default:
            fail("no such op");
    }
}

void compute(ggml_tensor * dst, int n_threads) {
    const guarded   work(qvac_cpu_work_size(n_threads, dst));
    ggml_threadpool team;
    team.n             = n_threads;
    const auto in_team = [&](int ith) {
        const ggml_compute_params params = { ith, n_threads, work.size(), work.data(), &team, false };
        if (!qvac_cpu_compute_forward(&params, dst)) {
            fail("no kernel of ours takes this op");
        }
    };
    std::vector<std::thread> others;
    for (int i = 1; i < n_threads; ++i) {
        others.emplace_back(in_team, i);
    }
    in_team(0);
    for (std::thread & other : others) {
        other.join();
    }
    work.must_be_whole();
}

// One request: op, limbs, number of threads, operands. Its result: bytes behind their number.
bool answer() {
    uint32_t op;
    if (!read_some(&op, sizeof(op))) {
        return false;
    }
    const uint32_t limbs     = read<uint32_t>();
    const uint32_t n_threads = read<uint32_t>();

    ggml_context * ctx = ggml_init({ 64 * ggml_tensor_overhead(), nullptr, true });
    std::vector<std::unique_ptr<guarded>> memory;
    std::vector<std::vector<char>>        before;
    std::vector<ggml_tensor *>            src(read<uint32_t>());
    for (ggml_tensor *& t : src) {
        const uint32_t type    = read<uint32_t>();
        const int64_t  ne0     = read<int64_t>();
        const int64_t  ne1     = read<int64_t>();
        const uint64_t n_bytes = read<uint64_t>();
        t                      = ggml_new_tensor_2d(ctx, (ggml_type) type, ne0, ne1);
        if (ggml_nbytes(t) != n_bytes) {
            fail("an operand has another size than its type says");
        }
        memory.push_back(std::make_unique<guarded>(n_bytes));
        t->data = memory.back()->data();
        before.emplace_back(n_bytes);
        read_some(before.back().data(), n_bytes);
        memcpy(t->data, before.back().data(), n_bytes);
    }

    ggml_set_exact(op >= exact_mul_mat);
    ggml_tensor * dst = make(ctx, op, (int) limbs, src);
    const guarded result(ggml_nbytes(dst));
    dst->data = result.data();
    compute(dst, (int) n_threads);
    result.must_be_whole();
    for (size_t i = 0; i < memory.size(); ++i) {
        memory[i]->must_be_whole();
        if (memcmp(memory[i]->data(), before[i].data(), before[i].size()) != 0) {
            fail("wrote over an operand");
        }
    }
    const uint64_t n_bytes = result.size();
    fwrite(&n_bytes, sizeof(n_bytes), 1, stdout);
    fwrite(result.data(), 1, n_bytes, stdout);
    fflush(stdout);
    ggml_free(ctx);
    return true;
}

}  // namespace

int main() {
    while (answer()) {
    }
    return 0;
}
