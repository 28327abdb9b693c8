#!/usr/bin/env bash
# The records of one GPU that docs/reliability.md maps to, in about 15 minutes of an H200 and 16 cores.
#
#     tests/gpu/records.sh OUT [LANE ...]
#
# Lanes run beside each other, the steps of a lane one after the other; a step that fails or is late ends alone. The last
# thing said is a table of what OUT then holds. Lanes, the most wanted first:
#   race    compute-sanitizer's racecheck over a twin of every variant, then two streams at once for a minute
#   shapes  memcheck, synccheck, initcheck over the awkward shapes, through the operators too
#   shipped the same over the shipped functions
#   tests   pytest tests/gpu on the shipped package
#   specs   the same on the package of tests/specs
#   ptx80   the same tests on the library that has PTX of sm_80 alone
#   ptx90   the same on PTX of sm_90 alone
# The first three need compute-sanitizer, which comes with the CUDA toolkit. What is tested is built before, where compilers are:
#   python build.py --sm 90                                                   (generated/normgate)
#   python tests/gpu/twins.py                                                 (build/twins)
#   python build.py --spec tests/specs/NAME.yaml ... --out build/awkward --sm 90   (see AWKWARD below)
#   python build.py --spec tests/specs/NAME.yaml ... --out build/test-package --sm 90   (all of them)
#   python build.py --out build/ptx80 --sm 80 --ptx-only --ops normgate_ptx80
#   python tests/gpu/portable.py                                              (build/ptx90)
# of which a machine with the GPU needs DIR/normgate and build/twins/twins.json.
#
# PYTHON is the Python to run, NORMGATE_COMMIT what the records are to name where there is no .git.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# K = 8, 1032, 2048, 2688, 2880, 4096, 6144, 7168; N = 1, 7, 17, 32, 60, 258, 768, 896, 1024
AWKWARD="smallest odd-7 odd-17 odd-17-rounded odd-258 fp16-a gate-bias qwen2-moe-a2.7b experts-768 experts-896 routed-1024"
if [ "${1:-}" = --awkward-specs ]; then
  for name in $AWKWARD; do printf -- '--spec tests/specs/%s.yaml ' "$name"; done
  exit 0
fi
[ $# -ge 1 ] || { sed -n '2,/^set -u/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 2; }

out="$1"; shift
lanes="${*:-race shapes shipped tests specs ptx80 ptx90}"
python="${PYTHON:-python3}"
mkdir -p "$out/logs"
export PYTHONPATH="generated:.${PYTHONPATH:+:$PYTHONPATH}" PATH="$PATH:/usr/local/cuda/bin"

# step NAME SECONDS COMMAND...: says how it went; its output goes to a file. SIGINT lets pytest write its record.
step() {
  local name="$1" seconds="$2" started=$SECONDS code=0
  shift 2
  timeout --signal=INT --kill-after=20 "$seconds" "$@" >"$out/logs/$name.log" 2>&1 || code=$?
  echo "$name: exit code $code, $((SECONDS - started)) s: $(tail -n 1 "$out/logs/$name.log" | cut -c1-160)"
}
sanitize() { local name="$1" seconds="$2"; shift 2; step "$name" "$((seconds + 60))" "$python" tests/gpu/sanitize.py --seconds "$seconds" --record "$out/$name.json" "$@"; }
gpu_tests() { local name="$1" seconds="$2"; shift 2; NORMGATE_RECORD="$out/$name.json" step "$name" "$seconds" "$python" -m pytest tests/gpu -q -p no:cacheprovider "$@"; }

race() {
  sanitize h200-racecheck 330 --tools racecheck --shares 6 --twins build/twins
  NORMGATE_SOAK_SECONDS=62 gpu_tests h200-soak-streams 120 -k "test_two_streams_at_once and (7168x384 and add_norm_a)"
}
shapes() {
  NORMGATE_TEST_PACKAGES=build/awkward/normgate \
    sanitize h200-sanitize-shapes 150 --tools memcheck,synccheck,initcheck --shares 3 --operators
}
shipped() { sanitize h200-sanitize 400 --tools memcheck,synccheck,initcheck --shares 3 --operators; }
tests() { gpu_tests h200-tests 500; }
specs() { NORMGATE_TEST_PACKAGES=build/test-package/normgate gpu_tests h200-tests-shapes 500; }
ptx80() { NORMGATE_TEST_PACKAGES=build/ptx80/normgate gpu_tests h200-tests-ptx80 500; }
ptx90() { NORMGATE_TEST_PACKAGES=build/ptx90/normgate gpu_tests h200-tests-ptx90 500; }

for lane in $lanes; do "$lane" & done
wait
"$python" -m tests.reliability --show "$out"
