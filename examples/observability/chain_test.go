package main

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The program runs, the calls go through the chain, and order's page names who hurts.
func TestChain(t *testing.T) {
	program := filepath.Join(t.TempDir(), "observability")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, "-for", "2s").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"user-service: page http://127.0.0.1:", "payment-service.default", "default/user-service", "town.yaml"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the output does not contain %q:\n%s", want, out)
		}
	}
	if strings.Contains(string(out), "\n0 calls") {
		t.Errorf("no call was made:\n%s", out)
	}
}
