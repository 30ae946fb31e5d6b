# shellcheck shell=bash disable=SC2154
# The slice of launch/tpu_vm.sh: gcloud's commands. The variables are its own.

# A dry run prints the commands on the real stdout, one a line, for a shell.
exec 3>&1
[[ -z $dry ]] || exec >/dev/null
show() {
  local word line='' quote="'" escaped="'\\''"
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then
      line+=" $word"
    else
      line+=" '${word//$quote/$escaped}'"
    fi
  done
  echo "${line# }" >&3
}
run() { if [[ -n $dry ]]; then show "$@"; else "$@"; fi; }
# ask ANSWER COMMAND...: its output; ANSWER in a dry run.
ask() { if [[ -n $dry ]]; then show "${@:2}" && echo "$1"; else "${@:2}"; fi; }
pause() { if [[ -z $dry ]]; then sleep "$poll"; fi; }

tpus() { run gcloud compute tpus "$1" "$2" "${@:3}" "${where[@]}" --quiet; }
on_workers() {  # WORKERS COMMAND [FLAG...]
  tpus tpu-vm ssh "$name" --worker="$1" --command="$2" "${ssh_flags[@]}" \
    "${@:3}"
}

# look ANSWER tpu-vm|queued-resources KEY: the state that gcloud knows; ABSENT
# where there is none, UNKNOWN where gcloud fails.
look() {
  local answer
  if answer=$(ask "$1" gcloud compute tpus "$2" describe "$name" \
    "${where[@]}" "--format=value($3)" 2>"$errors"); then
    echo "${answer:-UNKNOWN}"
  elif grep -qiE 'NOT_FOUND|was not found' "$errors"; then
    echo ABSENT
  else
    cat "$errors" >&2
    echo UNKNOWN
  fi
}
dry_node=ABSENT dry_request=ABSENT
node() { look "$dry_node" tpu-vm state; }
request() { look "$dry_request" queued-resources state.state; }

create() {
  tpus queued-resources create "$name" --node-id="$name" \
    --accelerator-type="$type" --runtime-version="$version" \
    ${create_flags[@]+"${create_flags[@]}"} || return 1
  dry_request=ACTIVE dry_node=READY
  await
}

await() {  # A request becomes a slice.
  local now before='' unknown=0
  while :; do
    now=$(request)
    [[ $now == "$before" ]] || tell "$name is $now"
    before=$now
    case $now in
      ACTIVE) return 0 ;;
      FAILED | SUSPENDING | SUSPENDED | DELETING | ABSENT) return 1 ;;
      UNKNOWN) unknown=$((unknown + 1)) && ((unknown <= retries)) || return 1 ;;
    esac
    pause
  done
}

setup() {
  local tree unpack untracked end archive=$errors.tar.gz
  if [[ -n $repo ]]; then
    printf -v unpack 'rm -rf mixer && git clone --quiet %q mixer && ' "$repo"
    if [[ -n $ref ]]; then
      printf -v unpack '%sgit -C mixer checkout --quiet %q && ' "$unpack" "$ref"
    fi
  else
    if [[ -z $dry && -z $ref ]]; then
      untracked=$(git -C "$root" ls-files --others --exclude-standard | wc -l)
      ((!untracked)) ||
        tell "files that git does not know are left out: $((untracked))"
    fi
    # Made once: all slices of a run get the same code, whatever is edited
    # meanwhile.
    if [[ ! -s $archive ]]; then
      # A commit of the files as they are, which no branch knows.
      tree=${ref:-$(ask HEAD git -C "$root" stash create)}
      run git -C "$root" archive --format=tar.gz --prefix=mixer/ \
        --output="$archive" "${tree:-HEAD}" || return 1
    fi
    tpus tpu-vm scp "$archive" "$name:mixer.tar.gz" --worker=all \
      "${ssh_flags[@]/#--ssh-flag/--scp-flag}" || return 1
    unpack='rm -rf mixer && tar -xzf mixer.tar.gz && '
  fi
  end=${prepare:+" && { $prepare; }"}
  on_workers all "${unpack}mixer/launch/worker.sh setup tpu gcs$end"
}

start() {
  on_workers all "mixer/launch/worker.sh start $(printf '%q ' "${train[@]}")"
}

# A line of each host, as in launch/worker.sh.
workers() {
  # shellcheck disable=SC2016  # Expanded there.
  local here='echo "mixer-worker $(hostname) idle"'
  local there=mixer/launch/worker.sh
  on_workers all "if test -x $there; then $there state; else $here; fi" ||
    return 1
  if [[ -n $dry ]]; then echo 'mixer-worker dry-run exit 0'; fi
}

# What the lines of all hosts say together. One that has lost another (75, or
# 134 by JAX's runtime) counts less than what the other says itself.
verdict() {
  awk '$1 == "mixer-worker" {
      total++
      if ($3 != "exit") seen[$3]++
      else if ($4 == 0) seen["done"]++
      else if ($4 == 42) seen["saved"]++
      else if ($4 == 75 || $4 == 134) seen["alone"]++
      else seen[$4 > 128 ? "lost" : "failed"]++
    }
    END {
      if (!total) print "silent"
      else if (seen["idle"] == total) print "idle"
      else if (seen["running"]) print seen["idle"] ? "partial" : "running"
      else if (seen["done"] == total) print "done"
      else if (seen["lost"] || seen["idle"]) print "lost"
      else if (seen["failed"]) print "failed"
      else print seen["alone"] ? "lost" : "saved"
    }'
}

delete() {
  tpus queued-resources delete "$name" --force 2>"$errors" ||
    grep -qiE 'NOT_FOUND|was not found' "$errors" ||
    { cat "$errors" >&2 && return 1; }
  dry_request=ABSENT dry_node=ABSENT
}
