#!/bin/sh
# Makes a machine that provision.sh is done with a node of a Kubernetes cluster.
#
#   kubeadm.sh OWN_ADDRESS FIRST_ADDRESS     the machine with the first address becomes the control plane
#
# As root. KUBERNETES is the minor release. A machine that is a node already is left alone.
set -eu

own=${1:?the address of this machine}
first=${2:?the address of the control plane}
release=${KUBERNETES:-v1.37}
# Machines on a private network that are thrown away: a secret would have to be carried from one to the next.
token=berth0.0123456789abcdef
keyring=/etc/apt/keyrings/kubernetes.asc
packages=https://pkgs.k8s.io/core:/stable:/$release/deb

say() { printf '%s\n' "kubeadm: $*" >&2; }

install_packages() {
	command -v kubeadm >/dev/null && return
	export DEBIAN_FRONTEND=noninteractive
	mkdir -p /etc/apt/keyrings
	apt-get -qq update
	apt-get -qq install -y ca-certificates curl
	curl -fsSL "$packages/Release.key" -o "$keyring"
	echo "deb [signed-by=$keyring] $packages/ /" >/etc/apt/sources.list.d/kubernetes.list
	apt-get -qq update
	apt-get -qq install -y kubelet kubeadm kubectl
}

# The kubelet does not start while there is swap, and after a restart there must be none either.
disable_swap() {
	swapoff -a
	sed -i '/^[^#].*[[:space:]]swap[[:space:]]/s/^/# /' /etc/fstab
	systemctl mask swap.target
}

# The node's part is the same for the first machine and for those that join.
registration() {
	cat <<-YAML
		nodeRegistration:
		  criSocket: unix:///run/berth/berth.sock
		  kubeletExtraArgs:
		  - name: node-ip
		    value: $own
	YAML
}

init_configuration() {
	cat <<-YAML
		apiVersion: kubeadm.k8s.io/v1beta4
		kind: InitConfiguration
		bootstrapTokens:
		- token: $token
		localAPIEndpoint:
		  advertiseAddress: $own
	YAML
	registration
	cat <<-YAML
		---
		apiVersion: kubelet.config.k8s.io/v1beta1
		kind: KubeletConfiguration
		cgroupDriver: systemd
	YAML
}

join_configuration() {
	cat <<-YAML
		apiVersion: kubeadm.k8s.io/v1beta4
		kind: JoinConfiguration
		discovery:
		  bootstrapToken:
		    apiServerEndpoint: $first:6443
		    token: $token
		    unsafeSkipCAVerification: true
	YAML
	registration
}

make_node() {
	if [ -f /etc/kubernetes/kubelet.conf ]; then
		say "this machine is a node already"
	elif [ "$own" = "$first" ]; then
		init_configuration >/etc/berth-kubeadm.yaml
		kubeadm init --config /etc/berth-kubeadm.yaml
	else
		join_configuration >/etc/berth-kubeadm.yaml
		kubeadm join --config /etc/berth-kubeadm.yaml
	fi
}

# For root, and for the user that `vagrant ssh` is; with one machine there is no other place for pods.
hand_over() {
	[ "$own" = "$first" ] || return 0
	for home in /root /home/vagrant; do
		[ -d "$home" ] || continue
		install -D -m 600 /etc/kubernetes/admin.conf "$home/.kube/config"
		chown -R --reference="$home" "$home/.kube"
	done
	kubectl --kubeconfig /etc/kubernetes/admin.conf taint nodes --all node-role.kubernetes.io/control-plane- >/dev/null 2>&1 || true
}

install_packages
disable_swap
make_node
hand_over
