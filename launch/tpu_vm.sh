#!/usr/bin/env bash
# Trains on Cloud TPU VMs, by gcloud: v5e and v6e slices of one host or many.
set -euo pipefail

usage='launch/tpu_vm.sh COMMAND --name=NAME --zone=ZONE [FLAGS] [-- TRAIN.PY FLAGS]

  create      request the slice, and wait until it is there
  setup       copy this checkout to all hosts, make its environment there
  run         start train.py on all hosts, detached
  status      of the slice, and of each host: running, lost, or the exit code
  logs        the end of what train.py prints
  stop        SIGTERM to train.py on all hosts: it saves and ends
  delete      the slice and its request
  until-done  all of that, again after each preemption, until train.py is done

  --type=v5e-64       or v6e-64, ...: the number counts chips
  --version=VERSION   the image, else v2-alpha-tpuv5-lite or v2-alpha-tpuv6e
  --spot              spot capacity: cheaper, and may be taken away
  --create_flag=FLAG  one more flag of the request, such as --data-disk=...
  --gcloud_flag=FLAG  one more flag of all gcloud commands, as --project=...
  --prepare=COMMAND   ends the set-up of each host: mount the data here
  --worker=all        or a number: whose logs
  --keep              until-done leaves the slice when it ends
  --retries=3         until-done: failures that are no preemptions
  --poll=30           seconds between two looks
  --dry-run           print the commands, run none'
die() { echo "error: $*" >&2 && exit 2; }
say() { echo "tpu_vm: $*" >&2; }

name='' zone='' type='' version='' prepare=true worker=all dry='' keep=''
retries=3 poll=30 flags=(--quiet) create_flags=() train=() command=${1-}
case $command in
  create | setup | run | status | logs | stop | delete | until-done) shift ;;
  -h | --help | help) echo "$usage" && exit ;;
  *) die "'$command' is no command; launch/tpu_vm.sh --help lists them." ;;
esac
while (($#)); do
  case $1 in
    --name=?* | --type=?* | --version=?* | --prepare=?* | --worker=?* | \
      --retries=[0-9]* | --poll=[0-9]*) declare "${1:2}" ;;
    --zone=?*) zone=${1#*=} && flags+=("$1") ;;
    --create_flag=?*) create_flags+=("${1#*=}") ;;
    --gcloud_flag=?*) flags+=("${1#*=}") ;;
    --spot) create_flags+=(--spot) ;;
    --keep) keep=yes ;;
    --dry-run) dry=yes ;;
    --) shift && train=("$@" --cluster=tpu) && break ;;
    *) die "$1 is not known or lacks a value (flags of train.py go behind --)." ;;
  esac
  shift
done
[[ $name && $zone ]] || die "$command needs --name=NAME and --zone=ZONE."
type=${type/#v5e-/v5litepod-}
case $type in
  v5litepod-*) version=${version:-v2-alpha-tpuv5-lite} ;;
  v6e-*) version=${version:-v2-alpha-tpuv6e} ;;
esac
[[ ! $command =~ create|until || ($type && $version) ]] || die "$command needs" \
  "--type, as in --type=v6e-64; for others than v5e and v6e also --version."
line=" ${train[*]-}"
[[ ! $command =~ run|until || ($line =~ " --config=" && $line =~ " --workdir=") ]] ||
  die "$command needs behind --: -- --config=configs/NAME.py --workdir=gs://BUCKET/RUN"
[[ $command != until-done || $line =~ \ --workdir=(gs://|/mnt/) ]] ||
  die "the workdir goes with the slice: it has to be gs://..., or a disk below /mnt."

exec 3>&1
archive=$(mktemp) && trap 'rm -f "$archive"' EXIT
tpus() {  # WORDS OF GCLOUD...
  local call=(gcloud compute tpus "$@" "${flags[@]}")
  if [[ ! $dry ]]; then "${call[@]}"; else printf '%q ' "${call[@]}" >&3; echo >&3; fi
}
ssh_flags=(--ssh-flag=-oConnectTimeout=20 --ssh-flag=-oServerAliveInterval=15)
hosts() { tpus tpu-vm ssh "$name" --worker="$1" --command="$2" "${ssh_flags[@]}"; }
state() {  # tpu-vm|queued-resources KEY: ABSENT without one, "" if gcloud fails.
  local found
  found=$(tpus "$1" describe "$name" --format="value($2)" 2>&1) && echo "$found" && return
  grep -qiE 'NOT_FOUND|was not found' <<<"$found" && echo ABSENT || echo "$found" >&2
}
create() {
  tpus queued-resources create "$name" --node-id="$name" \
    --accelerator-type="$type" --runtime-version="$version" \
    ${create_flags[@]+"${create_flags[@]}"} && await
}
await() {  # A request becomes a slice.
  local now=''
  until [[ $now == ACTIVE || $dry ]]; do
    [[ ! $now =~ FAILED|SUSPEND|DELETING|ABSENT ]] || return
    sleep "$poll"
    now=$(state queued-resources state.state) && say "$name is $now"
  done
}
setup() {  # The files that git knows, as they are now. The image's Python is old.
  local root tree
  root=$(dirname "${BASH_SOURCE[0]}")/.. && tree=$(git -C "$root" stash create)
  git -C "$root" archive --format=tar.gz --prefix=mixer/ "${tree:-HEAD}" >"$archive" &&
    tpus tpu-vm scp "$archive" "$name:mixer.tar.gz" --worker=all "${ssh_flags[@]/#--ssh/--scp}" &&
    hosts all "rm -rf mixer && tar -xzf mixer.tar.gz && PATH=~/.local/bin:\$PATH &&
      { which uv || curl -LsSf https://astral.sh/uv/install.sh | sh; } &&
      uv venv --allow-existing --python=3.12 ~/.venv-mixer &&
      VIRTUAL_ENV=~/.venv-mixer uv pip install --quiet \
        -r mixer/requirements-tpu.txt -r mixer/requirements-gcs.txt && { $prepare; }"
}
running="kill -0 \$(cat ~/mixer.pid) 2>/dev/null"
run() {  # Detached from ssh. The exit code is kept, of a machine that stops too.
  hosts all "! $running || exit 0; cd mixer && rm -f ~/mixer.{exit,pid} || exit
    setsid bash -c 'trap : TERM HUP; echo \$\$ >~/mixer.pid
      ~/.venv-mixer/bin/python train.py \"\$@\"
      echo \$? >~/mixer.exit' - $(printf '%q ' "${train[@]}") \
      </dev/null >>~/mixer.log 2>&1 & until [ -e ~/mixer.pid ]; do sleep 0.1; done"
}
status() {
  hosts all "echo mixer: \$($running && echo running || cat ~/mixer.exit || echo lost)" \
    2>/dev/null | sed -n 's/^mixer: //p'
}
logs() { hosts "$worker" "tail -n 200 ~/mixer.log"; }
delete() {
  [[ $(state queued-resources state.state) == ABSENT ]] ||
    tpus queued-resources delete "$name" --force
}

failures=0 crashes=0
again() {  # SENTENCE: a failure that is no preemption.
  failures=$((failures + 1))
  say "$1 (failure $failures of --retries=$retries)"
  ((failures <= retries)) || finish 1 "too many failures: $1"
  sleep "$poll"
}
finish() {  # EXIT CODE, SENTENCE
  say "$2"
  logs >&2 || true
  [[ $keep ]] || delete || say "$name could not be deleted, and costs money"
  exit "$1"
}
until_done() {
  local now started='' before=''
  while :; do
    now=$(state tpu-vm state)
    case $now in
      '') again "gcloud does not tell the state of $name" && continue ;;
      READY) ;;
      CREATING | STARTING | RESTARTING | REPAIRING) sleep "$poll" && continue ;;
      *)
        say "$name is $now" && started='' before=''
        now=$(state queued-resources state.state)
        [[ ! $now =~ ACCEPTED|CREATING|PROVISIONING|WAITING ]] || ! await || continue
        if ! delete || ! create; then again "$name could not be made"; fi
        continue
        ;;
    esac
    now=$(status | sort -u) || { again "not all hosts of $name answer" && continue; }
    failures=$crashes now=" ${now//$'\n'/ } "
    [[ $now != *running* ]] || started=yes
    if [[ ! $started ]]; then  # Whatever ran here before is not ours.
      if setup && run; then started=yes; else again "the set-up failed"; fi
      continue
    fi
    [[ $now == "$before" ]] || say "train.py on the hosts: $now"
    [[ $now != ' 0 ' ]] || finish 0 "train.py is done"
    # Hosts end before gcloud knows that the slice was taken: look twice.
    if [[ $now == *running* || $now != "$before" ]]; then
      before=$now && sleep "$poll" && continue
    fi
    before=''
    [[ $now != *' 1 '* ]] || finish 1 "train.py failed, and would fail again"
    [[ $now == ' 42 ' ]] || { crashes=$((crashes + 1)) && again "hosts were lost"; }
    run || again "not all hosts of $name started"
  done
}
case $command in
  create | setup | run | logs | delete) "$command" ;;
  status) state tpu-vm state && status ;;
  stop) hosts all "pkill -TERM -P \$(cat ~/mixer.pid)" ;;
  until-done) if [[ $dry ]]; then create && setup && run; else until_done; fi ;;
esac
