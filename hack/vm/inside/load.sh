#!/bin/sh
# Work for a machine whose plug is going to be pulled: pulls, pods, containers and removals, over and over.
set -u

. "$(dirname "$0")/lib.sh"
image=registry.k8s.io/e2e-test-images/busybox:1.29-2
others="registry.k8s.io/e2e-test-images/nginx:1.14-2 registry.k8s.io/e2e-test-images/busybox:1.29-2"
round=0
while :; do
	round=$((round + 1))
	for other in $others; do
		crictl pull "$other"
	done
	podname=load-$(date +%s)-$round
	pod=$(pod "$podname") && ctr=$(container "$pod" "$podname" 'while :; do echo x; sleep 0.1; done') && crictl exec -s "$ctr" true
	[ $((round % 2)) = 0 ] || { crictl rmp -f "$pod"; crictl rmi --all; }
done >/var/tmp/load.log 2>&1
