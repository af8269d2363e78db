#!/bin/bash
# certificates.sh RUN: the cluster's authority, its certificates and kubeconfigs. What is there stays.
set -eu
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh" "$1"
PKI=$RUN/pki
mkdir -p "$PKI" "$RUN/kubeconfig"

key() { [ -s "$PKI/$1.key" ] || openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$PKI/$1.key" 2>/dev/null; }
# certificate NAME SUBJECT [ALTERNATIVE NAMES]
certificate() {
  [ -s "$PKI/$1.crt" ] && return
  key "$1"
  {
    echo 'keyUsage=critical,digitalSignature,keyEncipherment'
    echo 'extendedKeyUsage=serverAuth,clientAuth'
    [ -z "${3:-}" ] || echo "subjectAltName=$3"
  } >"$PKI/$1.ext"
  openssl req -new -key "$PKI/$1.key" -subj "$2" |
    openssl x509 -req -CA "$PKI/ca.crt" -CAkey "$PKI/ca.key" -set_serial "0x$(openssl rand -hex 8)" -days 3650 \
      -extfile "$PKI/$1.ext" -out "$PKI/$1.crt" 2>/dev/null
}
# kubeconfig NAME CERTIFICATE SERVER
kubeconfig() {
  cat >"$RUN/kubeconfig/$1" <<Y
apiVersion: v1
kind: Config
current-context: signal
clusters: [{name: signal, cluster: {server: "https://$3:$PORT", certificate-authority: "$PKI/ca.crt"}}]
users: [{name: user, user: {client-certificate: "$PKI/$2.crt", client-key: "$PKI/$2.key"}}]
contexts: [{name: signal, context: {cluster: signal, user: user}}]
Y
}

if [ ! -s "$PKI/ca.crt" ]; then
  key ca
  openssl req -x509 -new -key "$PKI/ca.key" -subj /CN=signal-test-authority -days 3650 -out "$PKI/ca.crt" \
    -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,digitalSignature,cRLSign
fi
[ -s "$PKI/accounts.key" ] || openssl genrsa -out "$PKI/accounts.key" 2048 2>/dev/null
[ -s "$PKI/accounts.pub" ] || openssl rsa -in "$PKI/accounts.key" -pubout -out "$PKI/accounts.pub" 2>/dev/null
names=DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local
certificate apiserver /CN=kube-apiserver "$names,IP:127.0.0.1,IP:$SERVICE_IP,IP:$(node_ip 1)"
certificate admin /O=system:masters/CN=admin
certificate kubelet-client /O=system:masters/CN=kube-apiserver-kubelet-client
certificate front-proxy /CN=front-proxy-client
certificate manager /CN=system:kube-controller-manager
certificate scheduler /CN=system:kube-scheduler
kubeconfig admin admin 127.0.0.1
kubeconfig manager manager 127.0.0.1
kubeconfig scheduler scheduler 127.0.0.1
if [ "$LEVEL" = C ]; then
  # The same administrator for whoever stands at the switch, outside of every node.
  kubeconfig outside admin "$(node_ip 1)"
  certificate proxy /CN=system:kube-proxy
  kubeconfig proxy proxy "$(node_ip 1)"
  for n in $(seq "$NODES"); do
    certificate "node$n" "/O=system:nodes/CN=system:node:node$n" "DNS:node$n,IP:$(node_ip "$n"),IP:127.0.0.1"
    kubeconfig "node$n" "node$n" "$(node_ip 1)"
  done
fi
