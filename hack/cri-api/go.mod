// Pins the published CRI, which cri-api/tests/upstream.rs compares our own file with. Nothing is built here.
module berth.invalid/hack/cri-api

go 1.26

require k8s.io/cri-api v0.37.2
