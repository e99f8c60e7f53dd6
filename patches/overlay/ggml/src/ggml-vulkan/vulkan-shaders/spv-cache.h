// Keeps compiled shaders by content, for vulkan-shaders-gen.
//
// Upstream compiles every shader again whenever the generator changes, and so whenever a shader is registered; in a
// second clone too. Here a variant is compiled once: its key is the text of its source and of all that it includes,
// the options, and the compiler (whose version names the folder, see llama-sys/build/compile.rs).
// Without QVAC_SPV_CACHE in the environment nothing is kept and upstream's behaviour is unchanged.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <string>
#include <system_error>
#include <vector>

namespace qvac {

// Two 64-bit hashes over the same bytes: FNV-1a, and a rotating multiply with other constants. Guards against accidents,
// not against an adversary, who could as well write to the cache.
class content_hash {
    uint64_t a = 0xcbf29ce484222325u;
    uint64_t b = 0x9e3779b97f4a7c15u;

  public:
    void add(const std::string & text) {
        for (unsigned char c : text) {
            a = (a ^ c) * 0x100000001b3u;
            b = ((b << 23) | (b >> 41)) ^ (c * 0xff51afd7ed558ccdu);
            b *= 0xc4ceb9fe1a85ec53u;
        }
        // Keeps ("ab", "c") and ("a", "bc") apart.
        a = (a ^ text.size()) * 0x100000001b3u;
        b = (b ^ text.size()) * 0xc4ceb9fe1a85ec53u;
    }

    std::string name() const {
        char out[33];
        std::snprintf(out, sizeof(out), "%016llx%016llx", (unsigned long long) a, (unsigned long long) b);
        return out;
    }
};

inline std::string read_text(const std::filesystem::path & path) {
    std::ifstream in(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
}

// Adds `path` and what it includes, whatever the preprocessor would leave out, to `files`.
inline void collect_sources(const std::filesystem::path & path, std::set<std::filesystem::path> & files) {
    if (!std::filesystem::exists(path) || !files.insert(path).second) {
        return;
    }
    const std::string text      = read_text(path);
    const std::string directive = "#include \"";
    for (size_t at = text.find(directive); at != std::string::npos; at = text.find(directive, at)) {
        at += directive.size();
        const size_t end = text.find('"', at);
        if (end == std::string::npos) {
            return;
        }
        collect_sources((path.parent_path() / text.substr(at, end - at)).lexically_normal(), files);
    }
}

// Takes `out_path` from the cache, or runs `compile` (which returns an exit code) and keeps what it wrote.
// `dep_path`, when not empty, receives the make rule of all sources.
template <typename F>
int spv_cached(const std::vector<std::string> & command, const std::string & in_path, const std::string & out_path,
    const std::string & dep_path, F && compile) {
    namespace fs        = std::filesystem;
    const char * folder = std::getenv("QVAC_SPV_CACHE");
    if (folder == nullptr) {
        return compile();
    }
    std::set<fs::path> files;
    collect_sources(fs::path(in_path).lexically_normal(), files);
    content_hash hash;
    // The program itself is in the folder's name; paths differ between clones and decide nothing.
    for (size_t i = 1; i < command.size(); i++) {
        if (command[i] != in_path && command[i] != out_path && command[i] != dep_path) {
            hash.add(command[i]);
        }
    }
    for (const fs::path & file : files) {
        hash.add(file.filename().string());
        hash.add(read_text(file));
    }
    const fs::path  kept = fs::path(folder) / hash.name();
    std::error_code ec;
    if (fs::copy_file(kept, out_path, fs::copy_options::overwrite_existing, ec)) {
        fs::last_write_time(kept, fs::file_time_type::clock::now(), ec);
    } else {
        const int exit_code = compile();
        if (exit_code != 0) {
            return exit_code;
        }
        // Renamed into place, so that no reader sees half a file. A cache that cannot be written costs only time.
        const fs::path part = kept.string() + "." + fs::path(out_path).filename().string() + ".part";
        if (fs::copy_file(out_path, part, fs::copy_options::overwrite_existing, ec)) {
            fs::rename(part, kept, ec);
        }
    }
    if (!dep_path.empty()) {
        std::ofstream dep(dep_path, std::ios::binary);
        dep << out_path << ":";
        for (const fs::path & file : files) {
            dep << " " << file.string();
        }
        dep << "\n";
    }
    return 0;
}

} // namespace qvac
