#!/bin/bash
# Trains on a Cloud TPU slice of any size through queued resources, and goes on after preemptions.
#
#   launch/tpu_queued_resource.sh loop      all of the following, again and again until the run is finished (default)
#   launch/tpu_queued_resource.sh create    asks for the slice
#   launch/tpu_queued_resource.sh wait      returns when it is there
#   launch/tpu_queued_resource.sh setup     every worker: this commit, its environment, the bucket, the data
#   launch/tpu_queued_resource.sh run       starts the training on all workers, or follows the one that runs already
#   launch/tpu_queued_resource.sh stop      saves and stops it (end the loop first)
#   launch/tpu_queued_resource.sh status    the slice, and where the run stands
#   launch/tpu_queued_resource.sh delete    gives the slice back; what is in the bucket stays
#
# It needs the gcloud CLI, logged in, and prepared images in gs://BUCKET/DATA/prepared_images. The workers go on while
# this computer is away; `loop` follows them again when it is back. More is in docs/pods.md.

# --- Parameters: edit them, or set them in the environment. -----------------------------------------------------------
NAME="${NAME:-cfg-imagenet64}" # of the queued resource and of its node
PROJECT="${PROJECT:-my-project}"
ZONE="${ZONE:-us-west4-a}"
ACCELERATOR_TYPE="${ACCELERATOR_TYPE:-v5litepod-64}" # v4-32 (16 chips), v5litepod-64, v5p-32 (16 chips), v6e-32, ...
RUNTIME_VERSION="${RUNTIME_VERSION:-v2-alpha-tpuv5-lite}" # v4: tpu-ubuntu2204-base, v5p: v2-alpha-tpuv5, v6e: v2-alpha-tpuv6e
SPOT="${SPOT:-1}" # 1: cheaper, and may be taken away at any time; 0: on demand
BUCKET="${BUCKET:-my-bucket}" # in the region of ZONE, with hierarchical namespace
DATA="${DATA:-data}" # folder in the bucket that holds prepared_images; copied to each worker's disk
RUN="${RUN:-runs/imagenet64}" # folder in the bucket: the workdir
CONFIG="${CONFIG:-configs/imagenet64.py}"
MODE="${MODE:-train}" # or eval
FLAGS="${FLAGS:---config.train.grad_accum=4 --config.train.checkpoint_every=2000}" # with spaces between them
KEEP="${KEEP:-0}" # 1: keep the slice (and pay for it) when the loop ends
MAX_RESTARTS="${MAX_RESTARTS:-50}" # starts in a row of which none ran for an hour
POLL="${POLL:-60}" # seconds between two looks at the queue, and before a new start
# ----------------------------------------------------------------------------------------------------------------------

set -uo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
MOUNT=/mnt/cfg-bucket
LOCAL_DATA=/var/tmp/cfg-data
PLACE=(--project="$PROJECT" --zone="$ZONE")

say() { echo "launch: $*" >&2; }

# --- What runs on the workers: sent there as text. --------------------------------------------------------------------

remote_running() { # sets pid; the file may be of a time before a reboot
  read -r pid 2>/dev/null <"$HOME/cfg-run/pid" && grep -qas 'main\.py' "/proc/$pid/cmdline"
}

remote_setup() { # bucket, folder of the data in it, mount point, where the data go
  local pid=''
  if remote_running; then
    echo "launch: $(hostname) is training already, and is left as it is"
    return 0
  fi
  set -e
  mkdir -p "$HOME/cfg"
  tar -xzf "$HOME/cfg.tar.gz" -C "$HOME/cfg"
  cd "$HOME/cfg"
  if ! cat requirements*.txt | cmp -s - .venv/.installed; then
    # The images of TPU VMs have an older Python than 3.11; uv brings one.
    python3 -m pip install --quiet --user uv || python3 -m pip install --quiet --user --break-system-packages uv
    rm -rf .venv
    "$HOME/.local/bin/uv" venv --quiet --seed --python 3.12 .venv
    .venv/bin/python -m pip install --quiet -r requirements.txt "jax[tpu]"
    cat requirements*.txt >.venv/.installed
  fi
  if ! mountpoint -q "$3"; then
    if ! command -v gcsfuse >/dev/null; then
      echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
      curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /usr/share/keyrings/cloud.google.asc >/dev/null
      sudo apt-get -o DPkg::Lock::Timeout=600 -qq update
      sudo apt-get -o DPkg::Lock::Timeout=600 -qq install -y gcsfuse
    fi
    sudo mkdir -p "$3"
    sudo chown "$(id -un)" "$3"
    # Checkpoints become visible by renaming a folder; without hierarchical namespace gcsfuse renames file by file.
    # Without the limit of 0 s a worker would see the heartbeats of the others as they were a minute ago, or for ever.
    gcsfuse --implicit-dirs --rename-dir-limit=100000 --metadata-cache-ttl-secs=0 "$1" "$3"
  fi
  mkdir -p "$4/prepared_images"
  gcloud storage rsync --recursive "gs://$1/$2/prepared_images" "$4/prepared_images"
}

remote_run() { # arguments of main.py
  local here="$HOME/cfg-run" pid='' code=''
  mkdir -p "$here"
  cd "$HOME/cfg" || return 1
  if ! remote_running; then
    rm -f "$here/code"
    echo "--- $(date -u +%FT%TZ) main.py $*" >>"$here/log"
    # In its own session, so that it outlives a lost connection; its exit status goes into a file.
    # shellcheck disable=SC2016 # expanded by that shell
    setsid bash -c 'here="$1"; shift; "$@" >>"$here/log" 2>&1; echo $? >"$here/code"' _ \
      "$here" .venv/bin/python main.py "$@" </dev/null >/dev/null 2>&1 &
    pid=$!
    echo "$pid" >"$here/pid"
  fi
  tail --sleep-interval=0.2 --pid="$pid" --lines=20 --follow "$here/log"
  read -r code 2>/dev/null <"$here/code" || code=137
  echo "launch: $(hostname) ended with exit status $code"
  return "$code"
}

remote_stop() {
  local pid=''
  remote_running || return 0
  pkill -TERM -P "$pid" # main.py, which saves and exits
  tail --sleep-interval=0.2 --pid="$pid" --lines=0 --follow "$HOME/cfg-run/log"
}

# --- What runs here. --------------------------------------------------------------------------------------------------

on_workers() { # which workers, function, its arguments
  local workers="$1" name="$2"
  shift 2
  gcloud compute tpus tpu-vm ssh "$NAME" "${PLACE[@]}" --worker="$workers" \
    --command="$(declare -f remote_running "$name"); $name$( (($# == 0)) || printf ' %q' "$@")"
}

state() { # of the queued resource, ABSENT, or UNKNOWN when gcloud cannot tell
  local answer
  if answer="$(gcloud compute tpus queued-resources describe "$NAME" "${PLACE[@]}" --format='value(state.state)' 2>&1)"; then
    tail -n 1 <<<"$answer"
  elif grep -qi 'NOT_FOUND\|not found' <<<"$answer"; then
    echo ABSENT
  else
    echo UNKNOWN
  fi
}

create() {
  local spot=()
  [[ "$SPOT" == 1 ]] && spot=(--spot)
  gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" "${PLACE[@]}" \
    --accelerator-type="$ACCELERATOR_TYPE" --runtime-version="$RUNTIME_VERSION" ${spot[@]+"${spot[@]}"}
}

delete() { gcloud compute tpus queued-resources delete "$NAME" "${PLACE[@]}" --force --quiet; }

wait_until_active() { # fails when it will never be
  local now before=''
  while :; do
    now="$(state)"
    [[ "$now" == "$before" ]] || say "$NAME is $now"
    before="$now"
    case "$now" in
      ACTIVE) return 0 ;;
      ABSENT | FAILED | SUSPENDING | SUSPENDED) return 1 ;;
    esac
    sleep "$POLL"
  done
}

bring_up() { # creates the slice where there is none, and again where it was taken away
  case "$(state)" in
    ABSENT) create || return 1 ;;
    FAILED | SUSPENDING | SUSPENDED)
      say "$NAME was taken away; asking for it again"
      delete || return 1
      create || return 1
      ;;
  esac
  wait_until_active
}

setup() {
  local archive status
  [[ -z "$(git -C "$ROOT" status --porcelain --untracked-files=no)" ]] || say 'changes that are not committed stay here'
  archive="$(mktemp)"
  git -C "$ROOT" archive --format=tar.gz --output="$archive" HEAD &&
    gcloud compute tpus tpu-vm scp "$archive" "$NAME:cfg.tar.gz" "${PLACE[@]}" --worker=all &&
    on_workers all remote_setup "$BUCKET" "$DATA" "$MOUNT" "$LOCAL_DATA"
  status=$?
  rm -f "$archive"
  return "$status"
}

run() { # returns 2 if any worker did, as that is a mistake; else what gcloud says: the first status that is not 0
  local flags output status
  read -ra flags <<<"$FLAGS"
  output="$(mktemp)"
  # JAX finds the other workers of a slice by itself.
  on_workers all remote_run --config="$CONFIG" --config.data.dir="$LOCAL_DATA" --workdir="$MOUNT/$RUN" --mode="$MODE" \
    ${flags[@]+"${flags[@]}"} 2>&1 | tee "$output"
  status="${PIPESTATUS[0]}"
  grep -Eq 'ended with exit status 2([^0-9]|$)' "$output" && status=2
  rm -f "$output"
  return "$status"
}

loop() {
  local restarts=0 began status
  while :; do
    began=$SECONDS
    status=1
    if bring_up; then
      began=$SECONDS
      if setup; then
        run
        status=$?
      fi
    fi
    case "$status" in
      0) say 'finished' ;;
      2) say 'a mistake that must be mended (exit status 2): not started again' ;;
      *)
        ((SECONDS - began < 3600)) || restarts=0
        restarts=$((restarts + 1))
        if ((restarts <= MAX_RESTARTS)); then
          say "exit status $status: start again ($restarts of $MAX_RESTARTS)"
          sleep "$POLL"
          continue
        fi
        say "exit status $status, and MAX_RESTARTS=$MAX_RESTARTS is reached: not started again"
        ;;
    esac
    if [[ "$KEEP" == 1 ]]; then
      say "$NAME is kept, and costs money until: $0 delete"
    else
      delete
    fi
    return "$status"
  done
}

case "${1:-loop}" in
  create) create ;;
  wait) wait_until_active ;;
  setup) setup ;;
  run) run ;;
  stop) on_workers all remote_stop ;;
  status)
    echo "$NAME is $(state)"
    gcloud compute tpus tpu-vm ssh "$NAME" "${PLACE[@]}" --worker=0 \
      --command="cd cfg && .venv/bin/python main.py --workdir=$MOUNT/$RUN --mode=status"
    ;;
  delete) delete ;;
  loop) loop ;;
  *)
    echo "error: $1 is none of loop, create, wait, setup, run, stop, status, delete." >&2
    exit 2
    ;;
esac
