#!/bin/bash
# node.sh RUN NODE: the first process of one node's namespaces (mount, process, network, host name, IPC, control groups).
# Makes them look like a machine of its own, and then only reaps.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh" "$1"
set -e
N=$2 HOME_DIR=$RUN/node$2
mkdir -p "$HOME_DIR"/{log,pid,kubelet,containerd,cni-state,pods,containers,cni,sysctl}
# /proc is still the outer one: this is our process id out there.
read -r outer _ </proc/self/stat
echo "$outer" >"$HOME_DIR/init.pid.draft"
mv "$HOME_DIR/init.pid.draft" "$HOME_DIR/init.pid"
hostname "node$N"

# Mounts: nothing goes out, all that is inside is shared inside.
mount --make-rprivate /
mount --make-rshared /
mount -t proc proc /proc
# A fresh sysfs, which follows the network namespace, and the control groups as this namespace sees them.
hierarchies=$(awk '$3=="cgroup"{print $2" "$4}' /proc/mounts | sort -u)
unified=$(awk '$3=="cgroup2"{print $2}' /proc/mounts | head -1)
umount -l /sys/fs/cgroup
mount -t sysfs sysfs /sys
if [ -n "$hierarchies" ]; then
  mount -t tmpfs -o mode=755,size=1m tmpfs /sys/fs/cgroup
  while read -r dir options; do
    options=$(echo "$options" | tr ',' '\n' | grep -vxE 'rw|ro|relatime|nosuid|nodev|noexec|xattr|release_agent=.*' | paste -sd,)
    mkdir -p "$dir"
    mount -t cgroup -o "$options" cgroup "$dir"
  done <<<"$hierarchies"
  if [ -n "$unified" ]; then mkdir -p "$unified"; mount -t cgroup2 cgroup2 "$unified"; fi
else
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
fi
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/netns /run/lock
for pair in kubelet:/var/lib/kubelet containerd:/var/lib/containerd cni-state:/var/lib/cni pods:/var/log/pods containers:/var/log/containers; do
  mkdir -p "${pair#*:}"
  mount --bind "$HOME_DIR/${pair%%:*}" "${pair#*:}"
done
mount --make-rshared /var/lib/kubelet
# What the kubelet would write into the machine's own kernel: it reads these files, finds what it wants, and writes nothing.
pretend() {
  local file=$HOME_DIR/sysctl/${1//\//_}
  echo "$2" >"$file"
  mount --bind "$file" "/proc/sys/$1"
}
pretend vm/overcommit_memory 1
pretend vm/panic_on_oom 0
pretend kernel/panic 10
pretend kernel/panic_on_oops 1
pretend kernel/keys/root_maxkeys 1000000
pretend kernel/keys/root_maxbytes 25000000

# Network: eth0 is one end of a cable into the switch, which up.sh plugs in.
ip link set lo up
within 10 ip link show eth0
ip addr add "$(node_ip "$N")/24" dev eth0
ip link set eth0 up
ip route add default via "$SWITCH_IP"
for setting in ip_forward conf/all/rp_filter:0 conf/default/rp_filter:0; do
  [ "${setting#*:}" = "$setting" ] && setting=$setting:1
  echo "${setting#*:}" >"/proc/sys/net/ipv4/${setting%:*}"
done
if [ -e /proc/sys/net/bridge/bridge-nf-call-iptables ]; then echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables; fi
echo '127.0.0.1 localhost' >"$HOME_DIR/hosts"
for m in $(seq "$NODES"); do
  echo "$(node_ip "$m") node$m" >>"$HOME_DIR/hosts"
  [ "$m" = "$N" ] || ip route add "$(pod_net "$m").0/24" via "$(node_ip "$m")"
done
mount --bind "$HOME_DIR/hosts" /etc/hosts
: >"$HOME_DIR/resolv.conf"

# An overlay cannot lie on an overlay.
snapshotter=overlayfs
case $(stat -f -c %T "$HOME_DIR") in overlayfs | overlay) snapshotter=native ;; esac
echo "$snapshotter" >"$HOME_DIR/snapshotter"
cat >"$HOME_DIR/cni/10-signal.conflist" <<Y
{"cniVersion": "1.0.0", "name": "signal", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipMasq": false,
   "ipam": {"type": "host-local", "dataDir": "/var/lib/cni/networks", "ranges": [[{"subnet": "$(pod_net "$N").0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
Y
cat >"$HOME_DIR/containerd.toml" <<Y
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = 0
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/signal-pause:1"
  restrict_oom_score_adj = true
  disable_apparmor = true
  disable_hugetlb_controller = true
  tolerate_missing_hugetlb_controller = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$HOME_DIR/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "$snapshotter"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"
Y
cat >"$HOME_DIR/kubelet.yaml" <<Y
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: 0.0.0.0
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: "$RUN/pki/ca.crt"}}
authorization: {mode: Webhook}
tlsCertFile: "$RUN/pki/node$N.crt"
tlsPrivateKeyFile: "$RUN/pki/node$N.key"
clusterDNS: [$DNS_IP]
clusterDomain: cluster.local
resolvConf: "$HOME_DIR/resolv.conf"
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
failSwapOn: false
failCgroupV1: false
oomScoreAdj: 0
maxOpenFiles: 20000
makeIPTablesUtilChains: false
protectKernelDefaults: true
# Images are imported and never pulled: none may be thrown away, and a full disk is the machine's affair.
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: "0%", nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%", imagefs.inodesFree: "0%"}
nodeStatusUpdateFrequency: 4s
nodeStatusReportFrequency: 10s
syncFrequency: 10s
fileCheckFrequency: 10s
httpCheckFrequency: 10s
serializeImagePulls: false
runtimeRequestTimeout: 60s
Y
cat >"$HOME_DIR/proxy.yaml" <<Y
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
hostnameOverride: node$N
bindAddress: 0.0.0.0
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
clusterCIDR: $POD_NET
oomScoreAdj: 0
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
clientConnection: {kubeconfig: "$RUN/kubeconfig/proxy"}
nftables: {minSyncPeriod: 0s, syncPeriod: 30s}
Y
touch "$HOME_DIR/init.up"
set +e
trap 'exit 0' TERM INT
while :; do
  sleep 3600 &
  wait $!
done
