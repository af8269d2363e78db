#!/bin/bash
# component.sh RUN start|stop NAME [NODE] [SIGNAL]: one program of the cluster. At level C it is called inside the node's namespaces,
# where node 1 also has the control plane; at A and B everything is on plain loopback.
set -u
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh" "$1"
N=${4:-1} PKI=$RUN/pki KUBECONFIGS=$RUN/kubeconfig HOME_DIR=$RUN BIND=127.0.0.1 ADVERTISED=127.0.0.1
[ "$LEVEL" = C ] && HOME_DIR=$RUN/node$N BIND=0.0.0.0 ADVERTISED=$(node_ip 1)
mkdir -p "$HOME_DIR/log" "$HOME_DIR/pid"

# spawn NAME ARGUMENTS...
spawn() {
  alive "$HOME_DIR/pid/$1" && return 0
  setsid "$@" >>"$HOME_DIR/log/$1.log" 2>&1 </dev/null &
  echo "$! $(started $!)" >"$HOME_DIR/pid/$1"
}
client() { echo "--kubeconfig $1 --authentication-kubeconfig $1 --authorization-kubeconfig $1"; }

# shellcheck disable=SC2046 # `client` gives several words
start() {
  local etcd=http://127.0.0.1:$ETCD_PORT peer=http://127.0.0.1:$ETCD_PEER_PORT
  case $1 in
  # Without fsync: a killed etcd keeps its data, a machine that loses power loses the whole cluster anyway.
  etcd) spawn etcd --name default --data-dir "$RUN/etcd" --listen-client-urls "$etcd" --advertise-client-urls "$etcd" \
    --listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" --initial-cluster "default=$peer" --unsafe-no-fsync --log-level warn ;;
  kube-apiserver) spawn kube-apiserver --etcd-servers "$etcd" --bind-address "$BIND" --advertise-address "$ADVERTISED" --secure-port "$PORT" \
    --client-ca-file "$PKI/ca.crt" --tls-cert-file "$PKI/apiserver.crt" --tls-private-key-file "$PKI/apiserver.key" \
    --kubelet-client-certificate "$PKI/kubelet-client.crt" --kubelet-client-key "$PKI/kubelet-client.key" \
    --kubelet-certificate-authority "$PKI/ca.crt" --kubelet-preferred-address-types InternalIP \
    --service-account-key-file "$PKI/accounts.pub" --service-account-signing-key-file "$PKI/accounts.key" \
    --service-account-issuer https://kubernetes.default.svc.cluster.local \
    --requestheader-client-ca-file "$PKI/ca.crt" --requestheader-allowed-names front-proxy-client \
    --requestheader-username-headers X-Remote-User --requestheader-group-headers X-Remote-Group --requestheader-extra-headers-prefix X-Remote-Extra- \
    --proxy-client-cert-file "$PKI/front-proxy.crt" --proxy-client-key-file "$PKI/front-proxy.key" \
    --service-cluster-ip-range "$SERVICE_NET" --authorization-mode Node,RBAC --enable-admission-plugins NodeRestriction \
    --allow-privileged=true --profiling=false ;;
  kube-controller-manager) spawn kube-controller-manager $(client "$KUBECONFIGS/manager") --secure-port 0 \
    --root-ca-file "$PKI/ca.crt" --service-account-private-key-file "$PKI/accounts.key" \
    --cluster-signing-cert-file "$PKI/ca.crt" --cluster-signing-key-file "$PKI/ca.key" --use-service-account-credentials=true \
    --cluster-cidr "$POD_NET" --allocate-node-cidrs=false --service-cluster-ip-range "$SERVICE_NET" \
    --node-monitor-grace-period 20s --leader-elect=false --profiling=false ;;
  kube-scheduler) spawn kube-scheduler $(client "$KUBECONFIGS/scheduler") --secure-port 0 --leader-elect=false --profiling=false ;;
  containerd) spawn containerd --config "$HOME_DIR/containerd.toml" ;;
  kubelet) spawn kubelet --config "$HOME_DIR/kubelet.yaml" --kubeconfig "$KUBECONFIGS/node$N" --hostname-override "node$N" --node-ip "$(node_ip "$N")" ;;
  kube-proxy) spawn kube-proxy --config "$HOME_DIR/proxy.yaml" ;;
  *) die "there is no component $1" ;;
  esac
}

case $2 in
start) start "$3" ;;
stop) end "$HOME_DIR/pid/$3" "${5:-TERM}" 20 ;;
*) die "component.sh RUN start|stop NAME [NODE] [SIGNAL]" ;;
esac
