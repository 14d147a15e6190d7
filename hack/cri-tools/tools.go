//go:build tools

// Package tools names what the Makefile builds from sigs.k8s.io/cri-tools, so that `go mod tidy` keeps it.
// critest is a test binary: its command has no importable package, so the suite that it links is named instead.
package tools

import (
	_ "sigs.k8s.io/cri-tools/pkg/validate"
)
