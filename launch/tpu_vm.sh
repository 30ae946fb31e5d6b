#!/usr/bin/env bash
# Trains on Cloud TPU VMs, by gcloud: v5e and v6e slices of one host or many.
# shellcheck source-path=SCRIPTDIR
set -euo pipefail

usage() {
  cat <<'END'
launch/tpu_vm.sh COMMAND --name=NAME --zone=ZONE [FLAGS] [-- TRAIN.PY'S FLAGS]

  create      ask for the slice, and wait until it is there: --type
  setup       copy this checkout to all hosts, make its environment there
  run         start train.py on all hosts, detached: -- --config=... --workdir=...
  status      the slice and train.py on each host
  logs        what train.py prints: --worker=0|all --follow
  stop        SIGTERM to train.py on all hosts: it saves and ends
  delete      the slice and its request
  until-done  all of that, again after each preemption, until train.py is done:
              --type, -- --config=... --workdir=gs://...

  --type=v5litepod-64  (or v5e-64), v6e-64, ...: the number counts chips
  --spot               spot capacity: cheaper, and may be taken away
  --project=PROJECT    else gcloud's own
  --version=VERSION    the image, else v2-alpha-tpuv5-lite or v2-alpha-tpuv6e
  --create_flag=FLAG   one more flag of `gcloud compute tpus queued-resources
                       create`; may be repeated
  --repo=URL           clone this instead of copying the checkout
  --ref=REF            a branch, tag or commit, instead of the checkout as it is
  --prepare=COMMAND    ends the set-up of each host: mount the data here
  --internal_ip        ssh by internal addresses, no external ones
  --keep               until-done leaves the slice when it ends
  --retries=3          until-done: failures that are no preemptions
  --poll=30            seconds between two looks
  --dry-run            print the commands, run none
END
}

die() {
  echo "error: $*" >&2
  exit 2
}
warn() { echo "tpu_vm: $*" >&2; }
# What has happened: nothing has in a dry run.
tell() { [[ -n $dry ]] || warn "$@"; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
name='' zone='' type='' version='' repo='' ref='' prepare='' worker=0 follow=''
dry='' keep='' spot='' retries=3 poll=30
where=() create_flags=() ssh_flags=() train=()

command=${1-}
case $command in
  create | setup | run | status | logs | stop | delete | until-done) shift ;;
  -h | --help | help) usage && exit 0 ;;
  '') usage >&2 && exit 2 ;;
  *) die "'$command' is no command; launch/tpu_vm.sh --help lists them." ;;
esac
while (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) where+=("$1") ;;
    --type=*) type=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --create_flag=*) create_flags+=("${1#*=}") ;;
    --repo=*) repo=${1#*=} ;;
    --ref=*) ref=${1#*=} ;;
    --prepare=*) prepare=${1#*=} ;;
    --worker=*) worker=${1#*=} ;;
    --retries=*) retries=${1#*=} ;;
    --poll=*) poll=${1#*=} ;;
    --internal_ip) ssh_flags+=(--internal-ip) create_flags+=(--internal-ips) ;;
    --spot) spot=yes create_flags+=(--spot) ;;
    --follow) follow=follow ;;
    --keep) keep=yes ;;
    --dry-run) dry=yes ;;
    --) shift && train=("$@") && break ;;
    --config* | --workdir*) die "$1 is a flag of train.py: it goes behind --." ;;
    *) die "$1 is not known, or lacks a =VALUE; launch/tpu_vm.sh --help lists" \
      "the flags." ;;
  esac
  shift
done
[[ -n $name ]] || die "$command needs --name=NAME."
[[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || die "--name=$name: small" \
  "letters, digits and dashes, a letter first and no dash last."
[[ -n $zone ]] || die "$command needs --zone=ZONE, as in --zone=us-west4-a."
[[ $retries =~ ^[0-9]+$ && $poll =~ ^[0-9]+$ ]] ||
  die "--retries and --poll take whole numbers."
[[ $worker =~ ^([0-9]+|all)$ ]] || die "--worker=$worker: a number, or all."
case $command in
  run | until-done) ;;
  *) ((!${#train[@]})) || die "$command takes nothing behind --: that is for" \
    "run and until-done." ;;
esac
where=(--zone="$zone" ${where[@]+"${where[@]}"})
# A host that is gone must not hold ssh up for ever.
ssh_flags+=(--ssh-flag=-oConnectTimeout=20 --ssh-flag=-oServerAliveInterval=15)

check_type() {
  [[ -n $type ]] || die "$command needs --type, as in --type=v5litepod-64."
  type=${type/#v5e-/v5litepod-}
  case $type in
    v5litepod-*) version=${version:-v2-alpha-tpuv5-lite} ;;
    v6e-*) version=${version:-v2-alpha-tpuv6e} ;;
    *) [[ -n $version ]] || die "--type=$type is neither v5litepod-N nor" \
      "v6e-N: name its image by --version." ;;
  esac
  case ${type%-*},${type##*-} in
    v5litepod,[148] | v6e,[148] | *,16 | *,32 | *,64 | *,128 | *,256) ;;
    v5litepod,* | v6e,*) die "--type=$type: there are slices of 1, 4, 8, 16," \
      "32, 64, 128 and 256 chips." ;;
  esac
}

check_train() {
  local flag config='' workdir='' cluster=''
  for flag in ${train[@]+"${train[@]}"}; do
    case $flag in
      --config=*) config=$flag ;;
      --workdir=*) workdir=${flag#*=} ;;
      --cluster=*) cluster=$flag ;;
    esac
  done
  [[ -n $config && -n $workdir ]] || die "$command needs train.py's own flags" \
    "behind --: -- --config=configs/mixer_b16_i21k.py --workdir=gs://BUCKET/RUN"
  [[ -n $cluster ]] || train+=(--cluster=tpu)
  case $workdir in
    gs://* | /mnt/*) ;;
    *)
      [[ $command != until-done ]] || die "--workdir=$workdir would be deleted" \
        "with the slice: it has to be gs://..., or a shared disk below /mnt."
      warn "--workdir=$workdir is on the slice, and goes with it."
      ;;
  esac
}

errors=$(mktemp)
trap 'rm -f "$errors" "$errors.tar.gz"' EXIT
# shellcheck source=slice.sh
source "$root/launch/slice.sh"
# shellcheck source=until_done.sh
source "$root/launch/until_done.sh"
[[ -z $dry ]] || warn "a dry run: no command is run; of each the answer is" \
  "assumed that lets the next one follow"

case $command in
  create)
    check_type
    create || { tell "there is no slice $name: see above" && exit 1; }
    ;;
  setup) setup || { tell "set-up failed: see above" && exit 1; } ;;
  run)
    check_train
    start || { tell "not all hosts started: see above" && exit 1; }
    tell "follow it by: launch/tpu_vm.sh logs --name=$name --zone=$zone --follow"
    ;;
  status)
    echo "request: $(request)"
    dry_node=READY
    now=$(node)
    echo "slice: $now"
    if [[ $now == READY ]]; then workers || exit 1; fi
    ;;
  logs) on_workers "$worker" "mixer/launch/worker.sh ${follow:-log}" ;;
  stop) on_workers all 'mixer/launch/worker.sh stop' ;;
  delete) delete ;;
  until-done)
    check_type
    check_train
    until_done
    ;;
esac
