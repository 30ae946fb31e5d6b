#!/usr/bin/env bash
# One host of a run: sets it up, starts train.py so that it outlives the ssh
# session, and tells how it stands. launch/tpu_vm.sh runs this on all hosts of
# a slice at once; the other launchers use `setup`.
#
#   launch/worker.sh setup tpu gcs             make setup-tpu setup-gcs
#   launch/worker.sh start --config=... ...    train.py with these arguments
#   launch/worker.sh state                     one line, see below
#   launch/worker.sh log [LINES]               its output
#   launch/worker.sh follow                    the same, as it comes
#   launch/worker.sh stop                      SIGTERM: it saves and ends
#
# The environment is MIXER_VENV (~/.venv-mixer), beside the checkout so that
# new code finds it again. The files of the run are in MIXER_RUN (~/mixer-run).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
: "${HOME:=$(getent passwd "$(id -u)" | cut -d: -f6)}"
venv=${MIXER_VENV:-$HOME/.venv-mixer}
run=${MIXER_RUN:-$HOME/mixer-run}

die() {
  echo "error: $(hostname): $*" >&2
  exit 1
}

suits() {
  "$1" -c 'import ensurepip, sys, venv
sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null
}

# A Python that mixer runs on. TPU VM images are Ubuntu 22.04 with Python 3.10:
# uv then fetches one into the home directory, without root.
find_python() {
  local python
  for python in python3 python3.14 python3.13 python3.12 python3.11; do
    if suits "$python"; then
      command -v "$python"
      return
    fi
  done
  export PATH=$HOME/.local/bin:$PATH
  if ! command -v uv >/dev/null; then
    curl -LsSf https://astral.sh/uv/install.sh | sh >&2
  fi
  uv python install --quiet 3.12 >&2
  uv python find 3.12
}

setup() {
  local extra python targets=()
  if ! command -v make >/dev/null; then
    # Freshly started machines often hold the lock themselves.
    sudo apt-get -o DPkg::Lock::Timeout=300 -qq install -y make
  fi
  python=$(find_python) || die "no Python 3.11 to 3.14 here, and uv got none"
  for extra in "$@"; do targets+=("setup-$extra"); done
  make "${targets[@]:-setup}" VENV="$venv" PYTHON="$python"
}

# idle: never started. running. exit CODE: ended. lost: neither; the machine
# was restarted, or something killed all of it.
state() {
  if [[ -e $run/exit ]]; then
    echo "exit $(cat "$run/exit")"
  elif [[ ! -e $run/command ]]; then
    echo idle
  elif flock --shared --nonblock "$run/lock" true; then
    # It may have ended between the two looks.
    if [[ -e $run/exit ]]; then echo "exit $(cat "$run/exit")"; else echo lost; fi
  else
    echo running
  fi
}

# The sentence that a failed run ended with, else its last line.
last_words() {
  [[ -e $run/log ]] || return 0
  tail -n 200 "$run/log" | awk '
    /^== / { next }
    NF { last = $0 }
    /^error: / { error = $0 }
    END { print error == "" ? last : error }'
}

start() {
  local words
  words=$(printf '%q ' "$@")
  mkdir -p "$run"
  if [[ $(state) == running ]]; then
    [[ $(cat "$run/command") == "$words" ]] || die \
      "something else is running: train.py $(cat "$run/command"); stop it first"
    echo "$(hostname): running already"
    return
  fi
  [[ -x $venv/bin/python ]] || die "there is no $venv: set this host up first"
  rm -f "$run/exit" "$run/pid" "$run/stopping"
  touch "$run/lock"
  printf '%s\n' "$words" >"$run/command"
  setsid launch/worker.sh keep "$@" </dev/null >>"$run/log" 2>&1 &
  local _
  for _ in {1..100}; do
    if [[ -e $run/pid || -e $run/exit ]]; then
      echo "$(hostname): started"
      return
    fi
    sleep 0.1
  done
  die "train.py did not start within 10 s: see $run/log"
}

# What `start` leaves behind: it holds the lock as long as train.py lives, and
# writes its exit code down.
keep() {
  local code=0
  exec 9>>"$run/lock"
  flock 9
  # A machine that shuts down signals everything on it: train.py saves, and
  # the shell has to stay for the code. (A trap, unlike an ignored signal, is
  # not passed on.)
  trap : TERM INT HUP
  echo "== $(date -u +%FT%TZ) $(hostname): train.py $*"
  # shellcheck disable=SC2016  # Expanded by the inner shell.
  bash -c 'echo $$ >"$0/pid" && exec "$@"' "$run" \
    "$venv/bin/python" train.py "$@" 9>&- || code=$?
  echo "== $(date -u +%FT%TZ) $(hostname): exit code $code"
  echo "$code" >"$run/exit.part"
  mv "$run/exit.part" "$run/exit"
}

case ${1-} in
  setup) setup "${@:2}" ;;
  start) start "${@:2}" ;;
  keep) keep "${@:2}" ;;
  state)
    now=$(state)
    words=
    case $now in
      "exit 0" | "exit 42" | idle | running) ;;
      *) words=$(last_words) ;;
    esac
    echo "mixer-worker $(hostname) $now${words:+ $words}"
    ;;
  log) tail -n "${2:-50}" "$run/log" ;;
  follow) exec tail -n 50 -F "$run/log" ;;
  stop)
    [[ $(state) == running ]] || die "nothing is running"
    # A second signal would end it unsaved.
    if [[ -e $run/stopping ]]; then
      echo "$(hostname): stopping already"
    else
      touch "$run/stopping"
      kill -TERM "$(cat "$run/pid")"
    fi
    ;;
  *)
    echo "error: launch/worker.sh takes setup, start, state, log, follow or" \
      "stop, not '${1-}'." >&2
    exit 2
    ;;
esac
