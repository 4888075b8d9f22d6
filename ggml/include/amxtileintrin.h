/*
 * Stands before GCC's header of the same name while llama.cpp is built (.cargo/config.toml sets the search path).
 *
 * GCC 11 and 12 tell the optimiser that `ldtilecfg` reads 8 bytes of the tile configuration. It reads 64, so the stores
 * to the other 56 are removed as dead, and ggml's AMX kernels crash on what is left
 * (https://github.com/ggml-org/llama.cpp/issues/20824, https://github.com/ggml-org/llama.cpp/pull/26954). Here the
 * instruction says what it reads.
 */
#include_next <amxtileintrin.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(GGUF_SHORTEN_TILE_LOADCONFIG)
#define GGUF_SHORTEN_TILE_LOADCONFIG
#undef _tile_loadconfig
#define _tile_loadconfig(config) __asm__ volatile("ldtilecfg\t%X0" ::"m"(*(const char(*)[64])(config)))
#endif
