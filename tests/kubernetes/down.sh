#!/bin/bash
# down.sh RUN [NODE]: ends exactly what up.sh started, told by process id and start time, and removes the cluster's folder.
# With NODE only that node dies, at once and with all that runs on it; up.sh boots it again.
set -u
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh" "$1"

# The first process of a node's process namespace: the kernel ends all others in it, and its mounts go with them.
node_down() {
  local home=$RUN/node$1 group
  end "$home/init" KILL 10
  [ -s "$home/cgroups" ] || return 0
  while read -r group; do
    for _ in $(seq 50); do
      [ -d "$group" ] || break
      find "$group" -depth -type d -exec rmdir {} + 2>/dev/null
      [ -d "$group" ] && sleep .1
    done
    [ -d "$group" ] && log "left behind: $group"
  done <"$home/cgroups"
  rm -f "$home"/pid/* "$home/cgroups"
}

if [ -n "${2:-}" ]; then
  node_down "$2"
  exit
fi
end "$RUN/forward" TERM 2
if [ "$LEVEL" = C ]; then
  for n in $(seq "$NODES"); do node_down "$n"; done
  # Servers that others started at the switch are theirs to end: the namespace only loses its name.
  [ -e "/run/netns/$NAME" ] && ip netns del "$NAME"
else
  for name in kube-scheduler kube-controller-manager kube-apiserver etcd; do end "$RUN/pid/$name" KILL 5; done
fi
rm -rf "$RUN"
