# shellcheck shell=bash disable=SC2154
# launch/tpu_vm.sh until-done. The variables are its own.

# Failures that are no preemptions. Those of gcloud and ssh count in a row,
# those of hosts in total: a run that is killed for its memory must not go on
# for ever.
unreached=0 crashes=0
failing() {  # COUNT SENTENCE
  tell "$2 (failure $1; --retries=$retries are allowed)"
  (($1 <= retries)) || finish 1 "too many failures: $2"
  pause
}
unreachable() {
  unreached=$((unreached + 1))
  failing "$unreached" "$1"
}

finish() {  # EXIT CODE, SENTENCE
  local logs=$root/runs/launch/$name
  tell "$2"
  if [[ $(node) == READY ]]; then
    run mkdir -p "$logs"
    on_workers all 'mixer/launch/worker.sh log 2000' \
      --output-directory="$logs" || tell "the logs could not be fetched"
    tell "the ends of all hosts' logs are in $logs"
  fi
  if [[ -n $keep ]]; then
    tell "$name is kept, and costs money until: launch/tpu_vm.sh delete" \
      "--name=$name --zone=$zone"
  else
    delete || tell "$name could not be deleted, and costs money: see above"
  fi
  exit "$1"
}

# Makes a slice out of whatever there is of it.
provide() {
  case $(request) in
    ABSENT) ;;
    ACCEPTED | CREATING | PROVISIONING | WAITING_FOR_RESOURCES)
      await && return
      delete || return 1
      ;;
    UNKNOWN) return 1 ;;
    *) delete || return 1 ;;  # Its slice is gone, or going.
  esac
  create
}

until_done() {
  local now report before='' settled='' started='' preempted=0
  [[ -n $spot ]] || warn "without --spot: preemption is not to be expected"
  trap 'tell "$name and the run on it go on; the same command takes up again" \
    "here, and launch/tpu_vm.sh delete ends it"; exit 130' INT TERM
  while :; do
    now=$(node)
    case $now in
      READY) ;;
      UNKNOWN)
        unreachable "gcloud does not tell the state of $name"
        continue
        ;;
      CREATING | STARTING | RESTARTING | REPAIRING | HIDING | UNHIDING)
        tell "$name is $now"
        pause
        continue
        ;;
      *)
        if [[ -n $started ]]; then
          preempted=$((preempted + 1))
          tell "$name was taken away ($now): preemption number $preempted"
        fi
        started='' settled=''
        provide || unreachable "$name could not be made"
        continue
        ;;
    esac

    if ! report=$(workers); then
      unreachable "not all hosts of $name answer"
      continue
    fi
    unreached=0
    now=$(verdict <<<"$report")
    case $now in
      running | partial) started=yes ;;
    esac
    if [[ -z $started ]]; then  # Whatever ran here before is not ours.
      if setup && start; then
        started=yes settled=''
      else
        crashes=$((crashes + 1))
        failing "$crashes" "the set-up or the start on $name failed"
      fi
      continue
    fi
    [[ $now == "$before" ]] || tell "train.py on $name: $now"
    before=$now
    case $now in
      done) finish 0 "train.py is done, after $preempted preemptions" ;;
      running)
        settled=''
        pause
        continue
        ;;
    esac
    # Hosts end some seconds before gcloud knows that the slice was taken away:
    # look once more before believing anything else.
    if [[ -z $settled ]]; then
      settled=yes
      pause
      continue
    fi
    settled=''
    case $now in
      failed)
        grep -E '^mixer-worker .* exit ' <<<"$report" >&2
        finish 1 "train.py failed; the same would happen again"
        ;;
      saved) ;;
      *)
        crashes=$((crashes + 1))
        failing "$crashes" "train.py on $name: $now"
        ;;
    esac
    tell "starting train.py again on $name"
    start || unreachable "not all hosts of $name started"
  done
}
