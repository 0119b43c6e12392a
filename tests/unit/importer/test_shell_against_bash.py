"""Fragments of launch scripts: our reading is what bash passes to python3, or it says what it cannot tell."""

import subprocess
from pathlib import Path

import pytest

from hybridrl.errors import ConfigError
from hybridrl.importer.overrides import Launch, read
from hybridrl.importer.shell import Command, commands

CALL = "python3 -m verl.trainer.main_ppo"
STUB = '#!/bin/bash\n[ -e "$PASSED" ] || printf \'%s\\0\' "$@" > "$PASSED"\n'

EQUAL = [
    # keys of every form
    f"{CALL} a.b=1 max_turns=3 do_search=true",
    f"{CALL} a.b=1 +c.d=2 ++e=3 +f=4 ~g.h ~i=5",
    f"{CALL} --config-name=ppo_megatron_trainer a.b=1",
    f"{CALL} --config-path=/c --config-name mine a.b=1",
    f"{CALL} a.b=1 'hydra/job_logging=none' group@a.c=x",
    f"{CALL} a.b=\"['x','y']\" a.c='[\"x\"]' a.d=[x,y] a.e=",
    f"{CALL} a.b=1 > log 2>&1",
    f"{CALL} a.b=1 2>&1 | tee log",
    f"{CALL} a.b=1 &> log &",
    f"{CALL} \\\n  a.b=1 \\\n  a.c=2",
    f"{CALL} a.b=1 # a.c=2",
    f"{CALL} a.b=$'x y' a.c=$\"z\" a.d=x\\ y",
    f"{CALL} a.b=~/x max=~/y",
    # splitting
    f"ARGS='a.b=1 a.c=2'\n{CALL} $ARGS",
    f'ARGS="\n  a.b=1 \\\n  a.c=2"\n{CALL} $ARGS a.d=3',
    f"ARGS='a.b=1 a.c=2'\n{CALL} \"$ARGS\"",
    f"ARGS=\nARGS+=' a.b=1'\nARGS+=' a.c=2'\n{CALL} $ARGS",
    f"EXTRA+=' a.b=1 a.c=2'\n{CALL} $EXTRA",
    f"X=\n{CALL} a.b=1 $X ${{X}} a.c=2",
    f"X=\n{CALL} a.b=1 \"$X\" a.c=2",
    f"X=' 1 2 '\n{CALL} a.b=$X a.c=3",
    f"CMD='{CALL} a.b=1'\n$CMD a.c=2",
    f"V='b=1 a.c'\n{CALL} a.$V=2",
    # arrays
    f'A=(a.b=1 "a.c=x y")\n{CALL} "${{A[@]}}" a.d=2',
    f'A=(a.b=1 "a.c=x y")\n{CALL} ${{A[@]}}',
    f'A=(a.b=1 "a.c=x y")\n{CALL} "${{A[*]}}"',
    f'A=()\n{CALL} a.b=1 "${{A[@]}}" ${{A[@]}}',
    f'A=(a.b=1)\nA+=(a.c=2 a.d=3)\n{CALL} "${{A[@]}}"',
    f'A=(1 2)\n{CALL} a.b=${{A[1]}} a.c=$A',
    f'A=(1 2)\n{CALL} "a.b=${{A[@]}}z"',
    f'A=(\n  a.b=1 # first\n  a.c=2\n)\n{CALL} "${{A[@]}}"',
    # defaults
    f"BS=\n{CALL} a.b=${{BS:-512}}",
    f"BS=\n{CALL} a.b=${{BS-512}}",
    f"BS=8\n{CALL} a.b=${{BS:-512}} a.c=${{BS-512}}",
    f"unset BS\n{CALL} a.b=${{BS-512}} a.c=${{BS:-1}}",
    f"BS=8\nunset BS\n{CALL} a.b=${{BS:-512}} a.c=$BS",
    f"BS=8\n{CALL} ${{BS:+a.b=1}} ${{BS:+a.c=$BS}}",
    f"BS=\n{CALL} ${{BS:+a.b=1}} a.c=${{BS+2}}",
    f"BS=8\n{CALL} a.x=1 ${{BS:+a.b=1 a.c=2}}",
    f"{CALL} a.b=${{BS:=512}} a.c=$BS",
    f": ${{BS:=512}}\n{CALL} a.b=$BS",
    f"{CALL} a.x=1 ${{NONE:-a.b=1 a.c=2}} \"${{NONE:-d 'e'}}\"",
    f'{CALL} a.b="${{N:-"x y"}}" a.c=${{M:-${{N:-z}}}}',
    f"{CALL} a.b=${{1:-first}} a.c=${{2:-second}}",
    # arithmetic
    f"A=7\n{CALL} a.b=$((A * 1024)) a.c=$((-A / 2)) a.d=$((-A % 4)) a.e=$(($A * (2 + 1)))",
    f"A=1+2\n{CALL} a.b=$((A * 2)) a.c=$(($A * 2))",
    # text that is not executed
    f"cat > old.sh <<'EOF'\n# it's old\n{CALL} a.b=0\nEOF\n{CALL} a.b=1",
    f"cat > note <<EOF\nit's only a note\nEOF\n{CALL} a.b=1",
    f"cat <<-EOF > note\n\tit's (a note\n\tEOF\n{CALL} a.b=1",
    f"cat <<A > one; cat <<B > two\nit's\nA\n{CALL} a.b=0\nB\n{CALL} a.b=1",
    f"cat <<< \"it's\" > note\n{CALL} a.b=1",
    f"old() {{\n  {CALL} a.b=0\n}}\n{CALL} a.b=1",
    f"function old {{ BS=0; }}\nBS=1\n{CALL} a.b=$BS",
    f"echo {CALL} a.b=0\n{CALL} a.b=1",
    f": <<'END'\nBS=3\n{CALL} a.b=0\nEND\n{CALL} a.b=1",
    f"if false; then\n  {CALL} a.b=0\nfi\n{CALL} a.b=1",
    f"exit_early() {{ exit 0; }}\n{CALL} a.b=1\nexit 0\n{CALL} a.b=2",
    # functions that are called
    f'go() {{ {CALL} a.b=$1 "${{@}}"; }}\ngo 1 a.c=2',
    f'main() {{ BS=${{1:-8}}; {CALL} a.b=$BS; }}\nmain "$@"',
    f"set_bs() {{ BS=8; }}\nBS=1\nset_bs\n{CALL} a.b=$BS",
    f"f() {{ local BS=8; }}\nBS=1\nf\n{CALL} a.b=$BS",
    f'go() {{ shift; {CALL} "$@"; }}\ngo x a.b=1 a.c=2',
    f'set -- a.b=1 a.c=2\n{CALL} "$@" a.d=$1',
    f'set -- a.b=1 a.c=2\nshift 3\n{CALL} a.x=1 "$@"',
    f"go() {{ {CALL} a.b=$BS a.c=$N; }}\nBS=1\nN=1\nBS=2 go $BS",
    f"go() {{ {CALL} a.b=$BS a.c=${{N:-3}} a.d=$1; }}\nf() {{ :; }}\nBS=1\nBS=2 N=4 f\nBS=5 go $BS",
    f"BS=1\nBS=2 eval 'N=$BS'\n{CALL} a.b=$BS a.c=$N",
    # conditions that the script decides
    f"BS=1\n[ -z \"$BS\" ] && BS=2\n{CALL} a.b=$BS",
    f"BS=\n[[ -z $BS ]] && BS=2\n{CALL} a.b=$BS",
    f"BS=1\nif [ \"$BS\" = 1 ]; then N=8; elif [ \"$BS\" = 2 ]; then N=9; else N=10; fi\n{CALL} a.b=$N",
    f"BS=2\nif [[ $BS == 1 ]]; then N=8; elif [[ $BS -ge 2 ]]; then N=9; else N=10; fi\n{CALL} a.b=$N",
    f"M=big\ncase $M in small) N=1 ;; big|large) N=2 ;; *) N=3 ;; esac\n{CALL} a.b=$N",
    f"BS=8 && N=2\n{CALL} a.b=$BS a.c=$N",
    f"BS=8 || N=2\nN=1\n{CALL} a.b=$BS a.c=$N",
    f"BS=1\ntrue || BS=2\nfalse && BS=3\n{CALL} a.b=$BS",
    f"BS=1\n(BS=2; BS=3)\n{CALL} a.b=$BS",
    f"BS=1\necho 2 | read BS\n{CALL} a.b=$BS",
    f"BS=1\n{{ BS=2; }}\n{CALL} a.b=$BS",
    f"[ -f nothing ] || exit_code=1\n{CALL} a.b=1",
    f"if [ -f nothing ]; then BS=2; exit 1; fi\nBS=1\n{CALL} a.b=$BS",
    f"cd /tmp && {CALL} a.b=$PWD/x",
    f"CUDA=1 {CALL} a.b=1",
    f"export BS=8 N=2\nreadonly K=3\n{CALL} a.b=$BS$N$K",
    f"BS=1\nexport BS=8 N=$BS\n{CALL} a.b=$BS a.c=$N",
    f"eval \"BS=8\"\nCMD='{CALL} a.b=$BS'\neval $CMD",
    f"exec {CALL} a.b=1\n{CALL} a.b=2",
    f"exec > log 2>&1\n{CALL} a.b=1",
    f"exec 3>&1\n{CALL} a.b=1",
    # local variables
    f"BS=1\nf() {{ local BS; {CALL} a.b=$BS a.c=${{BS:-2}}; }}\nf",
    f"BS=1\nf() {{ local BS=$BS$BS; {CALL} a.b=$BS; }}\nf",
    f"BS=1\nf() {{ local BS=8 N=$BS; {CALL} a.b=$BS a.c=$N; }}\nf",
    f"BS=1\nf() {{ declare BS=8; declare -g N=2; }}\nf\n{CALL} a.b=$BS a.c=$N",
    f'f() {{ {CALL} a.b=$1; }}\nf 1 "$@"',
    f'export "BS=8"\n{CALL} a.b=$BS',
    f"P='a*'\nBS=1\n[[ abc == \"$P\" ]] && BS=2\n[[ -n $P ]] && N=3\n{CALL} a.b=$BS a.c=$N",
]  # fmt: skip
"""Scripts that we read as bash does, to the word."""

REFUSED = [
    (f"if [ -f nothing ]; then BS=8; else BS=512; fi\n{CALL} a.b=$BS", "8 or 512, by the if of line 1"),
    (f'if [ "$DEBUG" = 1 ]; then BS=8; else BS=512; fi\n{CALL} a.b=$BS', "8 or 512, by the if"),
    (f"BS=512\n[ -f nothing ] && BS=8\n{CALL} a.b=$BS", "by the && of line 2"),
    (f"BS=512\n[ -d / ] || BS=8\n{CALL} a.b=$BS", "by the || of line 2"),
    (f"BS=512\nls / > /dev/null && BS=8\n{CALL} a.b=$BS", "by the && of line 2"),
    (f"BS=512\n! true || BS=8\n{CALL} a.b=$BS", "by the || of line 2"),
    (f"BS=512\ncase $1 in x) BS=8 ;; esac\n{CALL} a.b=$BS", "8 or 512, by the case of line 2"),
    (f"BS=512\nwhile [ $# -gt 0 ]; do BS=$1; shift; done\n{CALL} a.b=$BS", "the while of line 2"),
    (f"BS=512\nwhile [ -f nothing ]; do BS=8; done\n{CALL} a.b=$BS", "the while of line 2"),
    (f"BS=512\nuntil [ -d / ]; do BS=8; done\n{CALL} a.b=$BS", "the until of line 2"),
    (f"BS=1\nfor i in 1 2; do if [ $i = 2 ]; then BS=9; fi; done\n{CALL} a.b=$BS", "the for of line 2"),
    (f"for BS in 8 16; do {CALL} a.b=$BS; done", "hangs on the for of line 1"),
    (f"if [ -d / ]; then {CALL} a.b=1; else {CALL} a.b=2; fi", "hangs on the if of line 1"),
    (f"[ -d / ] && {CALL} a.b=1", "hangs on the && of line 1"),
    (f"BS=1\n(( BS = 8 ))\n{CALL} a.b=$BS", "set by (( BS = 8 )) of line 2"),
    (f"BS=1\n((BS++))\n{CALL} a.b=$BS", "set by ((BS++)) of line 2"),
    (f"BS=1\nlet BS=8\n{CALL} a.b=$BS", "set by let of line 2"),
    (f"BS=1\nread BS <<< 8\n{CALL} a.b=$BS", "set by read of line 2"),
    (f"printf -v BS %d 8\n{CALL} a.b=$BS", "set by printf of line 1"),
    (f"A=(a.b=1)\nA[0]=a.b=2\n{CALL} a.x=1 \"${{A[@]}}\"", "set by places on line 2"),
    (f"declare -A A\n{CALL} a.b=${{A[x]}}", "${A[x]}"),
    (f"declare -i BS\nBS=2+3\n{CALL} a.b=$BS", "declared with -i"),
    (f"BS=$(date)\n{CALL} a.b=${{BS:-512}} a.c=$BS", "$(date)"),
    (f"{CALL} a.x=1 $ARGS", "$ARGS"),
    (f"{CALL} a.x=1 ${{RESUME:+trainer.resume_mode=auto}}", "${RESUME:+trainer.resume_mode=auto}"),
    (f"{CALL} a.b={{x,y}}", "the braces {x,y}"),
    (f"{CALL} a.b=$#", "$#"),
    (f"{CALL} a.b=$[1+1]", "$["),
    (f"BS=1\n[[ 010 -eq 8 ]] && BS=2\n{CALL} a.b=$BS", "by the && of line 2"),
    (f"BS=a.b\n{CALL} a.b=${{BS%.*}}", "${BS%.*}"),
    (f"IFS=,\nX=1,2\n{CALL} a.x=1 $X", "how IFS splits it"),
    (f"{CALL} a.b=1 \"$@\"", "started"),
    (f"ARGS=(a.b=1 \"$@\")\n{CALL} \"${{ARGS[@]}}\"", "started"),
    (f"echo BS=8 > env.sh\nBS=1\nsource ./env.sh\n{CALL} a.b=$BS", "it was not read"),
    (f"echo BS=8 > env.sh\nBS=1\n. ./env.sh\n{CALL} a.b=$BS", "it was not read"),
    (f"BS=1\neval \"$(echo BS=8)\"\n{CALL} a.b=$BS", "it was not read"),
    (f"{CALL} a.b='x", "is not closed"),
    (f"if true; then\n{CALL} a.b=1", "stands where fi has to"),
    (f"{CALL} a.b=1\n{CALL} a.b=2", "the first was taken"),
    (f"{CALL} a.b=$((2 ** 3)) a.c=$((1 ? 2 : 3))", "$((2 ** 3))"),
    (f"f() {{ BS=1; }}\n[ -d / ] || f() {{ BS=2; }}\nBS=0\nf\n{CALL} a.b=$BS", "f of line 4 may"),
    (f"cd ..\n{CALL} a.b=$PWD", "$PWD after cd"),
    (f"f() {{ if [ -d / ]; then BS=1; return; fi; BS=2; }}\nf\n{CALL} a.b=$BS", "1 or 2, by the f of line 2"),
    (f'export "A=$(date)"\n{CALL} a.b=$A', "$(date)"),
    (f'export "A=$@"\n{CALL} a.b=$A', "started"),
    (f'A=1\nexport "A+=2"\n{CALL} a.b=$A', "set by A+= on line 2"),
    (f"f() {{ local X=1; }}\nf\n{CALL} a.b=$X", "$X"),
    (f"f() {{ local X=$X; {CALL} a.b=$X; }}\nf", "$X"),
    (f'set -- "$@" a.b=1\n{CALL} "$@"', "started"),
    (f'set -- a.b=1 "$@"\n{CALL} a.b=$2 a.c=$3', "started"),
    (f'set -- "$@" a.b=1\nshift\n{CALL} "$@"', "shift 1"),
    (f'f() {{ {CALL} a.b=1 "$@"; }}\nf a.c=1 "$@"', "started"),
    (f"set -- a.b=1 a.c=2\nwhile [ -f nothing ]; do shift; done\n{CALL} \"$@\"", "the while of line 2"),
    (f"BS=1\nfor a in \"$@\"; do BS=$a; done\n{CALL} a.b=$BS", "the for of line 2"),
    (f"P='a*'\nBS=1\n[[ abc == $P ]] && BS=2\n{CALL} a.b=$BS", "by the && of line 3"),
    (f"BS=1\n[[ abc == @(abc|d) ]] && BS=2\n{CALL} a.b=$BS", "by the && of line 2"),
]  # fmt: skip
"""Scripts of which a part is only known to a run, and what we say of it."""


def launched(script: str) -> Command:
    return next(one for one in commands(script, {"HOME": "/home/me"}) if is_launch(one))


def is_launch(command: Command) -> bool:
    return command.words[0].text != "echo" and any(one.text.endswith("main_ppo") for one in command.words)


def from_bash(script: str, folder: Path) -> list[str]:
    """The words that bash passes to the first python3."""
    python3 = folder / "bin/python3"
    python3.parent.mkdir()
    python3.write_text(STUB)
    python3.chmod(0o755)
    environment = {
        "HOME": "/home/me",
        "PATH": f"{python3.parent}:/usr/bin:/bin",
        "PASSED": f"{folder}/passed",
    }
    subprocess.run(
        ["bash", "-c", f"{script}\nwait"], cwd=folder, env=environment, check=False, capture_output=True
    )
    return (folder / "passed").read_text().split("\0")[:-1]


def launch(script: str, folder: Path) -> Launch:
    path = folder / "run.sh"
    path.write_text(script)
    return read(path, {"HOME": "/home/me"})


def test_the_table_is_of_some_size() -> None:
    assert len(set(EQUAL)) + len({script for script, _ in REFUSED}) >= 110


@pytest.mark.parametrize("script", EQUAL)
def test_words_are_those_that_bash_passes(script: str, tmp_path: Path) -> None:
    words = launched(script).words
    assert not [word for word in words if word.unknown]
    at = next(i for i, word in enumerate(words) if word.text == "python3")
    assert [word.text for word in words[at + 1 :]] == from_bash(script, tmp_path)


@pytest.mark.parametrize(("script", "reason"), REFUSED)
def test_what_only_a_run_could_tell_is_said(script: str, reason: str, tmp_path: Path) -> None:
    try:
        found = launch(script, tmp_path)
    except ConfigError as error:
        assert reason in str(error)
        return
    said = [one.unknown for one in found.overrides] + [one.why for one in found.remarks]
    assert reason in "\n".join(said)


@pytest.mark.parametrize("script", EQUAL)
def test_every_word_that_bash_passes_is_accounted_for(script: str, tmp_path: Path) -> None:
    found = launch(script, tmp_path)
    listed = [one.text for one in found.overrides] + [one.source for one in found.remarks]
    named = {"--config-name", found.config_name, f"--config-name={found.config_name}"}
    for word in from_bash(script, tmp_path)[2:]:
        assert word.lstrip("+") in listed or word in listed or word in named, word
