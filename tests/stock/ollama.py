"""Checks what a real Ollama makes of shortened models. Run by ollama.sh; needs the standard library alone.

    ollama.py OLLAMA GGUF_SHORTEN WORK MODEL...

WORK is a folder that is empty but for `logits`, the program of logits.c. Each model is made known to Ollama with a template,
parameters, a system text, a message and a licence, is shortened as `ollama:NAME`, and each result is made known by --ollama.

Checked of each: template, parameters and texts are the parent's; the program proves what Ollama stored, and lists it; and Ollama
says of it what a stock llama.cpp says, as it does of the parent. Greedy texts of two engines part where two tokens are as good
as equally likely. So where they part, the likeliest two must be closer than TIE in llama.cpp, whose token is then taken, and
both go on. A file with a list of sliding windows is computed otherwise by Ollama: there the program must have said so.
"""

import functools, json, os, pathlib, signal, socket, subprocess, sys, time, urllib.error, urllib.request

TOKENS = 40
# Logits of engines with other kernels differ by less on these models; those of a different computation by much more.
TIE = 0.5
PROMPTS = [
    "Once upon a time",
    "The capital of France is",
    "Water boils when",
    "The most important rule of good writing is",
]
TEXTS = {
    "TEMPLATE": '"""{{ if .System }}<|sys|>{{ .System }}\n{{ end }}<|me|>{{ .Prompt }}\n<|it|>"""',
    "SYSTEM": '"""You are "brief".\nAlways."""',
    "PARAMETER": ["stop <|me|>", "stop <|it|>", "temperature 0.3", "num_ctx 2048"],
    "MESSAGE": ["user Hello", "assistant Yes?"],
    "LICENSE": '"""As is,\nno "warranty"."""',
}
# What is done: arguments of the program. Ollama goes by a pattern of its own where blocks differ in kind, so it must be kept.
CUT = "--drop 4 --method bi --tokens 2048"
WAYS = {
    "cut": f"{CUT} --portable",
    "healed": f"{CUT} --portable --heal linear",
    "mixed": f"{CUT} --portable --requantize Q4_K_M",
    # Only of a model with such a pattern.
    "listed": CUT,
}

ollama, program, work = (pathlib.Path(arg).resolve() for arg in sys.argv[1:4])
models = sys.argv[4:]
counts = {"passed": 0, "failed": 0, "skipped": 0}
table = []

with socket.create_server(("127.0.0.1", 0)) as free:
    host = f"127.0.0.1:{free.getsockname()[1]}"
environment = dict(
    os.environ,
    HOME=str(work),
    OLLAMA_HOST=host,
    OLLAMA_MODELS=str(work / "store"),
    OLLAMA_KEEP_ALIVE="1m",
    PATH=f"{ollama.parent}:{os.environ['PATH']}",
)


def check(name, holds, found=""):
    counts["passed" if holds else "failed"] += 1
    print(f"{'ok' if holds else 'FAILED'}: {name}{'' if holds else f': {found}'}", flush=True)
    return holds


def ask(path, **body):
    """The lines of JSON that Ollama answers."""
    request = urllib.request.Request(f"http://{host}/api/{path}", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=600) as answer:
        return [json.loads(line) for line in answer]


class Server:
    """`ollama serve`, as long as the block lasts. What it says goes to a file."""

    def __init__(self, **more):
        self.log = open(work / f"serve-{len(list(work.glob('serve-*')))}.log", "w+")
        self.process = subprocess.Popen(
            [ollama, "serve"], env=environment | more, stdout=self.log, stderr=self.log, start_new_session=True
        )

    def __enter__(self):
        for _ in range(120):
            try:
                with urllib.request.urlopen(f"http://{host}/api/version", timeout=5) as answer:
                    self.version = json.load(answer)["version"]
                    return self
            except OSError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.5)
        self.__exit__()
        sys.exit(f"ollama serve does not answer:\n{self.said()}")

    def __exit__(self, *_):
        # Its runners are of its session.
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)

    def said(self):
        self.log.flush()
        return pathlib.Path(self.log.name).read_text()


def run(*command):
    done = subprocess.run([str(word) for word in command], env=environment, capture_output=True, text=True, cwd=work)
    if done.returncode:
        print("    " + done.stderr.strip().replace("\n", "\n    "), flush=True)
    return done


def generated(name, prompt, n):
    """The pieces, a token each, with which Ollama goes on for `n` tokens or more."""
    # Without penalties, whose default is 1.1. Its own engine keeps back a token at the end.
    options = {"temperature": 0, "num_predict": n + 2, "seed": 1, "repeat_penalty": 1.0, "stop": [], "num_ctx": 1024}
    answer = ask("generate", model=name, prompt=prompt, raw=True, stream=True, options=options | {"num_thread": 1})
    return [line["response"] for line in answer if line["response"]]


@functools.cache
def stock(path, prompt, n):
    """What a stock llama.cpp says: of each token its bytes, none where it ends, and by how much it leads."""
    done = run(work / "logits", "--threads", 1, "--leads", "--generate", path, prompt, n)
    assert done.returncode == 0, done
    lines = [line.split(" ") for line in done.stdout.strip("\n").split("\n")]
    return [(b"" if piece == "-" else bytes.fromhex(piece), float(lead)) for lead, piece in lines]


def alike(pieces, tokens):
    """How many of the first tokens Ollama said too. Its pieces may be of several."""
    said, expected = "".join(pieces).encode(), b""
    for k, (token, _) in enumerate(tokens):
        expected += token
        if not said.startswith(expected) or (not token and said != expected):
            return k
    return len(tokens)


def follow(name, path, prompt):
    """Ollama and llama.cpp side by side: tokens until they part, tokens alike, leads where they part."""
    said, left, n_alike, first, leads = prompt, TOKENS, 0, None, []
    while left > 0:
        pieces, tokens = generated(name, said, left), stock(path, said, left)
        k = alike(pieces, tokens)
        n_alike += k
        if k == len(tokens):
            break
        first = n_alike if first is None else first
        token, lead = tokens[k]
        leads.append(lead)
        text = b"".join(piece for piece, _ in tokens[:k])
        if lead >= TIE:
            rest = "".join(pieces).encode()[len(text) :][:20]
            print(f"    {name}: after {said[-20:].encode() + text}: {rest}, a stock llama.cpp {token}: leads by {lead:.3f}")
            break
        if not token:
            break
        try:
            said += (text + token).decode()
        except UnicodeDecodeError:
            # In the middle of a character.
            break
        left -= k + 1
    return (n_alike if first is None else first), n_alike, leads


def compare(name, path):
    """The row of the table, and what contradicts."""
    results = [follow(name, path, prompt) for prompt in PROMPTS]
    leads = [lead for *_, leads in results for lead in leads]
    row = (
        f"{sum(not leads for *_, leads in results)} of {len(PROMPTS)} texts equal",
        f"{'+'.join(str(first) for first, *_ in results)} tokens until they part",
        f"{sum(n for _, n, _ in results)} alike and {len(leads)} not",
        f"by at most {max(leads, default=0):.3f}",
    )
    print(f"    {name}: {', '.join(row)}", flush=True)
    return row, [lead for lead in leads if lead >= TIE]


def shown(name):
    (show,) = ask("show", model=name)
    kept = {key: show.get(key) for key in ("template", "system", "license", "messages", "capabilities")}
    # A map's order there is by chance.
    return kept | {"parameters": sorted(show.get("parameters", "").split("\n"))}


def create_parent(label, path):
    lines = [f"FROM {path}"]
    for command, texts in TEXTS.items():
        lines += [f"{command} {text}" for text in ([texts] if isinstance(texts, str) else texts)]
    (work / f"{label}.Modelfile").write_text("\n".join(lines) + "\n")
    done = run(ollama, "create", label, "-f", work / f"{label}.Modelfile")
    return check(f"{label}: Ollama takes the parent", done.returncode == 0, done.stderr[-300:])


def shorten(label, way, arguments):
    """The output, what was said, and whether Ollama took it."""
    folder = work / f"{label}-{way}"
    folder.mkdir()
    out = folder / "out.gguf"
    name = folder.name
    done = run(program, f"ollama:{label}", *arguments.split(), "-t", 1, "-o", out, "--ollama", name, "--json", folder / "json")
    made = done.returncode == 0 and json.loads((folder / "json").read_text())["output"]["ollama"]["created"]
    check(f"{name}: shortened, and made by `ollama create`", made, done.stderr[-600:])
    return out, done.stderr


def check_stored(label, name, out):
    check(f"{name}: template, parameters and texts are the parent's", shown(name) == shown(label), shown(name))
    for more in [], ["--weights"]:
        done = run(program, "verify", f"ollama:{name}", "--parent", f"ollama:{label}", *more)
        check(f"{name}: what Ollama stored is proven {' '.join(more)}", done.returncode == 0, done.stderr[-300:])
    done = run(program, "show", f"ollama:{name}", "--json", work / "show.json")
    stored = json.loads((work / "show.json").read_text())["model"]
    same = pathlib.Path(stored["path"]).read_bytes() == out.read_bytes()
    print(f"    what Ollama stored is {'the very file' if same else 'another file'}")
    listed = json.loads(run(program, "list", "--json", "-").stdout)["models"]
    found = [model for model in listed if model["name"] == f"ollama:{name}:latest"]
    holds = len(found) == 1 and (found[0]["block_count"], found[0]["error"]) == (stored["block_count"], None)
    check(f"{name}: it is listed", holds, found)


def make():
    """The models that Ollama has in the end: model, way, name, file, what the program said."""
    made = []
    for path in models:
        label = pathlib.Path(path).name.split("-")[0].lower()
        if not create_parent(label, path):
            continue
        made.append((label, "parent", label, path, ""))
        for way, arguments in WAYS.items():
            if way == "listed" and "--portable" not in run(program, path, *arguments.split(), "--dry-run", "-t", 1).stderr:
                continue
            out, said = shorten(label, way, arguments)
            if out.exists():
                made.append((label, way, f"{label}-{way}", out, said))
                check_stored(label, f"{label}-{way}", out)
    return made


def try_engine(server, made, default):
    """Goes on with texts by the engine that Ollama takes, and says which models ran on llama.cpp."""
    on_llama_cpp, differ = [], set()
    for label, way, name, path, said in made:
        try:
            row, wrong = compare(name, path)
        except urllib.error.HTTPError as error:
            check(f"{name}: runs", False, error.read().decode())
            continue
        engine = "Ollama's" if "--ollama-engine" in server.said().rsplit("starting runner", 1)[-1] else "llama.cpp's"
        if engine == "llama.cpp's":
            on_llama_cpp.append((label, way, name, path, said))
        table.append((label, way, engine, *row))
        if label in differ:
            counts["skipped"] += 1
            print(f"skipped: {name}: {engine} engine differs from a stock llama.cpp on the parent")
        elif way == "parent" and wrong and not default:
            differ.add(label)
        elif way == "listed":
            warned = "ignores" in said and "sliding_window_pattern" in said
            check(f"{name}: what {engine} engine computes otherwise was told of", warned and wrong, (warned, wrong))
        else:
            check(f"{name}: {engine} engine says what a stock llama.cpp says", not wrong, wrong)
    return on_llama_cpp


def main():
    with Server() as server:
        print(f"Ollama {server.version}")
        made = make()
        rest = try_engine(server, made, True)
    # What does not run on Ollama's own engine of itself.
    with Server(OLLAMA_NEW_ENGINE="1") as server:
        try_engine(server, rest, False)
    print()
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    for row in table:
        print("  ".join(word.ljust(width) for word, width in zip(row, widths)).rstrip())


main()
print(f"ollama: {counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
sys.exit(counts["failed"] > 0)
