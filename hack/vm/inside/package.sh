#!/bin/sh
# The life of the package under a running container: a newer version, the older one again, removal, purge, and a new
# installation. Called by hack/vm/test.sh.
#
#   package.sh ARCHIVE DIRECTORY PROJECT     an OCI archive of busybox, where berth*.deb lies
set -u

. "$(dirname "$0")/lib.sh"
image=berth.test/busybox:vm
archive=$1 dir=$2 project=$3
deb=$(ls -t "$dir"/berth*.deb | head -n 1)

# The same files under a later number.
newer() {
	rm -rf /var/tmp/newer && dpkg-deb -R "$deb" /var/tmp/newer &&
		sed -i 's/^Version: .*/&+newer/' /var/tmp/newer/DEBIAN/control && dpkg-deb -b -Znone /var/tmp/newer /var/tmp/newer.deb
}
installed() { dpkg-query -W -f '${Version}' berth; }
running() { kill -0 "$pid" && crictl inspect "$ctr" | grep -q CONTAINER_RUNNING && [ "$(crictl exec -s "$ctr" echo yes)" = yes ]; }
install() { dpkg --force-confold -i "$1" && within 30 crictl version >/dev/null && running; }

berth images list | grep -q berth.test/busybox || berth images load "$archive" || exit
podname=package
pod=$(pod $podname) && ctr=$(container "$pod" package 'exec sleep 10000') && pid=$(crictl inspect --output go-template --template '{{.info.pid}}' "$ctr") ||
	{ echo "FAIL vm::package::container_runs"; failed=1; summary; exit 1; }
version=$(installed)
check package::newer_is_made newer
check package::upgrade install /var/tmp/newer.deb
check package::upgraded equal version "$(installed)" "$version+newer"
check package::downgrade install "$deb"
check package::downgraded equal version "$(installed)" "$version"

remove() {
	out=$(dpkg -r berth 2>&1) || { echo "$out"; return 1; }
	holds message "$out" "containers that go on without the daemon: 1" && kill -0 "$pid" && ! systemctl is-active -q berth
}
check package::removal_leaves_the_container remove
check package::installed_again install "$deb"

purge() {
	out=$(dpkg -P berth 2>&1) || { echo "$out"; return 1; }
	holds message "$out" "deleting images" && ! kill -0 "$pid" 2>/dev/null || { echo "$out"; return 1; }
	equal directories "$(ls -d /var/lib/berth /run/berth /etc/berth 2>/dev/null)" ""
	equal netns "$(ls /run/netns 2>/dev/null | grep berth)" ""
	equal links "$(ls /sys/class/net | grep berth)" ""
	equal monitors "$(pgrep -x berth-shim)" ""
	within 10 no_units
}
no_units() { [ -z "$(systemctl list-units --all --no-legend 'berth*.scope' 'berth*.service')" ] || { systemctl list-units --all --no-legend 'berth*'; return 1; }; }
hosts=$(mktemp -d) && cp -a /etc/berth/certs.d "$hosts/"
check package::purge_deletes_everything purge
mkdir -p /etc/berth && cp -a "$hosts/certs.d" /etc/berth/
again() { sh "$project/vagrant/provision.sh" "$dir" && berth images load "$archive" && podname=fresh && id=$(pod fresh) && crictl rmp -f "$id"; }
check package::installed_anew again
summary
