#!/bin/bash
# in.sh RUN NODE CMD...: runs a command inside a node's namespaces and control groups; NODE 0 is the switch, outside of every node.
set -eu
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh" "$1"
N=$2
shift 2
[ "$N" = 0 ] && exec nsenter "--net=/run/netns/$NAME" "$@"
alive "$RUN/node$N/init" || die "node$N is down"
read -r pid _ <"$RUN/node$N/init"
while read -r group; do echo $$ >"$group/cgroup.procs"; done <"$RUN/node$N/cgroups"
exec nsenter -t "$pid" -m -u -i -n -p -C -- "$@"
