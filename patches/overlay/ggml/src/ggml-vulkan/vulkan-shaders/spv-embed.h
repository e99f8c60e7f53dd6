// Writes a compiled shader into C++ source, for vulkan-shaders-gen.
//
// Upstream lists its bytes as numbers. The matrix shaders' 87 MB of them take the compiler 2.8 GB and a minute; the same
// bytes as a string literal take it a second, and hardly more memory than the file is long.
#pragma once

#include <cstdio>
#include <string>

namespace qvac {

inline std::string string_literal(const std::string & data) {
    std::string out;
    out.reserve(data.size() * 3);
    size_t line = 0;
    for (size_t i = 0; i < data.size(); i++) {
        if (line == 0) {
            out += "\n\"";
        }
        const unsigned char c = data[i];
        // '?' could begin a trigraph.
        if (c >= 0x20 && c < 0x7f && c != '"' && c != '\\' && c != '?') {
            out += (char) c;
        } else {
            // Short octal, except where the next byte would read as one more digit.
            const bool digit = i + 1 < data.size() && data[i + 1] >= '0' && data[i + 1] <= '7';
            char escape[8];
            std::snprintf(escape, sizeof(escape), digit ? "\\%03o" : "\\%o", (unsigned) c);
            out += escape;
        }
        if (++line == 512 || i + 1 == data.size()) {
            out += '"';
            line = 0;
        }
    }
    return out;
}

} // namespace qvac
