# Counting, for the scripts that run inside the machine.
passed=0
failed=0

# check NAME COMMAND...: one line, and what the command said if it failed.
check() {
	name=$1
	shift
	if out=$("$@" 2>&1); then
		passed=$((passed + 1))
		echo "ok   vm::$name"
	else
		failed=$((failed + 1))
		echo "FAIL vm::$name"
		printf '%s\n' "$out" | sed 's/^/     /'
	fi
}

# equal WHAT FOUND WANTED
equal() { [ "$2" = "$3" ] || { echo "$1: found \"$2\", wanted \"$3\""; return 1; }; }

# holds WHAT TEXT PART
holds() { case $2 in *"$3"*) ;; *) echo "$1: \"$3\" is not in \"$2\""; return 1 ;; esac; }

# within SECONDS COMMAND...: again and again until it succeeds.
within() {
	limit=$(($(date +%s) + $1))
	shift
	until "$@"; do
		[ "$(date +%s)" -lt "$limit" ] || return 1
		sleep 0.3
	done
}

summary() {
	echo "vm: $passed passed, $failed failed, 0 skipped"
	[ "$failed" = 0 ]
}

# pod NAME [MORE]: a pod sandbox; MORE are fields of its linux part.
pod() {
	cat >"/tmp/pod-$1.json" <<-JSON
		{"metadata":{"name":"$1","uid":"$1","namespace":"vm","attempt":0},"log_directory":"/tmp/logs-$1","linux":{${2:-}}}
	JSON
	crictl runp "/tmp/pod-$1.json"
}

# container POD NAME SCRIPT [MORE]: a started container of busybox; MORE are fields of its linux part.
container() {
	cat >"/tmp/$2.json" <<-JSON
		{"metadata":{"name":"$2"},"image":{"image":"$image"},"log_path":"$2.log","command":["sh","-c","$3"],"linux":{${4:-}}}
	JSON
	id=$(crictl create --no-pull "$1" "/tmp/$2.json" "/tmp/pod-$podname.json") && crictl start "$id" >/dev/null && echo "$id"
}
