# Sourced by every script here as `. lib.sh RUN`: RUN is the folder of one cluster, and RUN/settings says what it is made of.
# Clusters in different folders do not meet: names of namespaces and control groups carry the folder's checksum.
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
RUN=$1
log() { printf '[%s] %s\n' "$(date +%T.%3N)" "$*" >&2; }
die() { log "failed: $*"; exit 1; }
[ -s "$RUN/settings" ] || die "there is no cluster in $RUN"
# BIN IMAGES LEVEL NODES PORT ETCD_PORT ETCD_PEER_PORT
. "$RUN/settings"
NAME=signal-$(printf %s "$RUN" | cksum | cut -d' ' -f1)
SERVICE_NET=10.96.0.0/16 SERVICE_IP=10.96.0.1 DNS_IP=10.96.0.10 POD_NET=10.244.0.0/16 SWITCH_IP=10.240.0.1
# For whoever has to find the namespaces without these scripts.
[ -e "$RUN/name" ] || echo "$NAME" >"$RUN/name"
node_ip() { echo "10.240.0.$((10 + $1))"; }
pod_net() { echo "10.244.$1"; }
export PATH="$BIN:$PATH:/usr/sbin:/sbin"

# The start time of a process (field 22): a pid file names both, so that nobody else's process is ever taken for ours.
# One that only waits to be reaped has none.
started() {
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  # shellcheck disable=SC2086 # split on purpose
  set -- ${stat##*) }
  [ "$1" != Z ] && echo "${20}"
}
alive() {
  local pid time
  [ -s "$1" ] || return 1
  read -r pid time <"$1"
  [ -n "$time" ] && [ "$(started "$pid")" = "$time" ]
}
# end FILE SIGNAL SECONDS: ends the process that a pid file names, with SIGKILL when it takes longer
end() {
  local pid
  if alive "$1"; then
    read -r pid _ <"$1"
    kill "-$2" "$pid" 2>/dev/null
    for _ in $(seq $(($3 * 20))); do alive "$1" || break; sleep .05; done
    if alive "$1"; then kill -KILL "$pid"; while alive "$1"; do sleep .05; done; fi
  fi
  rm -f "$1"
}
# within SECONDS CMD...: waits until the command succeeds
within() {
  local limit=$1 end=$((SECONDS + $1))
  shift
  while ! "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$end" ] || die "not within $limit s: $*"
    sleep .1
  done
}
