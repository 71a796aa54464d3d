#!/usr/bin/env bash
# Everything that only a GPU can show: bash benchmarks/run_gpu.sh [FOLDER] [STAGE...]
#
# FOLDER (gpu-results): gets log/*.txt, results/*.jsonl, tables.md and gpu_choice.json.
# STAGE: build, test, sanitize, bench; these four when none is named, for the operators. e2e is sampling at Stable
# Diffusion 1.5's size, beside the published program, and the profile of a step: in a second run, "FOLDER e2e" after
# build. Each stops at its time limit, under 9 minutes a run, and can be run alone after build.
#
# Needs a GPU, torch, triton, nvcc, cmake, ninja, pybind11 and pytest (e2e: psutil); no network, no other package. The
# kernels are built for this GPU alone, in FOLDER/build; nothing is installed. Variables: PYTHON (python3),
# SECONDS_PER_CASE (0.15), TINY (e2e with a small network).
set -uo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
python=$(command -v "${PYTHON:-python3}") || { echo "run_gpu.sh: no ${PYTHON:-python3}"; exit 2; }
mkdir -p "${1:-gpu-results}" || exit 2
out=$(cd "${1:-gpu-results}" && pwd)
shift || true
stages=("$@")
[ ${#stages[@]} -gt 0 ] || stages=(build test sanitize bench)

for tool in /usr/local/cuda/bin /usr/local/cuda/compute-sanitizer; do
  [ -d "$tool" ] && PATH="$PATH:$tool"
done
capability=$("$python" -c '
import torch
print("".join(map(str, torch.cuda.get_device_capability())) if torch.cuda.is_available() else "")' 2>/dev/null)
if [ -z "$capability" ]; then
  echo "run_gpu.sh: no CUDA device that torch can use; nothing was built, tested or measured"
  exit 3
fi

export PYTHONPATH="$out/site:$root"
export VIDSMOOTH_COMMIT=${VIDSMOOTH_COMMIT:-$(git -C "$root" rev-parse --short HEAD 2>/dev/null || echo unknown)}
mkdir -p "$out/log" "$out/results"
cd "$out" || exit 2 # not the checkout: its vidsmooth_fast has no compiled kernels in it
failed=()

# run NAME LIMIT COMMAND...: into a log, with a time limit in seconds
run() {
  local name=$1 limit=$2 begin=$SECONDS status
  shift 2
  timeout -k 5 "$limit" "$@" >"$out/log/$name.txt" 2>&1
  status=$?
  [ $status -eq 0 ] || failed+=("$name")
  echo "$name: $([ $status -eq 0 ] && echo done || echo "FAILED ($status)") in $((SECONDS - begin)) s, log/$name.txt"
  [ $status -eq 0 ] || tail -n 15 "$out/log/$name.txt"
  return $status
}

build() {
  run configure 30 cmake -S "$root" -B "$out/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DVIDSMOOTH_CUDA=ON \
    "-DCMAKE_CUDA_ARCHITECTURES=$capability-real" "-DPython_EXECUTABLE=$python" \
    "-Dpybind11_DIR=$("$python" -m pybind11 --cmakedir)" || return
  run build 100 cmake --build "$out/build" || return
  rm -rf "$out/site"
  mkdir -p "$out/site"
  # The checkout may be read-only, and its copy is written to.
  cp -r --no-preserve=mode "$root/vidsmooth_fast" "$out/site/vidsmooth_fast"
  cp -r --no-preserve=mode "$root/triton_kernels" "$out/site/vidsmooth_fast/triton_kernels"
  run install 10 cmake --install "$out/build" --prefix "$out/site" || return
  # An installation for development comes before PYTHONPATH, and would be tested in place of this one.
  run import 10 "$python" -c '
import sys, vidsmooth_fast._C as built
print(built.__file__, built.cuda)
sys.exit(not (built.cuda and built.__file__.startswith(sys.argv[1])))' "$out/site"
}

# The command that runs the device tests; paths of a checkout without spaces.
device_tests() {
  echo "$python" -m pytest -p no:cacheprovider -q --rootdir "$root" -c "$root/pyproject.toml" "$root/python_tests/device"
}

# In four processes: most of the time is Triton's compiler's.
test_stage() {
  local -A parts=([cuda]="cuda" [triton_float32]="triton and float32" [triton_bfloat16]="triton and bfloat16"
    [triton_rest]="triton and not float32 and not bfloat16")
  local name pids=()
  for name in "${!parts[@]}"; do
    # shellcheck disable=SC2046
    run "test_$name" 140 $(device_tests) -k "${parts[$name]}" &
    pids+=($!)
  done
  for name in "${pids[@]}"; do wait "$name" || failed+=(test); done
}

sanitize() {
  if ! command -v compute-sanitizer >/dev/null; then
    echo "sanitize: skipped, there is no compute-sanitizer"
    return
  fi
  # Without PyTorch's own pool of memory: in it, what lies beyond a tensor is no error.
  # shellcheck disable=SC2046
  run sanitize 50 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 1 --target-processes all $(device_tests) -x \
    -k "test_against_the_reference and cuda and (odd or windows or bfloat16) and not large"
}

bench() {
  local name left limit
  local names=(temporal_attention noise_constraint inversion_blend window_merge denoise_step group_norm_silu
    sparse_causal_attention)
  local remaining=${#names[@]}
  for name in "${names[@]}"; do
    # Up to twice its share of what the other stages left of 9 minutes: mostly compilers' time, unlike by operator.
    left=$((515 - SECONDS)) limit=$((2 * (515 - SECONDS) / remaining))
    remaining=$((remaining - 1))
    [ $left -ge 10 ] || { echo "bench $name: skipped, the time is used up"; continue; }
    rm -f "$out/results/$name.jsonl"
    run "bench_$name" $((left < limit ? left : limit)) "$python" "$root/benchmarks/$name.py" "${SECONDS_PER_CASE:-0.15}" \
      --device cuda --results "$out/results"
  done
  run choice 10 "$python" "$root/benchmarks/_gpu_choice.py" "$out/results" "$out/gpu_choice.json"
  run tables 10 "$python" "$root/benchmarks/_gpu_report.py" "$out/results" "$out/tables.md"
  [ ! -s "$out/tables.md" ] || cat "$out/tables.md"
}

# Rows first that need no compiler.
e2e() {
  local part left limit tiny=() size=()
  [ -z "${TINY:-}" ] || { tiny=(--tiny); size=(--size tiny --pixels 64); }
  for part in ours published picture profile published-compiled; do
    left=$((515 - SECONDS))
    case $part in ours | published-compiled) limit=230 ;; *) limit=90 ;; esac
    [ $left -ge 10 ] || { echo "e2e $part: skipped, the time is used up"; continue; }
    if [ $part = profile ]; then
      run e2e_profile $((left < limit ? left : limit)) "$python" "$root/benchmarks/profile.py" --device cuda "${size[@]}" \
        --results "$out/results"
    else
      run "e2e_$part" $((left < limit ? left : limit)) "$python" "$root/benchmarks/_gpu_end_to_end.py" --part "$part" "${tiny[@]}" \
        --output "$out/results/end_to_end_gpu.jsonl"
    fi
  done
  cat "$out"/log/e2e_*.txt
}

for stage in "${stages[@]}"; do
  case $stage in
    build) build || break ;;
    test) test_stage ;;
    sanitize) sanitize ;;
    bench) bench ;;
    e2e) e2e ;;
    *) echo "run_gpu.sh: expected build, test, sanitize, bench or e2e, got $stage"; exit 2 ;;
  esac
done
if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]}"
  exit 1
fi
echo "all done; gpu_choice.json belongs in vidsmooth_fast/ops, results/*.jsonl in benchmarks/results/gpu"
