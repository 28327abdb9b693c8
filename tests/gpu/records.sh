#!/usr/bin/env bash
# The records of a GPU that docs/reliability.md maps to, in about 20 minutes of two H200s and 32 cores.
#
#     tests/gpu/records.sh OUT [LANE ...]
#
# Lanes run beside each other, on all GPUs that there are, the steps of a lane one after the other; a step that fails or is
# late ends alone. The last thing said is a table of what OUT then holds. Lanes, the most wanted first:
#   race    compute-sanitizer's racecheck over a twin of every variant
#   paths   all four tools over the stages of paths that nothing shipped has: racecheck over twins
#   shapes  the same over the awkward shapes
#   shipped memcheck, synccheck, initcheck over the shipped functions, through the operators too
#   tests   pytest tests/gpu on the shipped package
#   specs   the same on the package of tests/specs
#   models  the same on the package of all 82 models, without what several launches share
#   random  the same on a package of specs drawn at random, without the 100,000 rows
#   soak    two streams at once for a minute, then 10^5 replays of a graph of each shipped path
#   ptx80   the tests on the library that has PTX of sm_80 alone
#   ptx90   the same on PTX of sm_90 alone
# The first four need compute-sanitizer, which comes with the CUDA toolkit. What is tested is built before, where
# compilers are, by `tests/gpu/records.sh --build [LANE ...]`, into generated/ and build/. A machine with the GPU needs of
# each package its folder, and build/twins*/twins.json.
#
# PYTHON is the Python to run, NORMGATE_COMMIT what the records are to name where there is no .git, STEP_SECONDS the most that
# a step may take: a sanitizer then says what it left, a test run what had passed.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# K = 8, 1032, 2048, 2688, 2880, 4096, 6144, 7168; N = 1, 7, 17, 32, 60, 258, 768, 896, 1024
AWKWARD="smallest odd-7 odd-17 odd-17-rounded odd-258 fp16-a gate-bias qwen2-moe-a2.7b experts-768 experts-896 routed-1024"
# Scores, groups, adds, scales and hand-overs that no shipped model has
ROUTED="add-norm-gate deepseek-v2 deepseek-v4-flash-vision ernie-4.5 gemma-4 granite-4-h-small grok-1 images-in-groups
  llama-4-maverick minimax-text-01 nemotron-3-super qwen2-moe-a2.7b routed-1024 routed-258 routed-7
  routed-gate-alone routed-rounded softcap-softmax"
LANES="race paths shapes shipped tests specs models random soak ptx80 ptx90"
python="${PYTHON:-python3}"
files() { for name in $1; do printf 'tests/specs/%s.yaml ' "$name"; done; }

build() {
  case "$1" in
    race) $python tests/gpu/twins.py ;;
    paths) $python tests/gpu/twins.py --paths --one-of-a-family --out build/twins-paths --spec $(files "$ROUTED") ;;
    shapes)
      $python tests/gpu/twins.py --one-of-a-family --out build/twins-shapes --spec $(files "$AWKWARD")
      $python build.py $(printf -- '--spec %s ' $(files "$AWKWARD")) --out build/awkward --sm 90 ;;
    shipped | tests | soak) $python build.py --sm 90 ;;
    specs) $python build.py $(printf -- '--spec %s ' tests/specs/*.yaml) --out build/test-package --sm 90 ;;
    models) $python -m tests.models ;;
    random)
      $python tests/gpu/random_specs.py --count 40 build/random/specs
      $python build.py $(printf -- '--spec %s ' build/random/specs/*.yaml) --out build/random --sm 90 ;;
    ptx80) $python build.py --out build/ptx80 --sm 80 --ptx-only --ops normgate_ptx80 ;;
    ptx90) $python tests/gpu/portable.py ;;
  esac
}
if [ "${1:-}" = --build ]; then
  shift
  for lane in ${*:-$LANES}; do build "$lane" || exit; done
  exit 0
fi
[ $# -ge 1 ] || { sed -n '2,/^set -u/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 2; }

out="$1"; shift
mkdir -p "$out/logs"
export PYTHONPATH="generated:.${PYTHONPATH:+:$PYTHONPATH}" PATH="$PATH:/usr/local/cuda/bin"
gpus="$(nvidia-smi --list-gpus | wc -l)"
lanes="${*:-$LANES}"
seconds="${STEP_SECONDS:-3600}"
workers=$(($(nproc) / $(wc -w <<<"$lanes") + 1))

# step NAME COMMAND...: says how it went; its output goes to a file. SIGINT lets pytest write its record.
step() {
  local name="$1" started=$SECONDS code=0
  shift
  timeout --signal=INT --kill-after=20 "$((seconds + 60))" "$@" >"$out/logs/$name.log" 2>&1 || code=$?
  echo "$name: exit code $code, $((SECONDS - started)) s: $(tail -n 1 "$out/logs/$name.log" | cut -c1-160)"
}
# Sanitizers and pytest use all GPUs, pytest by workers of its own for each lane.
sanitize() {
  local name="$1"; shift
  step "$name" "$python" tests/gpu/sanitize.py --seconds "$seconds" --record "$out/$name.json" "$@"
}
gpu_tests() {
  local name="$1"; shift
  NORMGATE_RECORD="$out/$name.json" CUDA_VISIBLE_DEVICES="$(seq -s, 0 $((gpus - 1)))" \
    step "$name" "$python" -m pytest tests/gpu -q -p no:cacheprovider -n "$workers" "$@"
}
race_over() { sanitize "$1" --tools racecheck --shares "$((6 * gpus))" --twins "$2"; }
THREE="memcheck,synccheck,initcheck"

race() { race_over h200-racecheck build/twins; }
paths() {
  NORMGATE_TEST_PACKAGES=build/test-package/normgate sanitize h200-sanitize-unshipped --tools $THREE --shares 3 --paths &
  race_over h200-racecheck-unshipped build/twins-paths
  wait
}
shapes() {
  NORMGATE_TEST_PACKAGES=build/awkward/normgate sanitize h200-sanitize-shapes --tools $THREE --shares 3 --operators &
  race_over h200-racecheck-shapes build/twins-shapes
  wait
}
shipped() { sanitize h200-sanitize --tools $THREE --shares 3 --operators; }
tests() { gpu_tests h200-tests; }
specs() { NORMGATE_TEST_PACKAGES=build/test-package/normgate gpu_tests h200-tests-shapes; }
models() {
  NORMGATE_TEST_PACKAGES=build/models/normgate gpu_tests h200-tests-models -k "not test_handover and not test_drawn_rows"
}
random() {
  NORMGATE_TEST_PACKAGES=build/random/normgate \
    gpu_tests h200-tests-random -k "not test_random_rows_through_the_dispatch"
}
soak() {
  NORMGATE_SOAK_SECONDS=62 gpu_tests h200-soak-streams -k "test_two_streams_at_once and 7168x384 and add_norm_a"
  NORMGATE_SOAK=1 gpu_tests h200-soak -k test_graph_replays_follow_changing_inputs
}
ptx80() { NORMGATE_TEST_PACKAGES=build/ptx80/normgate gpu_tests h200-tests-ptx80; }
ptx90() { NORMGATE_TEST_PACKAGES=build/ptx90/normgate gpu_tests h200-tests-ptx90; }

for lane in $lanes; do "$lane" & done
wait
"$python" -m tests.reliability --show "$out"
