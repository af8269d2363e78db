#!/bin/bash
# up.sh RUN: from certificates to a cluster that answers, as RUN/settings says. What is up already stays, so it also boots a node that died.
set -eu
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh" "$1"
BEGUN=$(date +%s%N)
stage() { log "$1 ($(($(($(date +%s%N) - BEGUN)) / 1000000)) ms)"; }
on() { local node=$1; shift; if [ "$LEVEL" = C ]; then "$HERE/in.sh" "$RUN" "$node" "$@"; else "$@"; fi; }
component() { on "${2:-1}" "$HERE/component.sh" "$RUN" start "$1" "${2:-1}"; }
kubectl_inside() { on 1 "$BIN/kubectl" --kubeconfig "$RUN/kubeconfig/admin" "$@"; }

# One control group per hierarchy and node, below our own and never beside it, so that limits on the caller still hold.
control_groups() {
  local controllers path mount group
  while IFS=: read -r _ controllers path; do
    [ "$path" = / ] && path=
    mount=/sys/fs/cgroup
    if [ -n "$controllers" ]; then mount=/sys/fs/cgroup/${controllers#name=}; elif [ -d /sys/fs/cgroup/unified ]; then mount=/sys/fs/cgroup/unified; fi
    group=$mount$path/$NAME-node$1
    mkdir -p "$group"
    if [ "${controllers#*cpuset}" != "$controllers" ]; then
      cat "$mount$path/cpuset.cpus" >"$group/cpuset.cpus"
      cat "$mount$path/cpuset.mems" >"$group/cpuset.mems"
    fi
    echo "$group"
  done </proc/self/cgroup
}

node_up() {
  local n=$1 home=$RUN/node$1 pid
  alive "$home/init" && return
  mkdir -p "$home"
  rm -f "$home/init.pid" "$home/init.up" "$home"/pid/*
  control_groups "$n" >"$home/cgroups"
  # shellcheck disable=SC2016 # expanded by the inner shell, which enters the groups itself
  bash -c 'while read -r group; do echo $$ >"$group/cgroup.procs"; done <"$1/cgroups"
    exec setsid unshare --mount --pid --fork --net --uts --ipc --cgroup --kill-child bash "$2" "$3" "$4"' \
    _ "$home" "$HERE/node.sh" "$RUN" "$n" >"$home/init.log" 2>&1 </dev/null &
  within 10 test -s "$home/init.pid"
  pid=$(cat "$home/init.pid")
  echo "$pid $(started "$pid")" >"$home/init"
  ip -n "$NAME" link del "v$n" 2>/dev/null || true
  ip -n "$NAME" link add "v$n" type veth peer name eth0 netns "$pid"
  ip -n "$NAME" link set "v$n" master switch up
  within 10 test -e "$home/init.up"
}

# The folder goes with a cluster that does not start, so its logs are said first.
logs() {
  for file in "$RUN"/log/*.log "$RUN"/node*/init.log "$RUN"/node*/log/*.log; do
    if [ -s "$file" ]; then echo "--- the end of $file"; tail -n 12 "$file"; fi
  done >&2
}
trap '[ $? = 0 ] || logs' EXIT

"$HERE/certificates.sh" "$RUN"
stage certificates
if [ "$LEVEL" = C ]; then
  if [ ! -e "/run/netns/$NAME" ]; then
    ip netns add "$NAME"
    ip -n "$NAME" link set lo up
    ip -n "$NAME" link add switch type bridge
    ip -n "$NAME" addr add "$SWITCH_IP/24" dev switch
    ip -n "$NAME" link set switch up
    # Pods answer whoever stands at the switch, and reach servers there.
    for n in $(seq "$NODES"); do ip -n "$NAME" route add "$(pod_net "$n").0/24" via "$(node_ip "$n")"; done
  fi
  for n in $(seq "$NODES"); do node_up "$n"; component containerd "$n"; done
  stage nodes
fi
# A port that was free a moment ago may be taken: who ended over it is started again.
api_answers() {
  component etcd
  component kube-apiserver
  kubectl_inside get --raw /readyz
}
controllers_work() {
  component kube-controller-manager
  component kube-scheduler
  kubectl_inside get serviceaccount -n default default
}

component etcd
component kube-apiserver
if [ "$LEVEL" = C ]; then
  for n in $(seq "$NODES"); do
    within 20 on "$n" ctr version
    for image in "$IMAGES"/*.tar; do
      # Names are served where the control plane is.
      [ "$n" != 1 ] && [ "${image##*/}" = coredns.tar ] && continue
      mark=$RUN/node$n/$(basename "$image").imported
      [ -e "$mark" ] || { on "$n" ctr -n k8s.io images import --snapshotter "$(cat "$RUN/node$n/snapshotter")" "$image" >&2; touch "$mark"; }
    done
  done
  stage images
fi
within 60 api_answers
stage 'API server'
if [ "$LEVEL" = A ]; then exit; fi
if [ "$LEVEL" = C ]; then
  for n in $(seq "$NODES"); do component kubelet "$n"; component kube-proxy "$n"; done
fi
within 60 controllers_work
stage controllers
if [ "$LEVEL" = C ]; then
  kubectl_inside apply -f "$HERE/coredns.yaml" >&2
  for n in $(seq "$NODES"); do within 60 kubectl_inside get node "node$n"; done
  kubectl_inside wait --for=condition=Ready node --all --timeout=90s >&2
  kubectl_inside rollout status deployment/coredns -n kube-system --timeout=90s >&2
  # The machine's own loopback, then a socket in a file, then node 1: namespaces share files, not networks.
  if ! alive "$RUN/forward"; then
    rm -f "$RUN/api.sock"
    # shellcheck disable=SC2016
    on 1 bash -c 'setsid socat "UNIX-LISTEN:$1,fork" "TCP:127.0.0.1:$2" >/dev/null 2>&1 </dev/null &' _ "$RUN/api.sock" "$PORT"
    setsid socat "TCP-LISTEN:$PORT,bind=127.0.0.1,reuseaddr,fork" "UNIX-CONNECT:$RUN/api.sock" >/dev/null 2>&1 </dev/null &
    echo "$! $(started $!)" >"$RUN/forward"
    # Only who makes it is known to stand at its end: whoever boots a node again may be in a network of the cluster's own.
    within 10 "$BIN/kubectl" --kubeconfig "$RUN/kubeconfig/admin" get --raw /readyz
  fi
  stage nodes
else
  within 10 "$BIN/kubectl" --kubeconfig "$RUN/kubeconfig/admin" get --raw /readyz
fi
stage "level $LEVEL is up"
