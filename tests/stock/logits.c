/*
 * Evaluates GGUF models with a stock llama.cpp: a shared library that this project did not build.
 *
 * A shortened model and its parent with zeroed blocks must give the same logits, bit for bit. This program
 * computes them and compares. It owns nothing but calls to llama.h; oracle.sh says how it is built.
 *
 * The folder of the library is read from the environment variable STOCK_LIB, because a llama.cpp built with
 * loadable back ends looks for them beside the program and not beside the library.
 *
 * Exit status: 0 done (and the same, if compared), 1 failed, 2 wrong arguments, 3 the logits differ.
 */
#define _POSIX_C_SOURCE 200809L /* clock_gettime */

#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ggml-backend.h"
#include "llama.h"

static const char usage[] =
    "usage: logits [options] MODEL N_TOKENS OUT         write f32 rows [N_TOKENS, n_vocab] to OUT; '-': only print\n"
    "                                                   how many floats there are and their FNV-1a hash\n"
    "       logits [options] --compare A B N_TOKENS     print 'floats F differ D max_abs M'; exit 3 if D > 0\n"
    "       logits [options] --generate MODEL TEXT N    go on with TEXT for N tokens, always the likeliest\n"
    "       logits [options] --tokens MODEL FILE N      print the first N token ids of a text (0: all), or as many\n"
    "                                                   whole windows as they make\n"
    "       logits [options] --speed MODEL WINDOW N     evaluate up to N windows, one for each line of standard\n"
    "                                                   input; print the seconds of each\n"
    "options: --threads N   threads to compute with (1)\n"
    "         --text FILE   evaluate the first tokens of this text, not pseudo-random ones\n"
    "         --leads       for --generate: a line for each token, by how much its logit exceeds the second, and its\n"
    "                       bytes in hexadecimal; '-' for one that ends the text\n"
    "         --window N    for --tokens: one window of N a line, each led by BOS where the model wants one\n";

enum mode { WRITE, COMPARE, GENERATE, TOKENS, SPEED };

struct options {
    enum mode   mode;
    const char *positional[3];
    int         n_threads;
    const char *text; /* NULL: pseudo-random tokens */
    int         window; /* 0: no windows */
    bool        leads;
};

struct tokens {
    llama_token *ids;
    int          n;
};

static void fail(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fputs("logits: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(1);
}

static void *allocate(size_t n_bytes) {
    void *memory = malloc(n_bytes ? n_bytes : 1);
    if (!memory) fail("no memory for %zu bytes", n_bytes);
    return memory;
}

/* Passes on what llama.cpp reports as an error, and nothing else. */
static void log_errors(enum ggml_log_level level, const char *text, void *unused) {
    static bool in_error; /* a continued line has the level of the line before it */
    (void) unused;
    if (level != GGML_LOG_LEVEL_CONT) in_error = level == GGML_LOG_LEVEL_ERROR;
    if (in_error) fputs(text, stderr);
}

static void start_llama(void) {
    const char *folder = getenv("STOCK_LIB");
    llama_log_set(log_errors, NULL);
    if (folder) ggml_backend_load_all_from_path(folder);
    else ggml_backend_load_all();
    llama_backend_init();
}

static struct llama_model *load_model(const char *path, bool vocab_only) {
    struct llama_model_params params = llama_model_default_params();
    params.n_gpu_layers = 0;
    params.vocab_only = vocab_only;
    struct llama_model *model = llama_model_load_from_file(path, params);
    if (!model) fail("%s: llama.cpp could not load the model", path);
    return model;
}

/* A context for one sequence of at most `n_tokens`, all in one batch. The header and the library may be of different
 * versions: values read back through a shifted struct would not be these. */
static struct llama_context *new_context(struct llama_model *model, int n_tokens, int n_threads) {
    struct llama_context_params params = llama_context_default_params();
    if (params.n_seq_max != 1 || params.type_k != GGML_TYPE_F16 || params.type_v != GGML_TYPE_F16 || params.cb_eval ||
        params.abort_callback || params.embeddings)
        fail("llama.h does not fit the library: default parameters make no sense");
    params.n_ctx = params.n_batch = params.n_ubatch = (uint32_t) n_tokens;
    params.n_outputs_max_per_seq = 0; /* as many as there are tokens */
    params.n_threads = params.n_threads_batch = n_threads;
    struct llama_context *context = llama_init_from_model(model, params);
    if (!context) fail("llama.cpp could not make a context of %d tokens", n_tokens);
    if (llama_n_ctx(context) < params.n_ctx || llama_n_batch(context) != params.n_batch ||
        llama_n_ubatch(context) != params.n_ubatch)
        fail("llama.h does not fit the library: asked for %d tokens, got n_ctx %u, n_batch %u, n_ubatch %u", n_tokens,
             llama_n_ctx(context), llama_n_batch(context), llama_n_ubatch(context));
    return context;
}

/* Evaluates `n` tokens from position `first` on, with the logits of all of them or of the last alone. */
static void decode(struct llama_context *context, const llama_token *ids, int n, int first, bool all_logits) {
    struct llama_batch batch = llama_batch_init(n, 0, 1);
    batch.n_tokens = n;
    for (int i = 0; i < n; i++) {
        batch.token[i] = ids[i];
        batch.pos[i] = first + i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = all_logits || i == n - 1;
    }
    int status = llama_decode(context, batch);
    if (status) fail("llama_decode failed with %d", status);
    llama_batch_free(batch);
}

static struct tokens tokenize(const struct llama_vocab *vocab, const char *text, size_t length, bool special) {
    if (length > INT32_MAX / 2) fail("a text of %zu bytes is too long", length);
    int            room = (int) length + 16; /* a token is at least a byte; some for BOS, EOS, a leading space */
    struct tokens  tokens = { allocate((size_t) room * sizeof *tokens.ids), 0 };
    tokens.n = llama_tokenize(vocab, text, (int32_t) length, tokens.ids, room, true, special);
    if (tokens.n < 0) fail("llama.cpp could not tokenize the text");
    return tokens;
}

static struct tokens tokenize_file(const struct llama_vocab *vocab, const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) fail("%s: cannot be opened", path);
    size_t length = 0, room = 1 << 20;
    char  *text = allocate(room);
    for (size_t n; (n = fread(text + length, 1, room - length, file)) > 0;) {
        length += n;
        if (length == room && !(text = realloc(text, room *= 2))) fail("%s: too long for memory", path);
    }
    if (ferror(file)) fail("%s: cannot be read", path);
    fclose(file);
    struct tokens tokens = tokenize(vocab, text, length, false);
    free(text);
    return tokens;
}

/* The tokens that all models are evaluated on: of a text, or a fixed sequence over the whole vocabulary after BOS. */
static struct tokens input_tokens(const struct llama_vocab *vocab, int n, const char *text) {
    if (text) {
        struct tokens tokens = tokenize_file(vocab, text);
        if (tokens.n < n) fail("%s: has %d tokens, %d are needed", text, tokens.n, n);
        tokens.n = n;
        return tokens;
    }
    struct tokens tokens = { allocate((size_t) n * sizeof *tokens.ids), n };
    uint64_t      state = 1;
    for (int i = 0; i < n; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u; /* Knuth's MMIX generator */
        tokens.ids[i] = (llama_token) ((state >> 33) % (uint64_t) llama_vocab_n_tokens(vocab));
    }
    if (llama_vocab_bos(vocab) != LLAMA_TOKEN_NULL) tokens.ids[0] = llama_vocab_bos(vocab);
    return tokens;
}

/* The logits [n_tokens, n_vocab] of a model over its input tokens. Sets `n_floats`; the caller frees the result. */
static float *evaluate(const char *path, int n_tokens, const struct options *options, size_t *n_floats) {
    struct llama_model       *model = load_model(path, false);
    const struct llama_vocab *vocab = llama_model_get_vocab(model);
    struct tokens             tokens = input_tokens(vocab, n_tokens, options->text);
    struct llama_context     *context = new_context(model, n_tokens, options->n_threads);
    size_t                    n_vocab = (size_t) llama_vocab_n_tokens(vocab);

    decode(context, tokens.ids, n_tokens, 0, true);
    float *logits = allocate((size_t) n_tokens * n_vocab * sizeof *logits);
    for (int i = 0; i < n_tokens; i++) {
        const float *row = llama_get_logits_ith(context, i);
        if (!row) fail("%s: llama.cpp gives no logits for token %d", path, i);
        memcpy(logits + (size_t) i * n_vocab, row, n_vocab * sizeof *logits);
    }
    *n_floats = (size_t) n_tokens * n_vocab;
    for (size_t i = 0; i < *n_floats; i++)
        if (isnan(logits[i])) fail("%s: logit %zu of token %zu is not a number", path, i % n_vocab, i / n_vocab);

    free(tokens.ids);
    llama_free(context);
    llama_model_free(model);
    return logits;
}

static int write_logits(const char *model, int n_tokens, const char *out, const struct options *options) {
    size_t   n_floats;
    float   *logits = evaluate(model, n_tokens, options, &n_floats);
    uint64_t hash = 0xcbf29ce484222325u;
    for (const unsigned char *p = (unsigned char *) logits, *end = (unsigned char *) (logits + n_floats); p < end; p++)
        hash = (hash ^ *p) * 0x100000001b3u;
    if (strcmp(out, "-") != 0) {
        FILE *file = fopen(out, "wb");
        if (!file || fwrite(logits, sizeof *logits, n_floats, file) != n_floats || fclose(file))
            fail("%s: cannot be written", out);
    }
    printf("floats %zu fnv1a64 %016llx\n", n_floats, (unsigned long long) hash);
    free(logits);
    return 0;
}

static int compare(const char *path_a, const char *path_b, int n_tokens, const struct options *options) {
    size_t n_floats, n_floats_b, differ = 0;
    double max_abs = 0;
    float *a = evaluate(path_a, n_tokens, options, &n_floats);
    float *b = evaluate(path_b, n_tokens, options, &n_floats_b);
    if (n_floats != n_floats_b) fail("the vocabularies differ in size: %zu and %zu floats", n_floats, n_floats_b);
    for (size_t i = 0; i < n_floats; i++) {
        if (memcmp(&a[i], &b[i], sizeof *a) == 0) continue;
        differ++;
        max_abs = fmax(max_abs, fabs((double) a[i] - b[i]));
    }
    printf("floats %zu differ %zu max_abs %g\n", n_floats, differ, max_abs);
    free(a);
    free(b);
    return differ ? 3 : 0;
}

/* By how much the likeliest token's logit exceeds the second largest. */
static double lead_of(const float *logits, llama_token best, llama_token n_vocab) {
    double second = -INFINITY;
    for (llama_token id = 0; id < n_vocab; id++)
        if (id != best && logits[id] > second) second = logits[id];
    return logits[best] - second;
}

static int generate(const char *path, const char *text, int n, const struct options *options) {
    struct llama_model       *model = load_model(path, false);
    const struct llama_vocab *vocab = llama_model_get_vocab(model);
    struct tokens             prompt = tokenize(vocab, text, strlen(text), true);
    if (prompt.n == 0) fail("the text has no tokens");
    struct llama_context *context = new_context(model, prompt.n + n, options->n_threads);

    if (!options->leads) fputs(text, stdout);
    decode(context, prompt.ids, prompt.n, 0, false);
    for (int i = 0; i < n; i++) {
        const float *logits = llama_get_logits_ith(context, -1);
        llama_token  best = 0;
        for (llama_token id = 1; id < llama_vocab_n_tokens(vocab); id++)
            if (logits[id] > logits[best]) best = id;
        if (options->leads) printf("%.4f ", lead_of(logits, best, llama_vocab_n_tokens(vocab)));
        if (llama_vocab_is_eog(vocab, best)) {
            if (options->leads) putchar('-');
            break;
        }
        char piece[256];
        int  length = llama_token_to_piece(vocab, best, piece, sizeof piece, 0, false);
        if (!options->leads && length > 0) fwrite(piece, 1, (size_t) length, stdout);
        for (int j = 0; options->leads && j < length; j++) printf("%02x", (unsigned char) piece[j]);
        if (options->leads && i + 1 < n) putchar('\n');
        if (i + 1 < n) decode(context, &best, 1, prompt.n + i, false);
    }
    putchar('\n');
    free(prompt.ids);
    llama_free(context);
    llama_model_free(model);
    return 0;
}

/* Prints token ids as llama-perplexity and llama-imatrix cut them: the whole text is tokenized with its BOS, windows
 * are consecutive cuts, and where the model wants a BOS it replaces the first token of every window. */
static int print_tokens(const char *path, const char *text, int n, const struct options *options) {
    struct llama_model       *model = load_model(path, true);
    const struct llama_vocab *vocab = llama_model_get_vocab(model);
    struct tokens             tokens = tokenize_file(vocab, text);
    if (n == 0) n = tokens.n;
    if (n > tokens.n) fail("%s: has %d tokens, %d are needed", text, tokens.n, n);
    int window = options->window ? options->window : n;
    for (int i = 0; i < n / window * window; i++) {
        bool lead = options->window && i % window == 0 && llama_vocab_get_add_bos(vocab);
        printf("%d%c", lead ? llama_vocab_bos(vocab) : tokens.ids[i], (i + 1) % window ? ' ' : '\n');
    }
    free(tokens.ids);
    llama_model_free(model);
    return 0;
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double) now.tv_sec + (double) now.tv_nsec * 1e-9;
}

/* Prompt processing as stock programs do it: every window a sequence of its own, logits of its last token only. A line
 * of standard input starts a window, a line of output says how many seconds it took. */
static int speed(const char *path, int window, int n_windows, const struct options *options) {
    struct llama_model   *model = load_model(path, false);
    struct tokens         tokens = input_tokens(llama_model_get_vocab(model), window, options->text);
    struct llama_context *context = new_context(model, window, options->n_threads);
    char                  line[8];
    for (int i = 0; i < n_windows && fgets(line, sizeof line, stdin); i++) {
        double start = seconds();
        llama_memory_clear(llama_get_memory(context), true);
        decode(context, tokens.ids, window, 0, false);
        llama_synchronize(context);
        printf("%.6f\n", seconds() - start);
        fflush(stdout);
    }
    free(tokens.ids);
    llama_free(context);
    llama_model_free(model);
    return 0;
}

static void wrong_arguments(void) {
    fputs(usage, stderr);
    exit(2);
}

static int number(const char *text, int least) {
    char *end;
    long  value = strtol(text, &end, 10);
    if (*end || end == text || value < least || value > 1 << 30) wrong_arguments();
    return (int) value;
}

static struct options parse(int argc, char **argv) {
    struct options options = { .mode = WRITE, .n_threads = 1 };
    int            n = 0;
    for (int i = 1; i < argc; i++) {
        const char *arg = argv[i];
        if (!strcmp(arg, "--compare")) options.mode = COMPARE;
        else if (!strcmp(arg, "--generate")) options.mode = GENERATE;
        else if (!strcmp(arg, "--tokens")) options.mode = TOKENS;
        else if (!strcmp(arg, "--speed")) options.mode = SPEED;
        else if (!strcmp(arg, "--leads")) options.leads = true;
        else if (!strcmp(arg, "--threads") && i + 1 < argc) options.n_threads = number(argv[++i], 1);
        else if (!strcmp(arg, "--window") && i + 1 < argc) options.window = number(argv[++i], 1);
        else if (!strcmp(arg, "--text") && i + 1 < argc) options.text = argv[++i];
        else if (!strncmp(arg, "--", 2) || n == 3) wrong_arguments();
        else options.positional[n++] = arg;
    }
    if (n != 3) wrong_arguments();
    return options;
}

int main(int argc, char **argv) {
    struct options     options = parse(argc, argv);
    const char *const *args = options.positional;
    start_llama();
    switch (options.mode) {
        case WRITE: return write_logits(args[0], number(args[1], 1), args[2], &options);
        case COMPARE: return compare(args[0], args[1], number(args[2], 1), &options);
        case GENERATE: return generate(args[0], args[1], number(args[2], 1), &options);
        case SPEED: return speed(args[0], number(args[1], 1), number(args[2], 1), &options);
        case TOKENS: return print_tokens(args[0], args[1], number(args[2], 0), &options);
    }
    return 1;
}
