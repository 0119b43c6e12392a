# Sourced by install and install-vllm: `stage` shows a stage in a line, `environment` makes the environment in $venv.
# Needs: venv, python. pip's own words go to $venv/setup.log and are shown when it fails.
began=$SECONDS

fail() {
    printf '\nerror: %s\n' "$1" >&2
    exit 2
}

took() {
    local s=$((SECONDS - $1))
    if [ $s -ge 60 ]; then printf '%d min %d s' $((s / 60)) $((s % 60)); else printf '%d s' $s; fi
}

# stage LABEL COMMAND...: a dot every three seconds while the command runs
stage() {
    local label=$1 start=$SECONDS
    shift
    printf '          %s ' "$label"
    echo "== $label" >>"$log"
    "$@" >>"$log" 2>&1 &
    local job=$!
    while kill -0 $job 2>/dev/null; do
        sleep 1
        if (((SECONDS - start) % 3 == 0)); then printf '.'; fi
    done
    if ! wait $job; then
        printf ' failed\n\n' >&2
        grep -iE '^(error|fatal)' "$log" >&2 || tail -n 20 "$log" >&2
        fail "setup stopped at \"$label\"; everything that was said is in $log"
    fi
    printf ' %s\n' "$(took $start)"
}

# environment [NAME]: an empty environment of the Python that the pinned packages are for
environment() {
    command -v "$python" >/dev/null || fail "there is no $python; install Python 3.12 or 3.11, or name it: make setup PYTHON=/path/to/python3.12"
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    [[ $version = 3.1[12] ]] || fail "the pinned packages are for Python 3.12 and 3.11, $python is $version: make setup PYTHON=/path/to/python3.12"
    "$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$python cannot make environments; install its venv package"

    # An environment of another Python goes: the packages of both would lie in it
    if [ -e "$venv/pyvenv.cfg" ] && [ ! -d "$venv/lib/python$version" ]; then rm -rf "$venv"; fi
    printf 'setup     Python %s environment%s in %s\n' "$version" "${1:+ $1}" "$venv"
    mkdir -p "$venv"
    log=$venv/setup.log
    : >"$log"
    # --no-compile: compiling every module of these packages takes longer than the download; the last stage compiles
    # the few that a run imports
    pip=("$venv/bin/python" -m pip --disable-pip-version-check install --no-input --no-compile)
    stage "environment" "$python" -m venv "$venv"
    stage "pip" "${pip[@]}" --upgrade pip
}
