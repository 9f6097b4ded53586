#!/bin/sh
# Everything that needs a GPU, in one run of some ten minutes: the tests, speed beside the GPU's own limits and beside a
# transformers model with a static cache, memory, and how far ids depend on the batch. Without a GPU it ends at once.
#
#   sh benchmarks/gpu.sh FOLDER        # PYTHON names the interpreter; results are FOLDER/*.json and FOLDER/*.txt
set -eu
cd "$(dirname "$0")/.."
OUT=${1:-runs/gpu}
PYTHON=${PYTHON:-python3}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

"$PYTHON" -c "
import sys, torch
torch.cuda.is_available() or sys.exit('error: expected a GPU that PyTorch can use, got none; nothing was measured')
print(torch.cuda.get_device_name(), 'torch', torch.__version__)"
mkdir -p "$OUT"
FAILED=
bench() {  # NAME OPTION...
    name=$1
    shift
    "$PYTHON" -m dalle_mini_impl bench --device cuda --json "$OUT/$name.json" "$@" > "$OUT/$name.txt" || FAILED="$FAILED $name"
    cat "$OUT/$name.txt"
}

"$PYTHON" -m pytest -q -m "" tests/gpu > "$OUT/tests.txt" 2>&1 || FAILED=" tests"
tail -n 30 "$OUT/tests.txt"
PEER=none
"$PYTHON" -c "import transformers" 2> /dev/null && PEER=transformers
# Decoding and training against their limits; then chunks, image tokenizer and scorer.
bench R --shape R --only sample --only train --candidates 1,16,64,512 --repeats 3 --peer $PEER
bench 300m --shape 300m --only sample --candidates 1,16,64,512 --repeats 1 --peer none
bench 300m-train --shape 300m --only train --repeats 5 --peer $PEER
bench parts --shape R --only parts --only chunks --only prompts --repeats 3 --peer none
if [ -n "$FAILED" ]; then
    echo "error: these failed, the others are in $OUT:$FAILED" >&2
    exit 1
fi
