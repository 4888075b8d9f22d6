# Sourced: `build_logits OUT` builds logits.c against the library in STOCK_LIB. `here` is this folder.

# File names carry a version in some packages: libllama.so, libllama.so.0, libllama.v0.5.0.so.
library() {
    for file in "$STOCK_LIB/lib$1".so* "$STOCK_LIB/lib$1".v*.so "$STOCK_LIB/lib$1".dylib; do
        [ -e "$file" ] && echo "$file" && return
    done
    echo "no lib$1 in $STOCK_LIB" >&2
    return 1
}

build_logits() {
    llama=$(library llama) && ggml=$(library ggml) && base=$(library ggml-base) &&
        "${CC:-cc}" -std=c99 -O2 -I"$LLAMA_INCLUDE" -I"$LLAMA_INCLUDE/../ggml/include" "$here/logits.c" -o "$1" \
            "$llama" "$ggml" "$base" -Wl,-rpath,"$STOCK_LIB" -lm
}
