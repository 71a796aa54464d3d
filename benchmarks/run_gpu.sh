#!/usr/bin/env bash
# Everything that only a GPU can show: bash benchmarks/run_gpu.sh [FOLDER] [STAGE...]
#
# FOLDER (gpu-results): gets log/*.txt, results/*.jsonl, tables.md and gpu_choice.json, and all of them in one file,
# run_gpu.tgz, written anew after every step. Work lies beside them, in build and site.
# STAGE: build, test, sanitize, bench, e2e; the first four when none is named. e2e is sampling at Stable Diffusion 1.5's
# size, beside the published program, and the profile of a step. A call ends within 9 minutes: what is last gets what is
# left, so that everything takes three calls, of which the later find the build done:
#
#     run_gpu.sh FOLDER build test sanitize; run_gpu.sh FOLDER build bench; run_gpu.sh FOLDER build e2e
#
# Needs a GPU, torch, triton, nvcc, cmake, ninja, pybind11 and pytest (e2e: psutil); no network, no other package. With
# pytest-xdist the tests take less time, and those of exported models and of training need diffusers. The kernels are
# built for this GPU alone; nothing is installed. Without them (their build counts as failed) Triton's are tested and
# timed. Variables: PYTHON (python3), ARCHIVE (FOLDER/run_gpu.tgz), VIDSMOOTH_COMMIT (what the records call the commit;
# asked of git), SECONDS_PER_CASE (0.15), TINY (e2e with a small network).
set -uo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
python=$(command -v "${PYTHON:-python3}") || { echo "run_gpu.sh: no ${PYTHON:-python3}"; exit 2; }
mkdir -p "${1:-gpu-results}" || exit 2
out=$(cd "${1:-gpu-results}" && pwd)
archive=${ARCHIVE:-$out/run_gpu.tgz}
case $archive in /*) ;; *) archive=$PWD/$archive ;; esac
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

export PYTHONPATH="$out/site:$root${PYTHONPATH:+:$PYTHONPATH}"
export VIDSMOOTH_COMMIT=${VIDSMOOTH_COMMIT:-$(git -C "$root" rev-parse --short HEAD 2>/dev/null || echo unknown)}
export PYTHONUNBUFFERED=1 # what was printed before a time limit is in the log
mkdir -p "$out/log" "$out/results"
cd "$out" || exit 2 # not the checkout: its vidsmooth_fast has no compiled kernels in it
failed=()

pack() {
  tar -C "$out" --exclude=./build --exclude=./site --exclude='./run_gpu.tgz*' -czf "$archive.$BASHPID" . 2>/dev/null
  mv "$archive.$BASHPID" "$archive" # whole at any time: a run can be stopped from outside
}
trap pack EXIT
trap 'exit 143' TERM INT HUP

# run NAME LIMIT COMMAND...: into a log, with a time limit in seconds, at most what is left of the call's
run() {
  local name=$1 limit=$2 left=$((515 - SECONDS)) begin=$SECONDS status
  shift 2
  [ "$limit" -le 10 ] || [ $left -ge "$limit" ] || limit=$left
  if [ "$limit" -lt 10 ]; then
    echo "$name: SKIPPED, the time is used up"
    failed+=("$name")
    return 1
  fi
  timeout -k 5 "$limit" "$@" >"$out/log/$name.txt" 2>&1
  status=$?
  [ $status -eq 0 ] || failed+=("$name")
  echo "$name: $([ $status -eq 0 ] && echo done || echo "FAILED ($status)") in $((SECONDS - begin)) s, log/$name.txt"
  [ $status -eq 0 ] || tail -n 15 "$out/log/$name.txt"
  pack
  return $status
}

# Without the compiled kernels everything else can still be tested and timed: this never ends the call.
build() {
  rm -rf "$out/site"
  mkdir -p "$out/site"
  # The checkout may be read-only, and its copy is written to.
  cp -r --no-preserve=mode "$root/vidsmooth_fast" "$out/site/vidsmooth_fast"
  cp -r --no-preserve=mode "$root/triton_kernels" "$out/site/vidsmooth_fast/triton_kernels"
  rm -f "$out"/site/vidsmooth_fast/_C.*
  run configure 120 cmake -S "$root" -B "$out/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DVIDSMOOTH_CUDA=ON \
    "-DCMAKE_CUDA_ARCHITECTURES=$capability-real" "-DPython_EXECUTABLE=$python" \
    "-Dpybind11_DIR=$("$python" -m pybind11 --cmakedir)" &&
    run build 300 cmake --build "$out/build" &&
    run install 10 cmake --install "$out/build" --prefix "$out/site" &&
    # An installation for development comes before PYTHONPATH, and would be tested in place of this one.
    run import 60 "$python" -c '
import sys, vidsmooth_fast._C as built
print(built.__file__, built.cuda)
sys.exit(not (built.cuda and built.__file__.startswith(sys.argv[1])))' "$out/site" ||
    echo "build: the compiled kernels are missing; going on with Triton's"
}

# The command that runs the device tests; paths of a checkout without spaces.
device_tests() {
  echo "$python" -m pytest -p no:cacheprovider -q --rootdir "$root" -c "$root/pyproject.toml" "$root/python_tests/device"
}

# In parts side by side, of four processes where there is pytest-xdist: most of the time is Triton's compiler's.
test_stage() {
  local -A parts=([cuda]="cuda" [triton_float32]="triton and float32" [triton_bfloat16]="triton and bfloat16"
    [triton_rest]="triton and not float32 and not bfloat16")
  local name pids=() workers
  workers=$("$python" -c 'import xdist; print("-n4")' 2>/dev/null)
  if "$python" -c 'import diffusers' 2>/dev/null; then
    parts[models]="test_export or test_spriteworld"
  else
    echo "test_models: skipped, there is no diffusers: exported models and training are not tested"
  fi
  for name in "${!parts[@]}"; do
    # shellcheck disable=SC2046,SC2086
    run "test_$name" 300 $(device_tests) $workers -k "${parts[$name]}" &
    pids+=($!)
  done
  for name in "${pids[@]}"; do wait "$name" || failed+=(test); done
}

sanitize() {
  local said
  if ! command -v compute-sanitizer >/dev/null; then
    echo "sanitize: skipped, there is no compute-sanitizer"
    return
  fi
  if [ $SECONDS -gt 450 ]; then
    echo "sanitize: SKIPPED, the time is used up"
    failed+=(sanitize)
    return
  fi
  said=$(timeout -k 5 60 compute-sanitizer "$python" -c 'import torch; torch.zeros(1, device="cuda")' 2>&1 |
    grep -i -m 1 "not supported")
  if [ -n "$said" ]; then
    echo "sanitize: skipped, compute-sanitizer cannot look into this device: $said"
    return
  fi
  # Without PyTorch's own pool of memory: in it, what lies beyond a tensor is no error.
  # shellcheck disable=SC2046
  run sanitize 150 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 1 --target-processes all $(device_tests) -x \
    -k "test_against_the_reference and cuda and (odd or windows or bfloat16) and not large"
}

bench() {
  local name shares
  local names=(temporal_attention noise_constraint inversion_blend sparse_causal_attention window_merge denoise_step
    group_norm_silu)
  local remaining=${#names[@]}
  for name in "${names[@]}"; do
    rm -f "$out/results/$name.jsonl"
    # Up to twice its share of what is left, or three times: mostly compilers' time, unlike by operator.
    [ $name = temporal_attention ] && shares=3 || shares=2
    run "bench_$name" $((shares * (515 - SECONDS) / remaining)) "$python" "$root/benchmarks/$name.py" \
      "${SECONDS_PER_CASE:-0.15}" --device cuda --results "$out/results"
    remaining=$((remaining - 1))
  done
  run choice 10 "$python" "$root/benchmarks/_gpu_choice.py" "$out/results" "$out/gpu_choice.json"
  run tables 10 "$python" "$root/benchmarks/_gpu_report.py" "$out/results" "$out/tables.md"
  [ ! -s "$out/tables.md" ] || cat "$out/tables.md"
}

# Rows first that need no compiler.
e2e() {
  local part limit tiny=() size=()
  [ -z "${TINY:-}" ] || { tiny=(--tiny); size=(--size tiny --pixels 64); }
  for part in ours published picture profile published-compiled; do
    case $part in ours | published-compiled) limit=230 ;; *) limit=90 ;; esac
    if [ $part = profile ]; then
      run e2e_profile $limit "$python" "$root/benchmarks/profile.py" --device cuda "${size[@]}" --results "$out/results"
    else
      run "e2e_$part" $limit "$python" "$root/benchmarks/_gpu_end_to_end.py" --part "$part" "${tiny[@]}" \
        --output "$out/results/end_to_end_gpu.jsonl"
    fi
  done
  cat "$out"/log/e2e_*.txt
}

for stage in "${stages[@]}"; do
  case $stage in
    build) build ;;
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
